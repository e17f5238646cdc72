"""Outputs: what lies at the path decides how it is written, by whatever command.

Doors of a file: `embed --out`, `convert --out`, `quantize --out`, `quantize --recipe-out`, `imatrix --out`. Doors of a
folder, whose files are written in the same way: `build`, `multivector`, `bulk`, `eval quality`, `eval speed`, `report`
(each `--out`). `test_nothing_else_writes_files` keeps the list whole: everything goes through `atomic_write`, but for
what lies in a folder of our own (the hub's cache, a job's log, temporary buckets). `publish` and `search` write none.
"""

import os
import pty
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.command_line import Done, nestling

import nestling as package
from nestling._util.files import atomic_write, check_output
from nestling.errors import BuildError, UsageError
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.search import search

Door = Callable[[Path], Done]
DOORS = ["embed", "convert", "quantize", "recipe-out", "imatrix", "vision"]


@pytest.fixture(scope="module")
def inputs(
    tiny_models: dict[str, Path], small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A model, a checkpoint, a calibration text and their matrix."""
    folder = tmp_path_factory.mktemp("inputs")
    words, matrix = folder / "words.txt", folder / "m.gguf"
    words.write_text(
        "\n\n".join(f"Paragraph {number}: the folder is locked while it is built." for number in range(60))
    )
    model = Path(shutil.copy(tiny_models["F16"], folder / "model.gguf"))
    done = nestling("imatrix", model, "--calibration", words, "--threads", "1", "--out", matrix)
    assert done.code == 0, done.err
    return {"model": model, "checkpoint": small_checkpoint, "words": words, "matrix": matrix}


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Door:
    """One command that writes a file, as a function of the path."""
    monkeypatch.setattr(search, "CANDIDATES", (QuantType.Q8_0, QuantType.Q6_K, QuantType.Q4_K, QuantType.Q2_K))
    monkeypatch.setattr(search, "PROBE", QuantType.Q4_K)
    monkeypatch.setattr(search, "TEXTS", 4)
    model, words = inputs["model"], inputs["words"]
    mix: list[str | Path] = [
        "--target-bpw",
        "5",
        "--imatrix",
        inputs["matrix"],
        "--calibration",
        words,
        "--trials",
        "1",
        "--dry-run",
    ]
    commands: dict[str, list[str | Path]] = {
        "embed": ["embed", "a", "b", "--model", model, "--engine", "reference", "--out"],
        "convert": ["convert", inputs["checkpoint"], "--task", "code", "--family", "s", "--out"],
        "quantize": ["quantize", model, "Q8_0", "--threads", "1", "--out"],
        "vision": ["vision", "starter", "--out"],
        "recipe-out": ["quantize", model, *mix, "--threads", "1", "--recipe-out"],
        "imatrix": ["imatrix", model, "--calibration", words, "--threads", "1", "--out"],
    }
    return lambda path: nestling(*commands[request.param], path)


def done_well(done: Done) -> None:
    assert (done.code, done.err.count("Traceback")) == (0, 0), done.err


@pytest.fixture
def plain(door: Door, tmp_path: Path) -> bytes:
    """What the command writes to a plain file."""
    done_well(door(tmp_path / "plain"))
    return (tmp_path / "plain").read_bytes()


@contextmanager
def reading_all(descriptor: int) -> Iterator[list[bytes]]:
    """Take everything out of a pipe meanwhile."""
    found: list[bytes] = []

    def read() -> None:
        while piece := os.read(descriptor, 1 << 16):
            found.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    yield found
    thread.join(60)
    assert not thread.is_alive()


def test_a_link_stays_and_its_file_is_new(door: Door, plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "v").write_bytes(b"old")
    (tmp_path / "v").symlink_to("big/v")
    (tmp_path / "link-to-a-link").symlink_to(tmp_path / "v")
    done_well(door(tmp_path / "link-to-a-link"))
    assert (tmp_path / "v").is_symlink()
    assert (tmp_path / "link-to-a-link").is_symlink()
    assert (tmp_path / "big" / "v").read_bytes() == plain
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["v"]


def test_a_link_to_nothing_makes_its_file(door: Door, plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "v").symlink_to(tmp_path / "target")
    done_well(door(tmp_path / "v"))
    assert (tmp_path / "v").is_symlink()
    assert (tmp_path / "target").read_bytes() == plain


def test_a_pipe_is_written(door: Door, plain: bytes, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    writer = os.open(tmp_path / "pipe", os.O_WRONLY)  # keeps the reader from an early end
    with reading_all(reader) as found:
        done = door(tmp_path / "pipe")
        os.close(writer)
    os.close(reader)
    done_well(done)
    assert b"".join(found) == plain
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_an_open_file_is_written_where_it_stands(door: Door, plain: bytes, tmp_path: Path) -> None:
    """As `--out /dev/stdout >> log` has it: nothing is truncated, and the same file stays."""
    (tmp_path / "log").write_bytes(b"before\n")
    number = (tmp_path / "log").stat().st_ino
    with (tmp_path / "log").open("ab") as file:
        done = door(Path(f"/dev/fd/{file.fileno()}"))
    done_well(done)
    assert (tmp_path / "log").read_bytes() == b"before\n" + plain
    assert (tmp_path / "log").stat().st_ino == number
    assert str(tmp_path / "log") not in done.out  # standard output might be that very file


def test_a_mode_is_kept(door: Door, plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"old")
    (tmp_path / "v").chmod(0o604)
    done_well(door(tmp_path / "v"))
    assert (tmp_path / "v").read_bytes() == plain
    assert stat.S_IMODE((tmp_path / "v").stat().st_mode) == 0o604


def refused(done: Done, *parts: str) -> None:
    assert (done.code, done.raw) == (2, b""), done
    assert done.err.count("\n") == 1, done.err
    for part in parts:
        assert part in done.err


def test_a_folder_is_said_to_be_one(door: Door, tmp_path: Path) -> None:
    refused(door(tmp_path), f"{tmp_path}: this is a folder; name a file")
    assert list(tmp_path.iterdir()) == []


def test_a_socket_is_refused(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has no room for a long folder
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        refused(door(Path("s")), "s: this is a socket; name a file")
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["quantize", "model", "Q8_0", "--out", "model"], "out"),
        (["quantize", "model", "Q2_K", "--imatrix", "matrix", "--out", "matrix"], "out"),
        (["imatrix", "model", "--out", "model"], "out"),
        (["imatrix", "model", "--calibration", "words", "--out", "words"], "out"),
        (
            ["quantize", "model", "--target-bpw", "5", "--imatrix", "matrix", "--recipe-out", "matrix", "--dry-run"],
            "recipe_out",
        ),
    ],
)
def test_a_source_is_not_overwritten(arguments: list[str], name: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(inputs[arguments[-1]] if arguments[-1] in inputs else inputs["matrix"])
    before = link.read_bytes()
    places: dict[str, Path] = {**inputs}
    given = [places.get(word, word) for word in arguments]
    given[arguments.index(f"--{name.replace('_', '-')}") + 1] = link
    refused(nestling(*given), "this is the source")
    assert link.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "starter"],
        ["multivector", "starter"],
        ["bulk", "source.jsonl"],
        ["eval", "quality", "starter"],
        ["eval", "speed", "starter"],
        ["report", "results"],
    ],
    ids=lambda arguments: arguments[-2],
)
def test_a_file_is_no_folder(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    refused(nestling(*arguments, "--out", tmp_path / "file"), f"{tmp_path / 'file'}: this is a file; name a folder")
    assert (tmp_path / "file").read_bytes() == b"mine"


# What all of them stand on.


def write(path: Path, content: bytes = b"new") -> None:
    with atomic_write(path) as file:
        file.write(content)


def test_a_character_device_is_written() -> None:
    ours, theirs = pty.openpty()
    name = Path(os.ttyname(theirs))
    before = name.stat()
    write(name, b"new\n")
    assert os.read(ours, 100) == b"new\r\n"
    assert (stat.S_ISCHR(name.stat().st_mode), name.stat().st_ino) == (True, before.st_ino)
    for descriptor in (ours, theirs):
        os.close(descriptor)


def test_a_socket_that_is_open_is_written() -> None:
    """As standard output is under inetd, or a service's log."""
    here, there = socket.socketpair()
    with here, there:
        write(Path(f"/proc/self/fd/{here.fileno()}"))
        assert there.recv(100) == b"new"


def test_an_open_file_for_reading_and_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    with (tmp_path / "x").open("rb") as file, pytest.raises(UsageError, match="open for reading only"):
        write(Path(f"/dev/fd/{file.fileno()}"))
    with pytest.raises(UsageError, match="no file is open under this number"):
        write(Path("/dev/fd/987"))


def test_a_link_in_a_circle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as caught:
        write(tmp_path / "a")
    assert str(caught.value.filename) == str(tmp_path / "a")


def test_a_write_protected_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(UsageError, match=r"x: this file is write-protected"):
        write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_plain_file_at_the_parts_name_is_left_alone(tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    if kind == "link":
        (tmp_path / "x.part").symlink_to(other)
    else:
        os.mkfifo(tmp_path / "x.part")
    with pytest.raises(BuildError, match=r"x\.part: not a regular file; remove it"):
        write(tmp_path / "x")
    assert other.read_bytes() == b"mine"


def test_an_owner_is_kept_where_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, asked = tmp_path / "x", list[tuple[int, int]]()
    target.write_bytes(b"old")
    real = os.stat_result(target.stat())
    theirs = os.stat_result((*real[:4], 12345, 54321, *real[6:]))
    stat_of = Path.stat

    def other_owner(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        return theirs if path == target else stat_of(path, follow_symlinks=follow_symlinks)

    def refuses(_file: int, user: int, group: int) -> None:
        asked.append((user, group))
        raise PermissionError

    monkeypatch.setattr(Path, "stat", other_owner)
    monkeypatch.setattr(os, "fchown", refuses)
    write(target)
    assert (asked, target.read_bytes()) == ([(12345, 54321)], b"new")


def test_a_file_that_something_is_mounted_on_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's `-v file:/out/v`: the kernel says EBUSY to a rename over it."""
    (tmp_path / "x").write_bytes(b"a much longer old file")

    def busy(path: Path, target: Path) -> None:
        raise OSError(16, "Device or resource busy", str(path), None, str(target))

    monkeypatch.setattr(Path, "replace", busy)
    write(tmp_path / "x")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"new")]


def test_check_output_leaves_what_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    check_output(tmp_path / "x", sources=[None, tmp_path / "absent"])
    check_output(tmp_path / "new")
    assert (tmp_path / "x").read_bytes() == b"mine"


ALONE = {
    "_util/files.py": "the one place",
    "models/hub/client.py": "its own cache folder: parts that resume",
    "bulk/manifest.py": "a job's log and lock, inside its folder",
    "bulk/duplicates.py": "temporary buckets",
    "cli/streams.py": "the null device, in place of a stream that is closed",
}
_WRITES = re.compile(
    r"""open\((?:[^()]*,\s*)?["'](?:w|a|x|r\+|w\+)b?\+?["']|write_(?:text|bytes)\(|os\.(?:rename|replace)\("""
)


def test_nothing_else_writes_files() -> None:
    root = Path(package.__file__).parent
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if _WRITES.search(path.read_text("utf-8"))}
    assert found <= ALONE.keys()


def test_the_shell_sees_its_device(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """`--out /dev/stdout` down a pipe and into a file that is appended to."""
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    command = (
        f'"$PYTHON" -c "from nestling.cli import main; main()" embed a --engine reference --model {tiny_models["F32"]}'
    )
    script = f"{command} --out /dev/stdout | cat >piped; {command} --out /dev/stdout >>log; {command} --out /dev/null"
    shell = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PYTHON": sys.executable},
        capture_output=True, check=True, timeout=200,
    )  # fmt: skip
    piped = (tmp_path / "piped").read_bytes()
    assert piped
    assert log.read_bytes() == b"before\n" + piped
    assert (shell.stdout, shell.stderr) == (b"", b"")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert Path("/dev/stdout").is_symlink()
