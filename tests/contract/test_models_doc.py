"""docs/models.md as a reader runs it: every command word for word, one after the other, with the hub on loopback.

The hub has a published file of every task (the starter's, under the published names) and a checkpoint (a tiny one).
What describes another model (`--spec`) is in `tests/unit/test_second_family.py`.
"""

import json
import os
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.contract.conftest import NESTLING
from tests.hub_server import HubServer, running

from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.spec import Task

DOC = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
COMMANDS = [line for line in re.findall(r"^    nestling (.+?)(?: +#.*)?$", DOC, re.MULTILINE) if "--spec" not in line]
HEAD = b"---\nlicense: cc-by-nc-4.0\n---\n# A checkpoint\n"
TEXT = "A beautiful sunset over the beach"


@pytest.fixture(scope="module")
def hub(small_checkpoint: Path, starter_q8: Path) -> Iterator[HubServer]:
    """The publisher's repositories, filled with what is small."""
    with running() as server:
        for task in Task:
            files = {
                f"jina-embeddings-v4-text-{task.stem}-{quant}.gguf": local.resolve(
                    f"starter-{task}:{quant}"
                ).read_bytes()
                for quant in ("Q4_K_M", "Q8_0")
            }
            server.repositories[f"jinaai/jina-embeddings-v4-text-{task.stem}-GGUF"] = files
        paths = [path for path in small_checkpoint.rglob("*") if path.is_file()]
        checkpoint = {str(path.relative_to(small_checkpoint)): path.read_bytes() for path in paths}
        server.repositories["jinaai/jina-embeddings-v4"] = {**checkpoint, "README.md": HEAD, "modeling.py": b"exit()"}
        yield server


@pytest.fixture(scope="module")
def environment(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A reader's: a home of its own, and the hub's address."""
    home = tmp_path_factory.mktemp("reader")
    folders = {"HF_HOME": str(home / "hf"), "NESTLING_CACHE": str(home / "cache"), "HOME": str(home)}
    return {"PATH": os.environ["PATH"], "HF_ENDPOINT": hub.endpoint, **folders}


def test_the_commands_are_these() -> None:
    verbs = [command.split()[0] for command in COMMANDS]
    assert verbs == [
        "pull",
        "pull",
        "pull",
        "embed",
        "serve",
        "list",
        "show",
        "verify",
        "rm",
        "cache",
        "build",
        "publish",
    ]


def test_every_command_in_turn(environment: dict[str, str], hub: HubServer) -> None:
    """What `rm` takes is pulled again by nobody: it comes after what needs it."""
    built = Path(environment["NESTLING_CACHE"]) / "models" / "jina-v4"
    expected = Embedder.load("starter-retrieval:Q4_K_M").encode_query([TEXT])
    for command in COMMANDS:
        words = [str(NESTLING), *shlex.split(command.replace("path/to/folder", str(built)))]
        if words[1] == "serve":
            assert np.dot(served(words, environment), expected[0]) > 0.99999
            continue
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200, check=False)
        took = r"nestling: engine openvino \(auto: the fastest engine on this processor; in [^\n]*\)\n"
        assert (done.returncode, re.sub(took, "", done.stderr)) == (0, ""), (command, done.stdout, done.stderr)
        if words[1] == "embed":
            assert len(done.stdout) > 100
        if words[1] == "publish":
            assert all(
                part in done.stdout for part in ("license: cc-by-nc-4.0", "base_model: jinaai/", "Nothing was uploaded")
            )
    assert hub.commits == []
    assert not any("modeling.py" in one.path for one in hub.requests)


def served(words: list[str], environment: dict[str, str]) -> list[float]:
    """Start the command on a free port, embed with it as the README's curl does, stop it: -> the vector."""
    with subprocess.Popen([*words, "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            address = next(found for line in child.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))[0]
            body = json.dumps({"model": "jina-v4/retrieval", "input": [TEXT]}).encode()
            request = urllib.request.Request(f"{address}/v1/embeddings", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                vector: list[float] = json.load(answer)["data"][0]["embedding"]
        finally:
            child.terminate()
    return vector
