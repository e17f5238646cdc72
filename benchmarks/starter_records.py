"""Everything that was measured with the starter's weights, made anew after its checkpoint changed.

    python -m benchmarks.starter_records --reference PYTHON

PYTHON is an interpreter with the packages of `tests/golden/record_vectors.py`. Steps run beside each other, each on its
own core. A step that is done for this checkpoint is skipped, so that a rerun resumes; after a change of the vision
tower alone, only the steps that see run again. Files are built into a folder of the cache, where the steps' output
(`logs`) and the replaced results (`before`) are too. At the end: the seconds of each step, and the figures that
changed. Speeds, which do not depend on the weights, are kept. Not made anew: decisions, which tell what was measured
when they were made, and `quantization`'s search, whose mixes are kept and measured.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measuring import RESULTS
from benchmarks.starter_figures import changes
from nestling._util.files import atomic_write, cache_folder
from nestling.formats.quant_types import FILE_TYPES
from nestling.models.local import STARTER, starter_checkpoint
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.spec import Task

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "report"
NESTLING = (sys.executable, "-c", "from nestling.cli import main; main()")
QUALITY = (*NESTLING, "eval", "quality")
OUT = ("--out", "benchmarks/results/starter")
LINES = 15
"""Lines of a failed step's output that are shown."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command, run in the repository's root on one core or all, and the steps whose results it needs.

    `sees`: its result depends on the vision tower.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ("build",)
    on_all_cores: bool = False
    sees: bool = False


def steps(reference: str, built: Path) -> list[Step]:
    """All steps, in an order in which none waits for a later one."""
    types = [name for name in FILE_TYPES if name != "Q2_K_S"]
    q4 = str(built / "starter-text-retrieval-Q4_K_M.gguf")
    found = [
        Step("build", (*NESTLING, "build", STARTER, "--quant", "all", "--json"), (), on_all_cores=True),
        Step("vectors", (reference, "-m", "tests.golden.record_vectors", "starter"), ()),
        Step("tower", (*NESTLING, "build", STARTER, "--quant", "Q8_0", "--json"), sees=True),
        Step("card", _benchmark("starter_card"), sees=True),
        Step("images", _images(Task.RETRIEVAL, "pages-en", "emoji-names"), ("build", "tower"), sees=True),
        Step("images, text-matching", _images(Task.TEXT_MATCHING, "emoji-names"), ("build", "tower"), sees=True),
        Step("vector types", _benchmark("vector_types")),
        Step("arithmetics", _benchmark("arithmetics", "--cost", q4)),
        Step("rankings", (sys.executable, "-m", "tests.golden.record_rankings")),
        Step("mixes", _benchmark("quantization", "--judge")),
        Step("int8 cost", _benchmark("int8_cost")),
        *(Step(f"quality of {task}", _quality(task, types)) for task in Task),
        Step("accuracy", _benchmark("accuracy", "vectors"), ("build", "vectors")),
        Step("agreement", _benchmark("agreement", str(built))),
        Step("multivectors", _benchmark("multivector")),
        Step("adapters", _benchmark("adapters", "losses")),
    ]
    measured = tuple(step.name for step in found)
    return [
        *found,
        Step("tries of the page", _benchmark("tries", str(starter_checkpoint()), "--write"), sees=True),
        Step("picture of the page", _benchmark("page_picture"), ("tower", "tries of the page"), sees=True),
        Step("report", (*NESTLING, "report", *OUT[1:], "--out", "docs/report"), measured, sees=True),
        Step("plot of quantization", _benchmark("plot_quantization"), measured),
        Step("table of adapters", _benchmark("adapters", "table"), measured),
        Step("tables of scale", _benchmark("scale"), measured),
        Step("tables", _benchmark("tables"), measured, sees=True),
    ]


def _benchmark(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{name}", *arguments)


def _images(task: Task, *sets: str) -> tuple[str, ...]:
    return (*QUALITY, f"{STARTER}-{task}:Q8_0", *(part for name in sets for part in ("-b", name)), *OUT)


def _quality(task: Task, types: Sequence[str]) -> tuple[str, ...]:
    """Every file of a task on the task's own sets, compared with F16."""
    files = (f"{STARTER}-{task}:{kind}" for kind in types)
    return (*QUALITY, *files, "--against", f"{STARTER}-{task}:F16", *OUT)


@dataclass(slots=True)
class Records:
    """The state of one text's run, in its folder: which steps are done, and how long they took.

    `source` is the checkpoint with its tower, for which the steps that see are done.
    """

    folder: Path
    source: str
    done: dict[str, float] = field(default_factory=dict)

    @property
    def before(self) -> Path:
        """The results that are replaced."""
        return self.folder / "before"

    @property
    def _state(self) -> Path:
        return self.folder / "done.json"

    def begin(self, every: Sequence[Step]) -> None:
        """Resume, or at first keep the old results aside, and remove those whose files may have no successor."""
        if self._state.exists():
            found = json.loads(self._state.read_text("utf-8"))
            sees = {step.name for step in every if step.sees and found["source"] != self.source}
            self.done = {name: seconds for name, seconds in found["done"].items() if name not in sees}
            return
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        if not self.before.exists():
            copied = shutil.copytree(RESULTS, self.folder / "copied", dirs_exist_ok=True)
            copied.rename(self.before)
        for path in (*RESULTS.glob("starter/quality-*.json"), *REPORT.glob("figures/*.svg")):
            path.unlink()
        self._keep()

    def run(self, every: Sequence[Step], cores: Sequence[int]) -> None:
        """Run the steps that are not done, each on a free core as soon as what it needs is done."""
        left, free = [step for step in every if step.name not in self.done], list(cores)
        running: dict[Future[float | None], tuple[Step, int]] = {}
        with ThreadPoolExecutor(len(cores)) as pool:
            while running or self._next(left):
                while free and (step := self._next(left)):
                    core = free.pop()
                    left.remove(step)
                    running[pool.submit(self._run, step, core)] = step, core
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step, core = running.pop(future)
                    free.append(core)
                    if (seconds := future.result()) is not None:
                        self.done[step.name] = seconds
                        self._keep()

    def _next(self, left: Sequence[Step]) -> Step | None:
        return next((step for step in left if self.done.keys() >= set(step.needs)), None)

    def _run(self, step: Step, core: int) -> float | None:
        """The seconds that the step took, or None when it failed."""
        log, began = self.folder / "logs" / f"{step.name}.txt", time.perf_counter()
        command = step.command if step.on_all_cores else ("taskset", "-c", str(core), *step.command)
        environment = os.environ | {"NESTLING_CACHE": str(self.folder)}
        with log.open("w") as out:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=out, check=False).returncode
        seconds = round(time.perf_counter() - began, 1)
        if code:
            tail = log.read_text("utf-8", "replace").splitlines()[-LINES:]
            print(f"{step.name}: exit code {code} after {seconds} s, {log}:", *tail, sep="\n", flush=True)
            return None
        print(f"{step.name}: {seconds} s", flush=True)
        return seconds

    def _keep(self) -> None:
        with atomic_write(self._state) as file:
            file.write(json.dumps({"source": self.source, "done": self.done}, indent=1).encode())


def text_of(checkpoint: Checkpoint) -> str:
    """The SHA-256 of what texts' vectors depend on: all tensors but the vision tower's, and the tokenizer."""
    digest = hashlib.sha256(checkpoint.tokenizer_json.read_bytes())
    of = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("visual.")}
    for task, adapters in checkpoint.adapters.items():
        of |= {f"{task} {name} {side}": getattr(one, side) for name, one in adapters.items() for side in "ab"}
    for name in sorted(of):
        digest.update(name.encode() + of[name].read_rows().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Run what is left, and tell what changed; exit code 1 when a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reference", default=sys.executable, metavar="PYTHON")
    asked, checkpoint = parser.parse_args(), Checkpoint.open(starter_checkpoint())
    records = Records(cache_folder() / "starter-records" / text_of(checkpoint)[:12], checkpoint.source)
    every, began = steps(asked.reference, records.folder / "models" / STARTER), time.perf_counter()
    records.begin(every)
    print(f"{len(every) - len(records.done)} of {len(every)} steps, in {records.folder}", flush=True)
    records.run(every, sorted(os.sched_getaffinity(0)))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; the figures that changed:")
    print(*changes(records.before, RESULTS), sep="\n")
    if missing := [step.name for step in every if step.name not in records.done]:
        sys.exit(f"not done: {', '.join(missing)}; the same command resumes")


if __name__ == "__main__":
    main()
