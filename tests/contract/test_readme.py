"""The README's commands and Python, run as a reader would: in an empty folder, with an empty cache."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import tables
from tests.hub_server import HubServer

from nestling.models import local

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
COMMANDS = [line.split("  #")[0].strip() for line in re.findall(r"^    (nestling .*)$", README, re.MULTILINE)]
CHECKPOINT = "path/to/jina-embeddings-v4"
"""Here, the starter's checkpoint, which has the layout of the real one."""
PULLED = "jinaai/jina-embeddings-v4-text-retrieval-GGUF"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader")
    (path / "texts.txt").write_text("How do I open a socket?\nÖffnen einer Datei\n", "utf-8")
    (path / "docs.jsonl").write_text('{"id": "a", "text": "socket(2) creates an endpoint."}\n', "utf-8")
    place = path / CHECKPOINT
    place.parent.mkdir(parents=True)
    place.symlink_to(local.starter_checkpoint())
    return path


@pytest.fixture(scope="module")
def hub(hub_server: HubServer, starter_q8: Path) -> HubServer:
    """A hub with what the README pulls; the bytes are the starter's."""
    hub_server.repositories[PULLED] = {"jina-embeddings-v4-text-retrieval-Q4_K_M.gguf": starter_q8.read_bytes()}
    return hub_server


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 20, COMMANDS


@pytest.mark.parametrize("command", [one for one in COMMANDS if not one.startswith("nestling serve")])
def test_command(folder: Path, hub: HubServer, command: str) -> None:
    code = [sys.executable, "-c", "from nestling.cli import main; main()", *shlex.split(command)[1:]]
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
    done = subprocess.run(code, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout or done.stderr or (folder / "vectors.npy").exists()


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("nestling serve")])
def test_server(folder: Path, command: str) -> None:
    """After `nestling build` of the same page."""
    code = [sys.executable, "-c", "from nestling.cli import main; main()", *shlex.split(command)[1:], "--port", "0"]
    with subprocess.Popen(code, cwd=folder, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        try:
            assert "http://" in child.stdout.readline()
        finally:
            child.terminate()
        assert child.wait(30) == 0


def test_python(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr


def test_the_table_is_that_of_the_result_files() -> None:
    for name, made in tables.PAGES.items():
        text = (tables.ROOT / name).read_text("utf-8")
        assert tables.page(name) == text
        assert all(table() in text for table in made.values())
