"""Reading a model needs no right to write: an operator's container with the models baked in, no home, no privileges.

Doors: every verb that loads a model (`VERBS`, `serve`), with a starter that is built, in a cache that is
write-protected (`modes`, its owner stripped of the right to ignore them) or mounted read-only (`mount`, which takes
root). Nothing may be locked, rewritten or built again.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from nestling.models import local
from nestling.spec import Task

PR_CAPBSET_DROP, CAPABILITIES = 24, 41
VERBS = {
    "embed": ["embed", "hi"],
    "similarity": ["similarity", "a beach", "a shore"],
    "rerank": ["rerank", "a beach", "a shore", "a tax"],
    "verify": ["verify", "starter-retrieval"],
    "show": ["show", "starter-retrieval"],
    "inspect": ["inspect", "starter-retrieval"],
    "list": ["list"],
    "bulk": ["bulk", "rows.jsonl", "--out", "vectors"],
    "search": ["search", "vectors", "a beach"],
    "base": ["embed", "hi", "--model", "starter-base", "--task", "code"],
    "image": ["embed", "--image", "picture.png"],
    "multivector": ["rerank", "a beach", "a shore", "a tax", "--scoring", "maxsim"],
    "quantize": ["quantize", "starter-retrieval:F16", "Q4_K_M", "--out", "q.gguf"],
    "cache": ["cache"],
    "eval": ["eval", "quality", "starter-text-matching", "--benchmark", "pairs.tsv", "--out", "results"],
}
LOADS = ("embed", "similarity", "rerank", "base", "image", "multivector", "eval")
"""Those whose engine is `auto`, which says on standard error what it took."""
Start = Callable[..., "subprocess.Popen[str]"]


def _without_privileges() -> None:
    """In a child before its program begins: root may no longer ignore the modes of files."""
    if os.geteuid() == 0:
        for number in range(CAPABILITIES):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, number, 0, 0, 0)


@pytest.fixture(scope="module")
def built(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own with the starter in it."""
    for name in ("retrieval", "text-matching", "base"):
        local.resolve(f"{local.STARTER}-{name}")
    folder = tmp_path_factory.mktemp("read-only") / "cache"
    shutil.copytree(cache_folder / "models" / "starter", folder / "models" / "starter")
    return folder


@pytest.fixture(scope="module", params=["modes", "mount"])
def start(request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start `nestling ARGUMENTS` with the cache unwritable and no home."""
    if request.param == "mount" and os.geteuid() != 0:
        pytest.skip("mounting takes root")
    place = tmp_path_factory.mktemp("place")
    (place / "rows.jsonl").write_text('{"id": "a", "text": "a beach"}\n{"id": "b", "text": "a tax"}\n')
    pairs = [("a beach", "a shore", 5), ("a beach", "a tax", 0), ("a cat", "a kitten", 4)]
    rows = ["sentence1\tsentence2\tscore", *("\t".join(map(str, row)) for row in pairs)]
    (place / "pairs.tsv").write_text("\n".join(rows) + "\n")
    PIL.Image.new("RGB", (56, 56), "red").save(place / "picture.png")
    environ = {name: value for name, value in os.environ.items() if name not in ("HOME", "HF_HOME", "XDG_CACHE_HOME")}
    environ |= {"NESTLING_CACHE": str(built), "PYTHONDONTWRITEBYTECODE": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))

    def begin(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", "from nestling.cli import main; main()", *arguments]
        if request.param == "mount":
            script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
            command = ["unshare", "-m", "sh", "-c", script, str(built), *command]
        return subprocess.Popen(
            command,
            env=environ,
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_without_privileges if request.param == "modes" else None,
        )

    every = [built, *built.rglob("*")]
    modes = {path: path.stat().st_mode for path in every}
    if request.param == "modes":
        for path in every:
            path.chmod(0o555 if path.is_dir() else 0o444)
    yield begin
    for path in every:
        path.chmod(modes[path])


@pytest.fixture(autouse=True)
def _nothing_changes(built: Path) -> Iterator[None]:
    def state() -> dict[Path, Any]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in built.rglob("*")}

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads(start: Start, verb: str) -> None:
    if verb == "search":
        with start(*VERBS["bulk"]) as child:
            child.communicate(timeout=120)
    with start(*VERBS[verb]) as child:
        out, err = child.communicate(timeout=120)
    took = (
        "nestling: engine openvino (auto: the fastest engine on this processor"
        "; in int8-groups: groups of 32, the finest)\n"
    )
    assert (child.returncode, err) == (0, took if verb in LOADS else ""), out + err
    assert out


def test_a_server_serves(start: Start) -> None:
    with start("serve", "--port", "0") as child:
        try:
            assert child.stdout
            line = next(line for line in iter(child.stdout.readline, "") if "http://" in line)
            url = "http://" + line.partition("http://")[2].split()[0].strip('"/,}')
            body = json.dumps({"model": "starter", "input": ["hi"]}).encode()
            ask = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
            for _ in range(600):
                try:
                    with urllib.request.urlopen(ask, timeout=60) as answer:
                        assert json.load(answer)["data"][0]["embedding"]
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                raise AssertionError
        finally:
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=60)
    assert child.returncode == 0


def test_what_would_have_to_be_built_is_refused_in_one_line(start: Start) -> None:
    with start("embed", "hi", "--model", f"starter-{Task.CODE}:Q4_K_M") as child:
        out, err = child.communicate(timeout=120)
    assert (child.returncode, out, err.count("\n")) == (1, "", 1)
    assert "starter-text-code-Q4_K_M.gguf: not built yet, and " in err
    assert "cannot be written: " in err
