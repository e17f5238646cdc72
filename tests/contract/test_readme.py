"""The README's commands and Python, run as a reader would: in an empty folder, with an empty cache."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import tables

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
NEEDS = ("path/to", "nestling serve", "nestling pull")
"""What a command names that a test machine does not have; `nestling serve` has tests of its own."""
COMMANDS = [
    line.split("  #")[0].strip()
    for line in re.findall(r"^    (nestling .*)$", README, re.MULTILINE)
    if not any(word in line for word in NEEDS)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader")
    (path / "texts.txt").write_text("How do I open a socket?\nÖffnen einer Datei\n", "utf-8")
    return path


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8, COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_command(folder: Path, command: str) -> None:
    code = [sys.executable, "-c", "from nestling.cli import main; main()", *shlex.split(command)[1:]]
    done = subprocess.run(code, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout or (folder / "vectors.npy").exists()


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
