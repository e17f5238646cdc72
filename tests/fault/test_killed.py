"""Killed, interrupted or out of space while writing: no half file has a final name, and the rerun works."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.killing import Job, kill_often

from nestling._util.files import atomic_write
from nestling.errors import BuildError
from nestling.formats.gguf import GGUFFile
from nestling.models.fidelity import RECORD
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline
from nestling.spec import Task

ARGUMENTS = ["--task", "code", "--quant", "Q8_0", "--family", "small", "--threads", "1"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which names the process that holds it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def python(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# One file.

HALF = """
import sys
from pathlib import Path
from nestling._util.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    sys.stdin.readline()
    file.write(b" and half")
"""


@pytest.mark.parametrize("older", [None, b"older"])
def test_killed_in_the_middle_of_a_file(tmp_path: Path, older: bytes | None) -> None:
    target = tmp_path / "x.bin"
    if older is not None:
        target.write_bytes(older)
    with python(HALF, target) as process:
        assert first_line(process) == "written"
        process.kill()
    assert contents(tmp_path) == {"x.bin.part": b"half"} | ({} if older is None else {"x.bin": older})
    with atomic_write(target) as file:  # the lock died with its holder
        file.write(b"whole")
    assert contents(tmp_path) == {"x.bin": b"whole"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_final_name(tmp_path: Path, number: signal.Signals) -> None:
    with python(HALF, tmp_path / "x.bin") as process:
        assert first_line(process) == "written"
        process.send_signal(number)
    assert process.returncode != 0
    assert "x.bin" not in contents(tmp_path)
    if number is signal.SIGINT:
        assert contents(tmp_path) == {}


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    with python(HALF, target) as first:
        assert first_line(first) == "written"
        with pytest.raises(BuildError, match=r"x\.bin\.part: another run is writing"), atomic_write(target):
            pass
        first.communicate("go on\n")
    assert (first.returncode, contents(tmp_path)) == (0, {"x.bin": b"half and half"})


FULL = """
import json, resource, sys
from pathlib import Path
from nestling.errors import NestlingError
from nestling._util.files import atomic_write
from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # a write past it fails, as on a full disk
folder, raised = Path(sys.argv[1]), []
try:
    with atomic_write(folder / "x.bin") as file:
        file.write(bytes(50_000))
except OSError as error:
    raised.append(str(error))
sizes = {"in the header": 0, "in a tensor": 5_000, "when closing": 2_000}
for name, count in sizes.items():
    fields = {"k": Field.string("v" * (0 if count else 20_000))}
    plans = [TensorPlan(f"t{i}", (count,), QuantType.F32, lambda: [bytes(4 * count)]) for i in range(2 if count else 0)]
    try:
        write_gguf(folder / "x.gguf", fields, plans)
    except NestlingError as error:
        raised.append(f"{type(error).__name__}: {error}")
print(json.dumps(raised))
"""


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with python(FULL, tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    raised = json.loads(out)
    assert raised[0] == f"[Errno 27] File too large: '{tmp_path / 'x.bin.part'}'"
    assert raised[1:] == [f"BuildError: {tmp_path / 'x.gguf'}: cannot be written: File too large"] * 3
    assert contents(tmp_path) == {}


# A build.


@pytest.fixture(scope="module")
def undisturbed(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a build leaves that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Pipeline(Checkpoint.open(small_checkpoint), folder, "small", 1).build([Task.CODE], ["Q8_0"])
    return contents(folder)


# Every sync and every rename of a build is a moment to die at: forks a child for each, which kills itself there.
DYING = """
import os, signal, sys
from pathlib import Path
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline
from nestling.spec import Task
checkpoint, out = Checkpoint.open(Path(sys.argv[1])), Path(sys.argv[2])
fsync, replace = os.fsync, Path.replace
left = 0

def count():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def dying_fsync(descriptor):
    count()
    fsync(descriptor)

def dying_replace(self, target):
    count()
    replace(self, target)
    count()

def build(folder):
    Pipeline(checkpoint, folder, "small", 1).build([Task.CODE], ["Q8_0"])

moment, status = 0, -1
while status != 0:
    moment += 1
    child = os.fork()
    if child == 0:
        left, os.fsync, Path.replace = moment, dying_fsync, dying_replace
        build(out / str(moment))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
print(moment - 1)
"""


def test_killed_at_every_sync_and_rename_the_rerun_gives_the_undisturbed_bytes(
    small_checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with python(DYING, small_checkpoint, tmp_path) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    moments = int(out)
    assert moments == 7 * 4, "two models, a head, three cards, the sums: sync, before and after the rename, the folder"
    seen = set()
    for moment in range(1, moments + 1):
        folder = tmp_path / str(moment)
        left = contents(folder)
        seen.add(tuple(sorted(left)))
        wrong = [name for name, raw in left.items() if not name.endswith(".part") and undisturbed[name] != raw]
        assert not wrong, f"at moment {moment}"
        Pipeline(Checkpoint.open(small_checkpoint), folder, "small", 1).build([Task.CODE], ["Q8_0"])
        assert contents(folder) == undisturbed
    assert len(seen) > 8, "the moments are different ones"


def command(*arguments: str | Path) -> Sequence[str]:
    return [sys.executable, "-c", "from nestling.cli import main; main()", *map(str, arguments)]


def test_the_command_killed_while_it_builds(small_checkpoint: Path, tmp_path: Path) -> None:
    """A kill as soon as the first file is begun; then the command again, and a second one beside it."""
    folder, whole = tmp_path / "killed", tmp_path / "undisturbed"
    subprocess.run(
        command("build", small_checkpoint, *ARGUMENTS, "--out", whole), check=True, stdout=subprocess.DEVNULL
    )
    (whole / RECORD).unlink()
    undisturbed = contents(whole)
    folder.mkdir()
    build = command("build", small_checkpoint, *ARGUMENTS, "--out", folder)
    with subprocess.Popen(build, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(folder.iterdir()) and process.poll() is None:
            os.sched_yield()
        process.kill()
    for path in folder.glob("*.gguf"):
        assert path.read_bytes() == undisturbed[path.name]
    both = [subprocess.Popen(build, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[1].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    expected = b"nestling: engine openvino (auto: the fastest engine on this processor", b" waits for process "
    assert not [line for lines in said for line in lines if not any(one in line for one in expected)]
    assert (folder / RECORD).exists()
    (folder / RECORD).unlink()  # what the table shows beside the files
    assert contents(folder) == undisturbed


def test_the_command_interrupted_says_so_and_leaves_no_half_file(tmp_path: Path) -> None:
    """Ctrl-C in the middle of building the starter."""
    build = command("build", "--task", "code", "--quant", "F32,Q8_0", "--out", tmp_path, "--threads", "1")
    with subprocess.Popen(build, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not any(part.stat().st_size for part in tmp_path.glob("*.part")) and process.poll() is None:
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert (out, err) == ("", "nestling: interrupted; run the command again to resume\n")
    assert not list(tmp_path.glob("*.part"))
    for path in tmp_path.glob("*.gguf"):
        GGUFFile.open(path)


# Every stage, at random moments; benchmarks/kills.py does the same fifty times each.


def stage(name: str, checkpoint: Path, models: dict[str, Path]) -> list[str]:
    """A command that writes into {out}."""
    found: dict[str, list[str | Path]] = {
        "convert": ["convert", checkpoint, "--task", "code", "--family", "s", "--out", "{out}/x.gguf"],
        "imatrix": ["imatrix", models["F32"], "--calibration", "{text}", "--threads", "1", "--out", "{out}/x.gguf"],
        "quantize": ["quantize", models["F32"], "Q4_K_M", "--threads", "1", "--out", "{out}/x.gguf"],
        "build": ["build", checkpoint, "--task", "code", "--quant", "Q8_0,Q4_K_M", "--threads", "1", "--family", "s",
                  "--calibration", "{text}", "--out", "{out}", "--json"],
    }  # fmt: skip
    return [str(one) for one in found[name]]


@pytest.mark.parametrize("name", ["convert", "imatrix", "quantize", "build"])
def test_killed_at_random_moments(
    name: str, small_checkpoint: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A folder is locked; a killed holder loses its lock. " * 60)
    arguments = [one.replace("{text}", str(text)) for one in stage(name, small_checkpoint, tiny_models)]
    done = kill_often(Job(arguments, str(tmp_path / "out"), times=6))
    assert done.kills == 6
    assert done.files
