"""kill -9 at 50 random moments of every stage that writes: pull, convert, imatrix, quantize, build.

    python -m benchmarks.kills [STAGE[:TIMES] ...]

Each time: the command is killed, every file under a final name is compared with the undisturbed run's, the command is
run again to its end, and all bytes are compared (`tests/killing.py`). The files are the starter's. Stages that are not
named keep their result; with TIMES, that many kills are added to it.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests import hub_server
from tests.killing import Job, Outcome, kill_often

from benchmarks import measuring
from nestling.models import local
from nestling.pipeline.quantization.kept_imatrix import matrix_path
from nestling.spec import Task

TIMES = 50
REPOSITORY = "org/starter"
Run = Callable[[Path, int, int], Outcome]
"""Told a folder to work in, how often to kill, and a seed."""


def main() -> None:
    """Run the stages and write `benchmarks/results/kills.json`."""
    path = measuring.RESULTS / "kills.json"
    stages: dict[str, Any] = json.loads(path.read_text("utf-8"))["stages"] if path.exists() else {}
    for argument in sys.argv[1:] or STAGES:
        name, part, times = argument.partition(":")
        before = stages.get(name) if part else None
        with tempfile.TemporaryDirectory() as folder:
            done = asdict(STAGES[name](Path(folder), int(times or TIMES), before["kills"] if before else 0))
        stages[name] = _together(before, done) if before else done
        print(name, stages[name], flush=True)
        measuring.write("kills", {"stages": {name: stages[name] for name in STAGES if name in stages}})


def _together(before: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    """The counts of two parts of a stage; both ended with the same files."""
    assert before["files"] == done["files"], "the parts are of different versions"
    sums = {name: before[name] + done[name] for name in ("kills", "late", "with_half_files", "with_final_names")}
    return {**done, **sums, "states": max(before["states"], done["states"])}


def _command(*arguments: str | Path) -> Run:
    def run(folder: Path, times: int, seed: int) -> Outcome:
        return kill_often(Job([str(one) for one in arguments], str(folder / "out"), times, seed))

    return run


def _starter(quant: str) -> Path:
    return local.resolve(f"starter-code:{quant}")


def _quantize(folder: Path, times: int, seed: int) -> Outcome:
    _starter("Q4_K_M")  # with its matrix
    matrix = matrix_path(local.family_folder("starter"), Task.CODE)
    arguments = ("quantize", _starter("F16"), "Q3_K_M", "--imatrix", matrix, "--out", "{out}/x.gguf")
    return _command(*arguments)(folder, times, seed)


def _imatrix(folder: Path, times: int, seed: int) -> Outcome:
    return _command("imatrix", _starter("F16"), "--chunks", "2", "--out", "{out}/x.gguf")(folder, times, seed)


def _pull(folder: Path, times: int, seed: int) -> Outcome:
    """From a hub on loopback that takes its time; file and card."""
    path = _starter("Q8_0")
    files = {one.name: one.read_bytes() for one in (path, path.with_suffix(".json"))}
    with hub_server.running() as server:
        server.repositories[REPOSITORY] = files
        server.faults[path.name] = hub_server.Fault(pause_s=0.002)
        job = Job(["pull", f"{REPOSITORY}:Q8_0"], str(folder / "out"), times, seed)
        return kill_often(job, HF_ENDPOINT=server.endpoint, HF_HUB_CACHE=str(folder / "out"))


STAGES: Mapping[str, Run] = {
    "pull": _pull,
    "convert": _command("convert", local.STARTER, "--task", "code", "--out", "{out}/x.gguf"),
    "imatrix": _imatrix,
    "quantize": _quantize,
    "build": _command("build", "--task", "code", "--quant", "Q8_0,Q4_K_M", "--chunks", "2", "--out", "{out}", "--json"),
}


if __name__ == "__main__":
    main()
