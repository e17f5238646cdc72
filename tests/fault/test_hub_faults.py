"""A hub that cuts, lies, refuses or is not there, a process that is killed, a disk that is full, a cache that was
tampered with: each gets one line, nothing wrong gets a final name, and a rerun goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tests.broken import FIRST
from tests.command_line import nestling
from tests.full_disk import largest_file
from tests.hub_server import COMMIT, Fault, HubServer, oid_of

from nestling.errors import BuildError, FileFormatError, ModelNotFoundError, NestlingError, UsageError
from nestling.models import hub, hub_models, local
from nestling.models.hub import HubReference, client

REPOSITORY = "org/repo"
LARGE, SMALL = "x-Q8_0.gguf", "x-Q8_0.json"
CONTENT = random.Random(1).randbytes(2_000_000)


@pytest.fixture
def cache(hub_server: HubServer, hub_cache: Path) -> Path:
    hub_server.repositories[REPOSITORY] = {LARGE: CONTENT, SMALL: b'{"a": 1}'}
    return hub_cache


def fetch(*names: str) -> Path:
    return hub.fetch(hub.listing(REPOSITORY), names or (LARGE,))


def final_names(cache: Path) -> list[Path]:
    """Everything that somebody could take for a whole file; each is checked to be what its name says."""
    blobs = [path for path in cache.rglob("blobs/*") if not path.name.endswith(".incomplete")]
    links = [path for path in cache.rglob("snapshots/*/*") if not path.is_dir()]
    for blob in blobs:
        assert hub.hash_of(blob, like=blob.name) == blob.name
    for link in links:
        assert link.resolve() in blobs
    return blobs


def refused(error: type[NestlingError], message: str, *names: str) -> None:
    with pytest.raises(error, match=message) as caught:
        fetch(*names)
    assert "\n" not in str(caught.value)


# Connections that break.


@pytest.mark.parametrize("cut", [0, 1, 999_999, 1_048_576, len(CONTENT) - 1])
def test_a_cut_download_goes_on_where_it_stopped(cache: Path, hub_server: HubServer, cut: int) -> None:
    hub_server.faults[LARGE] = Fault(cuts=[cut])
    assert (fetch() / LARGE).read_bytes() == CONTENT
    ranges = hub_server.downloads(LARGE)
    assert ranges[0] is None
    start = int(ranges[-1].removeprefix("bytes=").rstrip("-")) if ranges[-1] else 0
    assert start == cut
    assert len(final_names(cache)) == 1


@pytest.mark.usefixtures("cache")
def test_many_cuts_are_no_hindrance_while_something_comes(hub_server: HubServer) -> None:
    hub_server.faults[LARGE] = Fault(cuts=[150_000] * 12, pause_s=1e-4)
    assert (fetch() / LARGE).read_bytes() == CONTENT
    assert len(hub_server.downloads(LARGE)) >= 8


def test_a_hub_that_ignores_ranges_sends_it_all_again(cache: Path, hub_server: HubServer) -> None:
    hub_server.faults[LARGE] = Fault(cuts=[1_500_000], ignores_ranges=True)
    assert (fetch() / LARGE).read_bytes() == CONTENT
    assert len(final_names(cache)) == 1


def test_when_nothing_more_comes_what_is_there_is_kept_for_the_next_run(cache: Path, hub_server: HubServer) -> None:
    hub_server.faults[LARGE] = Fault(cuts=[1_500_000] + [0] * client.ATTEMPTS, pause_s=1e-4)
    refused(ModelNotFoundError, rf"org/repo: {LARGE}: http://127\.0\.0\.1:\d+ refuses it")
    assert final_names(cache) == []
    (part,) = cache.rglob("*.incomplete")
    assert part.read_bytes() == CONTENT[: part.stat().st_size] != b""
    hub_server.requests.clear()
    assert (fetch() / LARGE).read_bytes() == CONTENT
    assert hub_server.downloads(LARGE) == [f"bytes={1_500_000}-"] * 2  # the redirect, and the bytes


@pytest.mark.parametrize("left", [b"", CONTENT[:5], CONTENT, CONTENT + b"more", bytes(7)])
def test_whatever_an_earlier_run_left(cache: Path, left: bytes) -> None:
    """A beginning is gone on from; what is not one is found out by the hash, and the next run starts afresh."""
    part = cache / "models--org--repo" / "blobs" / f"{oid_of(CONTENT)}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    if left == bytes(7):
        refused(FileFormatError, "the downloaded file has the hash")
    assert (fetch() / LARGE).read_bytes() == CONTENT
    assert len(final_names(cache)) == 1


# Contents that are not what the hub said.


@pytest.mark.parametrize("name", [LARGE, SMALL])
def test_a_wrong_hash_is_refused_and_thrown_away(cache: Path, hub_server: HubServer, name: str) -> None:
    whole = hub_server.repositories[REPOSITORY][name]
    hub_server.faults[name] = Fault(content=bytes([whole[0] ^ 1]) + whole[1:])
    refused(
        FileFormatError,
        rf"org/repo: {name}: the downloaded file has the hash [0-9a-f]+, expected {oid_of(whole)}",
        name,
    )
    assert final_names(cache) == []
    assert not list(cache.rglob("*.incomplete"))
    hub_server.faults.clear()
    assert (fetch(name) / name).read_bytes() == whole


def test_a_hub_that_never_stops_is_stopped(cache: Path, hub_server: HubServer) -> None:
    hub_server.faults[LARGE] = Fault(surplus=bytes(3_000_000))
    refused(FileFormatError, f"the hub sends more than the announced {len(CONTENT)} bytes")
    assert sum(path.stat().st_size for path in cache.rglob("blobs/*")) <= len(CONTENT)
    assert final_names(cache) == []


def test_a_hub_that_sends_too_little_is_asked_a_few_times(cache: Path, hub_server: HubServer) -> None:
    hub_server.faults[LARGE] = Fault(content=CONTENT[:1000])
    refused(ModelNotFoundError, f"the hub sends fewer than the announced {len(CONTENT)} bytes|refuses it")
    assert len(hub_server.downloads(LARGE)) == 2 * (client.ATTEMPTS + 1)  # the first one brought something
    assert final_names(cache) == []


@pytest.mark.parametrize(("status", "requests"), [(401, 1), (403, 1), (404, 1), (410, 1), (429, 5), (500, 5), (503, 5)])
@pytest.mark.usefixtures("cache")
def test_refusals_are_one_line_and_only_passing_ones_are_tried_again(
    hub_server: HubServer, status: int, requests: int
) -> None:
    hub_server.faults[LARGE] = Fault(status=status)
    refused(ModelNotFoundError, f"org/repo: {LARGE}: ")
    assert len(hub_server.downloads(LARGE)) == requests * 2  # each is a redirect and an answer


# Listings that lie.

HOSTILE_NAMES = [
    "../x.gguf", "../../../../etc/cron.d/x.json", "/etc/x.json", "a/../../x.gguf", "a//x.gguf", "./x.gguf", "a\\x.gguf",
    "a\\..\\x.gguf", "C:x.gguf", "~/x.gguf", "x\0.gguf", "x\n.gguf", "-rf.gguf", ".hidden/x.gguf", ".gguf",
    "a/.gguf", "\u202ex.gguf",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_listing_with_a_name_that_leads_elsewhere_is_refused(cache: Path, hub_server: HubServer, name: str) -> None:
    hub_server.repositories[REPOSITORY][name] = b"{}"
    refused(FileFormatError, "org/repo: the hub lists .* expected the plain name of a file")
    assert not cache.exists()


ODD_NAMES = [
    "a b.gguf", "x;rm.gguf", "$(x).gguf", "results (1).json", "eval results.json", "a@b.json",
    "results_2024-05-01T10:00:00.json", "sub folder/a b.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_is_odd_is_left_alone(cache: Path, hub_server: HubServer, name: str) -> None:
    """It is refused when it is the file that is wanted, and only then."""
    hub_server.repositories["org/odd"] = {"m-Q8_0.gguf": CONTENT, name: b"{}"}
    [path] = hub_models.pull(HubReference("org/odd", "Q8_0"))
    assert path.read_bytes() == CONTENT
    assert not [one for one in cache.rglob("*") if one.name == name.rpartition("/")[2]]
    if not name.endswith(".json"):
        hub_server.repositories["org/odd"] = {name: b"{}"}
        with pytest.raises(FileFormatError, match=r"org/odd: the hub lists .* expected the plain name of a file"):
            hub_models.pull(HubReference("org/odd"))


@pytest.mark.parametrize("answer", ["bytes 0-9/10", "bytes 7-10/*", "bytes 1-9/12", "10-20", "bytes */10", ""])
def test_a_part_that_is_not_the_one_asked_for_is_not_taken(answer: str) -> None:
    assert not client._continues(answer, 1, 10)


@pytest.mark.parametrize("answer", ["bytes 1-9/10", " bytes 1-9/* "])
def test_a_part_that_is_the_one_asked_for_is_taken(answer: str) -> None:
    assert client._continues(answer, 1, 10)


def test_a_wrong_range_costs_nothing_of_what_is_there(
    cache: Path, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.faults[LARGE] = Fault(cuts=[1_048_576, *[0] * 9])
    with monkeypatch.context() as patch:
        patch.setattr(client, "_continues", lambda *_: False)
        refused(ModelNotFoundError, "answers with a range other than bytes 1048576 to")
    assert [one.stat().st_size for one in cache.rglob("*.incomplete")] == [1_048_576]
    hub_server.faults.clear()
    assert (fetch() / LARGE).read_bytes() == CONTENT


@pytest.mark.parametrize("token", ["hf_\xe4bc", "hf_a\nb"])
@pytest.mark.parametrize("verb", ["listing", "fetch", "upload"])
def test_a_token_that_no_header_can_hold_is_named_and_not_shown(
    cache: Path, token: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = hub.listing(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    doors: dict[str, Callable[[], object]] = {
        "listing": lambda: hub.listing(REPOSITORY),
        "fetch": lambda: hub.fetch(listed, [LARGE]),
        "upload": lambda: hub.upload(REPOSITORY, {"x.json": b"{}"}, message="m", private=False),
    }
    with pytest.raises(UsageError, match=r"^HF_TOKEN: ") as caught:
        doors[verb]()
    assert token not in str(caught.value)
    assert not list(cache.rglob("*.gguf"))


OID = oid_of(CONTENT)
LFS = {"size": len(CONTENT), "sha256": OID, "pointerSize": 1}
HOSTILE_ENTRIES: dict[str, dict[str, Any]] = {
    "a hash that is a path": {"lfs": LFS | {"sha256": "../../../../tmp/x"}},
    "an empty hash": {"lfs": LFS | {"sha256": ""}},
    "half a hash": {"lfs": LFS | {"sha256": OID[:32]}},
    "a hash in capitals": {"lfs": LFS | {"sha256": OID.upper()}},
    "a hash that is a number": {"lfs": LFS | {"sha256": 5}},
    "no hash": {"lfs": None, "blobId": None},
    "a negative size": {"lfs": LFS | {"size": -1}},
    "a size that is a text": {"lfs": LFS | {"size": "12"}},
    "a size that is true": {"lfs": LFS | {"size": True}},
    "no size": {"lfs": None, "size": None},
    "no fields": {"lfs": {"x": 1}},
}


@pytest.mark.parametrize("fault", HOSTILE_ENTRIES)
def test_a_listing_with_unsound_entries_is_refused(cache: Path, hub_server: HubServer, fault: str) -> None:
    hub_server.changes[LARGE] = HOSTILE_ENTRIES[fault]
    refused(FileFormatError, "org/repo: .*(no valid hash and size|does not answer like a)")
    assert not cache.exists()


@pytest.mark.parametrize(
    "answer",
    [
        {"sha": "../../x"},
        {"sha": ""},
        {"sha": None},
        {"sha": "main"},
        {"siblings": 5},
        {"siblings": [5]},
        {"siblings": [{}]},
    ],
)
def test_a_listing_that_is_none_is_refused(cache: Path, hub_server: HubServer, answer: dict[str, Any]) -> None:
    hub_server.answer.update(answer)
    refused(FileFormatError, "org/repo: .*(names the commit|does not answer like a)")
    assert not cache.exists()


@pytest.mark.parametrize("size", [1 << 50, (1 << 63) - 1, 1 << 80])
def test_a_file_larger_than_the_disk_is_refused_before_it_is_asked_for(
    cache: Path, hub_server: HubServer, size: int
) -> None:
    hub_server.changes[LARGE] = {"lfs": LFS | {"size": size}}
    refused(BuildError, "MiB are needed, .* MiB are free; free disk space, or set HF_HOME")
    assert (hub_server.downloads(LARGE), list(cache.rglob("blobs/*"))) == ([], [])


def test_no_code_and_no_pickle_is_ever_asked_for(hub_server: HubServer, cache: Path, small_checkpoint: Path) -> None:
    paths = [path for path in small_checkpoint.rglob("*") if path.is_file()]
    files = {str(path.relative_to(small_checkpoint)): path.read_bytes() for path in paths}
    bait = ["modeling.py", "pytorch_model.bin", "adapters/adapter_model.bin", "training_args.pt", "x.pkl", "setup.sh",
            "model.ckpt", "model.h5", "x.so", "requirements.txt", "adapters/x.py"]  # fmt: skip
    hub_server.repositories[REPOSITORY] = files | dict.fromkeys(bait, b"raise SystemExit('executed')" * 50)
    (snapshot,) = hub_models.pull(HubReference(REPOSITORY))
    assert set(hub.names_in(snapshot)) == set(files)
    assert len(final_names(cache)) == len({oid_of(content) for content in files.values()})
    asked = {one.path.partition(f"/resolve/{COMMIT}/")[2] for one in hub_server.requests}
    assert FIRST in asked
    assert not asked & set(bait)
    for name in bait:
        with pytest.raises(KeyError):
            fetch(name)


# Nobody there.


def test_a_repository_that_is_not_there(cache: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match="org/absent: no such repository, or a private one; set HF_TOKEN"
    ) as caught:
        hub.listing("org/absent")
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_a_hub_that_does_not_listen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    done = nestling("pull", REPOSITORY)
    assert (done.code, done.raw, len(done.err.splitlines())) == (1, b"", 1), done
    for part in ("org/repo: http://127.0.0.1:9 refuses it", "not on this machine", "`nestling pull org/repo`"):
        assert part in done.err
    assert not cache.exists()


def real(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, which reads huggingface_hub's variables itself."""
    return subprocess.run(
        [sys.executable, "-c", "from nestling.cli import main; main()", *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip


def test_the_librarys_variables_are_honoured(cache: Path, hub_server: HubServer, tmp_path: Path) -> None:
    """A pull with HF_ENDPOINT, HF_HOME and HF_TOKEN, then the same file offline, then one that is not there."""
    assert cache
    home = {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret", "HF_ENDPOINT": hub_server.endpoint}
    done = real("pull", "org/repo:Q8_0", **home)
    assert (done.returncode, done.stderr) == (0, "")
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home" / "hub" / "models--org--repo")
    assert path.read_bytes() == CONTENT
    assert {one.authorization for one in hub_server.requests if "/cdn/" not in one.path} == {"Bearer hf_secret"}
    hub_server.requests.clear()
    missing = real("pull", "org/repo:F16", **home, HF_HUB_OFFLINE="1")
    assert (missing.returncode, missing.stdout, len(missing.stderr.splitlines())) == (1, "", 1)
    assert "HF_HUB_OFFLINE" in missing.stderr
    assert "where there is a network" in missing.stderr
    assert hub_server.requests == []


# Killed.


def in_child(work: Callable[[], object], *, killed_after_s: float | None = None) -> float:
    """Do the work in another process, killed after a while or left to its end; -> how long it lived."""
    began, pid = time.monotonic(), os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    if killed_after_s is not None:
        time.sleep(killed_after_s)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return time.monotonic() - began


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_killed_at_fifty_moments(cache: Path, hub_server: HubServer) -> None:
    """Nothing half has a final name at any moment, every rerun goes on, and the end is the same bytes."""
    hub_server.faults[LARGE] = Fault(pause_s=0.001)
    listed, moments = hub.listing(REPOSITORY), random.Random(5)
    huggingface_hub.close_session()
    huggingface_hub.get_session()  # a client for the children, without connections that they would share
    whole_s = in_child(lambda: hub.fetch(listed, [LARGE, SMALL]))
    for _ in range(50):
        if len(final_names(cache)) == 2:
            shutil.rmtree(cache)
        in_child(lambda: hub.fetch(listed, [LARGE, SMALL]), killed_after_s=moments.uniform(0, whole_s))
    assert (fetch(LARGE, SMALL) / LARGE).read_bytes() == CONTENT
    assert len(final_names(cache)) == 2
    assert any(one.range for one in hub_server.requests), "no rerun went on from what an earlier one had left"


def test_two_runs_at_once_fetch_once(cache: Path, hub_server: HubServer) -> None:
    hub_server.faults[LARGE] = Fault(pause_s=0.001)
    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub_server.downloads(LARGE) == [None, None]  # the redirect, and the bytes
    assert len(final_names(cache)) == 1


# Out of space.


def test_a_disk_that_fills_up_is_one_line_and_the_rerun_goes_on(cache: Path, hub_server: HubServer) -> None:
    with largest_file(cache, 1 << 20):
        refused(BuildError, r"\.incomplete: cannot be written: File too large")
    assert final_names(cache) == []
    (part,) = cache.rglob("*.incomplete")
    assert part.read_bytes() == CONTENT[: 1 << 20]
    hub_server.requests.clear()
    assert (fetch() / LARGE).read_bytes() == CONTENT
    assert hub_server.downloads(LARGE) == [f"bytes={1 << 20}-"] * 2


def test_a_cache_that_cannot_be_written_is_one_line(cache: Path) -> None:
    cache.write_bytes(b"a file where a folder should be")
    done = nestling("pull", "org/repo:Q8_0")
    assert (done.code, done.raw, len(done.err.splitlines())) == (1, b"", 1), done
    assert str(cache) in done.err


# A cache that was tampered with.


def tamper_link(snapshot: Path) -> None:
    outside = snapshot.parents[3] / "outside.gguf"
    outside.write_bytes(b"GGUF")
    (snapshot / LARGE).unlink()
    (snapshot / LARGE).symlink_to(outside)


def tamper_ref(snapshot: Path) -> None:
    other = snapshot.parents[3] / "other"
    other.mkdir()
    (other / LARGE).write_bytes(b"GGUF")
    (snapshot.parents[1] / "refs" / "main").write_text("../../../other")
    shutil.rmtree(snapshot)


@pytest.mark.parametrize("tamper", [tamper_link, tamper_ref])
def test_links_and_references_that_leave_the_repository_are_not_followed(
    cache: Path, tamper: Callable[[Path], None]
) -> None:
    assert cache
    tamper(fetch())
    with pytest.raises(ModelNotFoundError, match="not in the hub's cache"):
        local.resolve("org/repo:Q8_0")
    assert hub_models.models() == []


@pytest.mark.usefixtures("cache")
def test_verify_finds_bytes_that_are_not_the_hubs(
    tiny_models: dict[str, Path], hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.evaluation.verify.PROBES", ("sunset", "a beach, at night"))
    hub_server.repositories[REPOSITORY] = {"tiny-F32.gguf": tiny_models["F32"].read_bytes()}
    path = fetch("tiny-F32.gguf") / "tiny-F32.gguf"
    assert hub_models.find(HubReference(REPOSITORY)) == path
    with path.resolve().open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    done = nestling("verify", "org/repo:F32", "--json")
    check = json.loads(done.out)[1]
    assert (done.code, check["check"], check["passed"]) == (1, "hash", False)
    assert f"the hub says {path.resolve().name}" in check["detail"]


@pytest.mark.parametrize("verb", ["show", "inspect", "verify", "embed"])
@pytest.mark.usefixtures("cache")
def test_a_pulled_file_that_lies_is_refused_by_our_reader(hub_server: HubServer, verb: str) -> None:
    """Before any engine: an array of 2^63 items in 53 bytes, on which another reader loops for ever."""
    evil = b"GGUF\3\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\5" + bytes(7) + b"loop!" + b"\11\0\0\0" + bytes(4)
    hub_server.repositories[REPOSITORY] = {LARGE: evil + bytes(7) + b"\x80"}
    fetch()
    arguments = ["embed", "-e", "llamacpp", "-m", "org/repo:Q8_0", "a"] if verb == "embed" else [verb, "org/repo:Q8_0"]
    done = nestling(*arguments)
    assert done.code == 1
    assert "length of loop! is 9223372036854775808" in done.out + done.err


@pytest.mark.parametrize(
    "card",
    [b"[" * 100_000, b"[]", b"{}", b"\xff", b'{"file": 5}', b" " * (1 << 20) + b"{}", b'{"sha256": ["x"]}'],
    ids=["depth", "a list", "nothing", "not UTF-8", "one field", "long", "a list as a hash"],
)
@pytest.mark.usefixtures("cache")
def test_a_pulled_card_that_is_none_is_one_line(
    tiny_models: dict[str, Path], hub_server: HubServer, card: bytes
) -> None:
    hub_server.repositories[REPOSITORY] = {"tiny-F32.gguf": tiny_models["F32"].read_bytes(), "tiny-F32.json": card}
    hub_models.pull(HubReference(REPOSITORY))
    done = nestling("show", "org/repo")
    assert (done.code, done.raw, len(done.err.splitlines())) == (1, b"", 1), done
    assert "tiny-F32.json: not a card of this version" in done.err
