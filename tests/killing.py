"""A command of nestling killed with SIGKILL at random moments: nothing invalid has a final name, the rerun completes.

    python -m tests.killing JOB        JOB: a `Job` as JSON; prints an `Outcome` as JSON, or fails with what was wrong

A process of its own, that imports everything once and forks a child for each run, so that a moment falls into the work
and not into Python's start. Half of the moments lie anywhere in a run, half after it has begun to write. The command
writes into `folder` and nowhere else; `{out}` in its arguments is that folder.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HALF = (".part", ".incomplete")
"""Endings of names that say of a file that it may be half."""
LOCKS = (".lock", ".locks")
MOST = 8
"""Tries for each kill that is to meet the command alive."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to run, where, how often to kill it."""

    arguments: Sequence[str]
    folder: str
    times: int
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: `kills` met the command alive, `late` ones came after its end and do not count.

    `states` are different sets of files that were left.
    """

    kills: int
    late: int
    states: int
    with_half_files: int
    with_final_names: int
    run_s: float
    files: Mapping[str, int]


def kill_often(job: Job, **environment: str) -> Outcome:
    """Do it in a process of its own; an AssertionError says at which moment what was wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", json.dumps(asdict(job))],
        capture_output=True, text=True, check=False, env={**os.environ, **environment}, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Outcome(**json.loads(done.stdout))


def _import_everything() -> None:
    """What the commands import while they run; none of it starts a thread."""
    import huggingface_hub

    import nestling.cli.commands
    import nestling.engine.openvino.engine
    import nestling.pipeline.quantization.calibration
    import nestling.pipeline.quantization.quantize

    huggingface_hub.get_session()
    assert nestling.cli.commands


def _run(job: Job) -> int:
    """Start the command in a child; -> its process id."""
    pid = os.fork()
    if pid == 0:
        sys.argv = ["nestling", *(one.replace("{out}", job.folder) for one in job.arguments)]
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - the descriptor is what is wanted
            os.dup2(nowhere.fileno(), 1)
        try:
            from nestling.cli import main

            main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(99)
    return pid


def _ended(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file by its name, locks apart; links are what they lead to."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not set(LOCKS) & set(path.parts)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _whole(folder: Path, job: Job) -> float:
    """Run the command to its end in an empty folder; -> seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    status = _ended(_run(job))
    assert status == 0, f"undisturbed, the command ended with {status}"
    return time.perf_counter() - began


def _begun(folder: Path) -> bool:
    return any(path.is_file() and not set(LOCKS) & set(path.parts) for path in folder.rglob("*"))


def _killed(job: Job, chance: random.Random, *, whole_s: float, writing_s: float | None) -> bool:
    """Run and kill at a random moment: anywhere, or within `writing_s` of the first file; -> whether it was alive."""
    pid = _run(job)
    if writing_s is None:
        time.sleep(chance.uniform(0, whole_s))
    else:
        while not _begun(Path(job.folder)) and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.sched_yield()
        time.sleep(chance.uniform(0, writing_s))
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(_ended(pid))


def _writing_s(job: Job) -> float:
    """Seconds from the first file to the end of a run."""
    shutil.rmtree(job.folder)
    Path(job.folder).mkdir()
    pid = _run(job)
    while not _begun(Path(job.folder)) and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        os.sched_yield()
    began = time.perf_counter()
    _ended(pid)
    return time.perf_counter() - began


def _all(job: Job) -> Outcome:
    folder, chance = Path(job.folder), random.Random(job.seed)
    _whole(folder, job)
    whole_s = _whole(folder, job)
    wanted = _contents(folder)
    writing_s = _writing_s(job)
    assert _contents(folder) == wanted, "undisturbed, two runs differ"
    states, kills, late, half, final = set(), 0, 0, 0, 0
    while kills < job.times:
        number = kills + late
        assert number < MOST * job.times, f"{late} of {number} kills came too late"
        shutil.rmtree(folder)
        folder.mkdir()
        if not _killed(job, chance, whole_s=whole_s, writing_s=writing_s if number % 2 else None):
            late += 1
            continue
        kills += 1
        left = _contents(folder)
        whole = {name: raw for name, raw in left.items() if not name.endswith(HALF)}
        wrong = [name for name, raw in whole.items() if wanted.get(name) != raw]
        assert not wrong, f"kill {number}: {wrong} are not what they are undisturbed"
        states.add(tuple(sorted(left)))
        half, final = half + (len(left) > len(whole)), final + bool(whole)
        began = time.perf_counter()
        status = _ended(_run(job))
        whole_s = max(time.perf_counter() - began, whole_s / 2)  # a busy machine is not equally busy all the time
        assert status == 0, f"kill {number}: the rerun ended with {status}; there was {sorted(left)}"
        assert _contents(folder) == wanted, f"kill {number}: the rerun gave other bytes; there was {sorted(left)}"
    sizes = {name: len(raw) for name, raw in sorted(wanted.items())}
    return Outcome(kills, late, len(states), half, final, whole_s, sizes)


if __name__ == "__main__":
    _import_everything()
    print(json.dumps(asdict(_all(Job(**json.loads(sys.argv[1]))))))  # noqa: T201 - for the process that asked
