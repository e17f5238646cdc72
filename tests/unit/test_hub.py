"""References, the cache's layout as huggingface_hub itself reads it, and downloads from a hub on loopback."""

import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from tests.hub_server import COMMIT, Fault, HubServer, oid_of

from nestling._util.progress import Progress
from nestling._util.version import __version__
from nestling.errors import BuildError, FileFormatError, ModelNotFoundError, UsageError
from nestling.models import hub, hub_models, local, removal
from nestling.models.families import JINA_V4, published_name
from nestling.models.hub import HubReference
from nestling.spec import Task

REPOSITORY = "some-org/Some.Repo_1"
MODEL, CARD, TEXT = "m-Q8_0.gguf", "m-Q8_0.json", "merges.txt"
FILES = {
    MODEL: bytes(range(256)) * 20, CARD: b"{}", TEXT: b"a b\n", "sub/x.json": b"[]", "README.md": b"# x\n",
    "run.py": b"raise SystemExit", "w.bin": b"\x80\x04." * 500, "w.pt": b"PK", ".gitattributes": b"*",
}  # fmt: skip

AGENT = (
    f"nestling/{__version__}; hf_hub/{huggingface_hub.__version__}; python/{sys.version_info[0]}.{sys.version_info[1]}"
    f".{sys.version_info[2]}"
)


@pytest.fixture
def cache(hub_server: HubServer, hub_cache: Path) -> Path:
    """An empty cache, and a hub with one repository."""
    hub_server.repositories[REPOSITORY] = dict(FILES)
    return hub_cache


def fetch(*names: str) -> Path:
    return hub.fetch(hub.listing(REPOSITORY), names)


def blobs(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("blobs/*")}


# References.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/repo", HubReference("org/repo")),
        ("org/repo:Q4_K_M", HubReference("org/repo", "Q4_K_M")),
        ("hf.co/org/repo:Q4_K_M", HubReference("org/repo", "Q4_K_M")),
        ("https://hf.co/org/repo", HubReference("org/repo")),
        ("hf://org/repo-1.5_x:UD-Q4_K_XL", HubReference("org/repo-1.5_x", "UD-Q4_K_XL")),
        ("org", None),
        ("org/repo/more", None),
        ("models/x.gguf", None),
        ("../repo", None),
        ("org/..", None),
        ("org/re..po", None),
        ("org/re--po", None),
        ("org/repo:", None),
        ("org/re po", None),
        ("org\\repo", None),
        ("/org/repo", None),
        ("", None),
    ],
)
def test_references(text: str, expected: HubReference | None) -> None:
    assert HubReference.parse(text) == expected
    if expected:
        assert HubReference.parse(str(expected)) == expected


@pytest.mark.parametrize("name", ["a.gguf", "a/b.safetensors", "c.json", "merges.txt", "x/vocab.txt", "README.md"])
def test_what_is_readable(name: str) -> None:
    assert hub.is_readable(name)


@pytest.mark.parametrize(
    "name",
    ["a.bin", "a.pt", "a.pth", "a.py", "a.pkl", "a.ckpt", "a.h5", "a.onnx", "a.txt", "gguf", "a.json.py", "a.gguf.sh"],
)
def test_what_is_not(name: str) -> None:
    assert not hub.is_readable(name)


# Downloads.


@pytest.mark.usefixtures("cache")
def test_a_listing_names_only_what_is_readable() -> None:
    listed = hub.listing(REPOSITORY)
    assert listed.commit == COMMIT
    assert set(listed.files) == {MODEL, CARD, TEXT, "sub/x.json", "README.md"}
    assert listed.files[MODEL] == hub.HubFile(MODEL, 5120, oid_of(FILES[MODEL]))


def test_what_is_fetched_lies_as_huggingface_hub_has_it(cache: Path) -> None:
    snapshot = fetch(MODEL, CARD, "sub/x.json")
    for name in (MODEL, CARD, "sub/x.json"):
        found = huggingface_hub.try_to_load_from_cache(REPOSITORY, name, cache_dir=cache)
        assert found == str(snapshot / name)
        assert Path(found).read_bytes() == FILES[name]
        assert hub.known_hash(Path(found)) == oid_of(FILES[name])
    (repository,) = huggingface_hub.scan_cache_dir(cache).repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.commit_hash, set(revision.refs)) == (REPOSITORY, COMMIT, {"main"})
    assert repository.size_on_disk == len(FILES[MODEL]) + 4
    assert hub.snapshot_of(REPOSITORY) == snapshot
    assert hub.names_in(snapshot) == [MODEL, CARD, "sub/x.json"]
    assert hub.cached_repositories() == [REPOSITORY]


def test_what_huggingface_hub_fetched_is_found(cache: Path) -> None:
    path = huggingface_hub.hf_hub_download(REPOSITORY, MODEL, cache_dir=cache)
    assert local.resolve(REPOSITORY) == Path(path)


def test_what_is_here_is_not_fetched_again(cache: Path, hub_server: HubServer) -> None:
    fetch(MODEL)
    hub_server.requests.clear()
    fetch(MODEL, CARD)
    assert hub_server.downloads(MODEL) == []
    assert hub_server.downloads(CARD) == [None]
    assert not list(cache.rglob("*.incomplete"))


@pytest.mark.usefixtures("cache")
def test_progress_is_told_by_file() -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def steps(name: str) -> Progress:
        told[name] = []
        return lambda done, total: told[name].append((done, total))

    hub.fetch(hub.listing(REPOSITORY), [MODEL, CARD], steps=steps)
    assert (told[MODEL][-1], told[CARD]) == ((5120, 5120), [(2, 2)])


@pytest.mark.usefixtures("cache")
def test_the_token_is_sent_to_the_hub_and_to_nobody_else(
    hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(MODEL)
    for one in hub_server.requests:
        assert one.authorization == (None if "/cdn/" in one.path else "Bearer hf_secret")


def test_the_hub_is_not_told_what_else_is_installed(cache: Path, hub_server: HubServer) -> None:
    fetch(MODEL, CARD)
    assert {one.agent for one in hub_server.requests} == {AGENT}
    assert {one.path.split("/")[1] for one in hub_server.requests} == {"api", "some-org", "cdn"}
    assert not [one.path for one in hub_server.requests if one.path.startswith("/api/") and "/models/" not in one.path]
    assert cache.is_dir()


# Choosing a file.

NAMES = ["a-F16.gguf", "a-Q8_0.gguf", "a.iq3_s.gguf", "UD/a-UD-Q4_K_XL.gguf", "mmproj-a-Q4_0.gguf", "imatrix-a.gguf",
         "a-multivector.gguf", "adapter-a-Q5_0.gguf", "a-Q6_K-00001-of-00002.gguf", "a.json"]  # fmt: skip


@pytest.mark.parametrize(
    ("quant", "expected"),
    [(None, "a-Q8_0.gguf"), ("f16", "a-F16.gguf"), ("IQ3_S", "a.iq3_s.gguf"), ("ud-q4_k_xl", "UD/a-UD-Q4_K_XL.gguf")],
)
def test_a_file_is_chosen_by_its_type(quant: str | None, expected: str) -> None:
    assert hub_models.choose(NAMES, HubReference("o/r", quant)) == expected


def test_the_only_file_needs_no_type() -> None:
    assert hub_models.choose(["x/only.gguf", "a.json"], HubReference("o/r")) == "x/only.gguf"


@pytest.mark.parametrize(
    ("names", "quant", "have"),
    [
        (NAMES, "Q4_0", "no Q4_0 in it; it has F16, IQ3_S, Q8_0, UD-Q4_K_XL"),
        (NAMES, "Q6_K", "no Q6_K in it; it has F16"),
        (["a-F16.gguf", "a-Q4_0.gguf"], None, "no Q8_0 in it; it has F16, Q4_0"),
        (["a.json"], None, "it has no GGUF model"),
        (
            ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"],
            None,
            "no GGUF model; m-Q8_0-00001-of-00002.gguf and 1 more are pieces of split models, which",
        ),
        (["a-Q4_0.gguf", "m-00001-of-00003.gguf"], "Q8_0", "it has Q4_0; m-00001-of-00003.gguf and 0 more are pieces"),
    ],
)
def test_what_is_not_there_is_said(names: list[str], quant: str | None, have: str) -> None:
    with pytest.raises(ModelNotFoundError, match=have):
        hub_models.choose(names, HubReference("o/r", quant))


# Models by their names.


@pytest.fixture
def jina(cache: Path, hub_server: HubServer) -> dict[Task, str]:
    """The published repositories on the hub, with files of nothing; task -> repository."""
    assert cache
    repositories = {task: JINA_V4.repository_of(task) for task in Task}
    for task, repository in repositories.items():
        names = [published_name(JINA_V4, task, quant) for quant in ("Q8_0", "Q4_K_M")]
        hub_server.repositories[repository] = {name: name.encode() for name in names}
    return repositories


def pull(text: str) -> list[Path]:
    return [path for one in hub_models.references(text) for path in hub_models.pull(one)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("jina-v4-retrieval:Q4_K_M", ["jina-embeddings-v4-text-retrieval-Q4_K_M.gguf"]),
        ("jina-v4-matching", ["jina-embeddings-v4-text-matching-Q8_0.gguf"]),
        ("hf.co/jinaai/jina-embeddings-v4-text-code-GGUF:Q4_K_M", ["jina-embeddings-v4-text-code-Q4_K_M.gguf"]),
        ("jina-v4:Q4_K_M", [f"jina-embeddings-v4-text-{task.stem}-Q4_K_M.gguf" for task in Task]),
    ],
)
@pytest.mark.usefixtures("jina")
def test_pull_and_resolve(text: str, names: list[str]) -> None:
    paths = pull(text)
    assert [path.name for path in paths] == names
    assert all(path.read_bytes() == path.name.encode() for path in paths)
    if len(paths) == 1:
        assert local.resolve(text) == paths[0]


@pytest.mark.usefixtures("jina")
def test_what_is_pulled_is_listed() -> None:
    pull("jina-v4-code:Q4_K_M")
    pull(REPOSITORY)
    found = [model for model in local.available() if model.family == "jina-v4"]
    assert [(model.task, model.quant) for model in found] == [(Task.CODE, "Q4_K_M")]
    assert found[0].path == local.resolve("jina-v4-code:Q4_K_M")
    assert [str(one.reference) for one in hub_models.models() if not one.name] == [f"{REPOSITORY}:Q8_0"]
    with pytest.raises(
        ModelNotFoundError, match=r"available: jina-v4-code:Q4_K_M; download it with `nestling pull jina-v4-code:Q8_0`"
    ):
        local.resolve("jina-v4-code")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "jina-v4-code:F16",
            "make it with `nestling build .*` or download it with `nestling pull jina-v4-code:F16`",
        ),
        (
            "org/repo:F16",
            "org/repo:F16: no such file, and not in the hub's cache; download it with `nestling pull org/repo:F16`",
        ),
        ("hf.co/org/repo", "download it with `nestling pull org/repo`"),
        ("./org/repo", "no such file; `nestling list`"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_was_not_pulled_says_how(reference: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        local.resolve(reference)


@pytest.mark.parametrize("text", ["starter", "jina-v4-cooking", "nobody-code", "x.gguf", "./org/repo", ""])
def test_what_cannot_be_pulled_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        hub_models.references(text)


def test_a_card_comes_with_its_model(cache: Path) -> None:
    assert (cache, pull(f"{REPOSITORY}:Q8_0")[0].with_suffix(".json").read_bytes()) == (cache, b"{}")


def test_a_checkpoint_comes_whole_and_without_code(cache: Path, hub_server: HubServer, small_checkpoint: Path) -> None:
    from nestling.pipeline.conversion.checkpoint import Checkpoint

    paths = [path for path in small_checkpoint.rglob("*") if path.is_file()]
    files = {str(path.relative_to(small_checkpoint)): path.read_bytes() for path in paths}
    hub_server.repositories["org/full"] = files | {"modeling.py": b"raise SystemExit", "onnx/x.json": b"{}"}
    (snapshot,) = pull("org/full")
    assert set(hub.names_in(snapshot)) == set(files)
    assert Checkpoint.open(snapshot).source == f"org/full@{COMMIT}"
    assert Checkpoint.open(cache / "models--org--full").config == Checkpoint.open(small_checkpoint).config


# Removing.


def test_removing_frees_the_bytes_and_leaves_the_rest(cache: Path) -> None:
    snapshot = fetch(MODEL, CARD)
    assert hub.remove(snapshot, [MODEL]) == 5120
    assert hub.names_in(snapshot) == [CARD]
    assert blobs(cache) == {oid_of(FILES[CARD])}
    hub.remove(snapshot, [CARD])
    assert hub.cached_repositories() == []


def test_bytes_that_another_name_has_stay(cache: Path, hub_server: HubServer) -> None:
    hub_server.repositories[REPOSITORY]["copy-Q4_0.gguf"] = FILES[MODEL]
    snapshot = fetch(MODEL, "copy-Q4_0.gguf")
    assert hub.remove(snapshot, [MODEL]) == 0
    assert (snapshot / "copy-Q4_0.gguf").read_bytes() == FILES[MODEL]
    assert blobs(cache) == {oid_of(FILES[MODEL])}


# Bytes that repositories share, as huggingface_hub's Xet downloads leave them.


@pytest.fixture
def shared(cache: Path) -> Path:
    """Two repositories with the same file, its bytes in the cache's common folder."""
    store_file = cache / "blobs" / "ab" / ("ab" + "1" * 62)
    store_file.parent.mkdir(parents=True)
    store_file.write_bytes(FILES[MODEL])
    store_file.with_name(f"{store_file.name}.refs").write_text("")
    for name in ("one", "two"):
        snapshot = cache / f"models--org--{name}" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        blob = snapshot.parents[1] / "blobs" / oid_of(FILES[MODEL])
        blob.parent.mkdir()
        blob.symlink_to(f"../../blobs/ab/{store_file.name}")
        (snapshot / MODEL).symlink_to(f"../../blobs/{blob.name}")
    return store_file


def test_shared_bytes_are_found_and_go_with_the_last_of_their_users(shared: Path) -> None:
    path = local.resolve("org/one:Q8_0")
    assert path.read_bytes() == FILES[MODEL]
    assert hub.known_hash(path) == oid_of(FILES[MODEL])
    assert removal.remove("org/one:Q8_0") == ([str(path)], 0)
    assert local.resolve("org/two:Q8_0").read_bytes() == FILES[MODEL]
    assert removal.remove("org/two")[1] == len(FILES[MODEL])
    assert not shared.exists()
    assert hub.cached_repositories() == []


# Without the network.


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_offline_what_is_here_is_the_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache
    (path,) = pull(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(REPOSITORY) == [path]


@pytest.mark.usefixtures("cache", "offline")
def test_offline_and_not_here_is_one_line_that_says_how(hub_server: HubServer) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        pull(f"{REPOSITORY}:F16")
    for part in ("HF_HUB_OFFLINE", "not on this machine", f"`nestling pull {REPOSITORY}:F16`", "copy"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub_server.requests == []


def test_no_disk_space_is_said_before_anything_is_fetched(
    cache: Path, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1 << 20))
    with pytest.raises(BuildError, match=r"64 MiB are needed, 1 MiB are free; free disk space, or set HF_HOME"):
        fetch(MODEL)
    assert hub_server.downloads(MODEL) == []
    assert not list(cache.rglob("blobs/*"))


def test_a_file_that_the_hub_changes_its_mind_about_is_refused(cache: Path, hub_server: HubServer) -> None:
    hub_server.faults[MODEL] = Fault(content=bytes(5120))
    with pytest.raises(FileFormatError, match=r"m-Q8_0\.gguf: the downloaded file has the hash .*, expected "):
        fetch(MODEL)
    assert blobs(cache) == set()


def test_a_folder_says_the_file_type_where_the_name_does_not() -> None:
    names = ["Q8_0/m.gguf", "m/Q4_K_M/m.gguf"]
    assert hub_models.choose(names, HubReference("o/x")) == "Q8_0/m.gguf"
    assert hub_models.choose(names, HubReference("o/x", "Q4_K_M")) == "m/Q4_K_M/m.gguf"
