"""Standard streams that are closed, full or gone: one line on standard error and exit code 1, never a traceback.

Doors: standard input (`embed`, `rerank`), standard output (every command; a table, vectors, JSON, help, the version),
standard error (whatever goes wrong), each closed by a shell's `>&-`; a full disk behind standard output. The numbers of
closed streams are taken, so that no file of ours is where a library prints.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = "\"$PYTHON\" -c 'from nestling.cli import main; main()'"


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell's line, in which `nestling` is the command."""
    env = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "-c", line.replace("nestling", COMMAND)], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copy(tiny_models["F32"], tmp_path / "m.gguf")
    return tmp_path


EMBED = "nestling embed -m m.gguf -e reference"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{EMBED} <&-", "standard input: it is closed"),
        (f"{EMBED} --file - <&-", "standard input: it is closed"),
        ("nestling rerank a -m m.gguf -e reference --scoring cosine <&-", "standard input: it is closed"),
        (f"{EMBED} hi >&-", "standard output: it is closed"),
        (f"{EMBED} hi --format npy >&-", "standard output: it is closed"),
        ("nestling similarity a b -m m.gguf -e reference >&-", "standard output: it is closed"),
        ("nestling list --json >&-", "standard output: it is closed"),
        ("nestling list >&-", "standard output: it is closed"),
        ("nestling --help >&-", "standard output: it is closed"),
        ("nestling --version >&-", "standard output: it is closed"),
        (f"{EMBED} hi <&- >&-", "standard output: it is closed"),
        (f"{EMBED} hi >/dev/full", "standard output: No space left on device"),
        ("nestling similarity a b -m m.gguf -e reference >/dev/full", "standard output: No space left on device"),
        ("nestling list >/dev/full", "standard output: No space left on device"),
        ("nestling --version >/dev/full", "standard output: No space left on device"),
    ],
)
def test_a_stream_that_is_not_there_is_one_line(line: str, said: str, folder: Path) -> None:
    done = shell(line, folder)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"nestling: {said}\n")


@pytest.mark.parametrize(("text", "code"), [("hi", 0), ('""', 1)])
def test_a_closed_standard_error_changes_nothing_else(text: str, code: int, folder: Path) -> None:
    done = shell(f"{EMBED} {text} 2>&-", folder)
    assert (done.returncode, bool(done.stdout)) == (code, code == 0)


def test_what_needs_no_standard_stream_works_without_any(folder: Path) -> None:
    expected = shell(f"{EMBED} hi", folder).stdout
    done = shell(f"{EMBED} hi --out v.txt <&- >&- 2>&-", folder)
    assert (done.returncode, (folder / "v.txt").read_text()) == (0, expected)


def test_no_file_gets_a_closed_streams_number(folder: Path) -> None:
    """Else what is printed would go into the output that is just being written."""
    line = f"{EMBED} hi --out /dev/fd/1 >&-"
    done = shell(line, folder)
    assert done.returncode in (0, 1)
    script = "import os\nfrom nestling.cli import streams\nstreams.prepare()\nassert os.open('x', os.O_CREAT) > 2"
    subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, script], cwd=folder, check=True, timeout=100
    )


def test_a_place_is_a_line(folder: Path) -> None:
    (folder / "texts").write_bytes(b"a\n \nb\n")
    done = shell(f"{EMBED} --file texts", folder)
    assert (done.returncode, done.stderr) == (1, "nestling: texts: line 2: the text is empty\n")
    done = shell(f"{EMBED} <texts", folder)
    assert (done.returncode, done.stderr) == (1, "nestling: standard input: line 2: the text is empty\n")
    done = shell("nestling rerank q -m m.gguf -e reference --scoring cosine --file texts", folder)
    assert (done.returncode, done.stderr) == (1, "nestling: texts: line 2: the text is empty\n")
    done = shell(f"{EMBED} $'h\\xe9llo'", folder)
    assert done.stderr == "nestling: input 0: the lone surrogate U+DCE9 at character 1 cannot be encoded as UTF-8\n"


@pytest.mark.parametrize("verb", ["verify", "inspect", "show"])
def test_a_path_that_is_not_utf_8_is_shown_as_it_is(verb: str, folder: Path) -> None:
    """Its bytes on standard output, as `ls` has them; escaped where the path is wrong."""
    env = os.environ | {"PYTHON": sys.executable}
    script = f"mkdir $'caf\\xe9'; cp m.gguf $'caf\\xe9'/; {COMMAND} {verb} $'caf\\xe9/m.gguf'"
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=env, capture_output=True, check=False, timeout=100)
    assert b"Traceback" not in done.stderr, done.stderr
    if verb == "verify":  # llama.cpp, one of the engines that it compares, takes UTF-8 alone
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1) or b"UTF-8 alone" in done.stdout
    else:
        assert (done.returncode, b"caf\xe9/m.gguf" in done.stdout) == (0, True)
    absent = subprocess.run(
        ["bash", "-c", f"{COMMAND} {verb} $'caf\\xe9/x.gguf'"], cwd=folder, env=env, capture_output=True, check=False
    )
    assert (absent.returncode, absent.stderr.count(b"\n")) == (1, 1)
