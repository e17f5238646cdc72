"""One base with three LoRA adapters compared with three merged models: accuracy, memory, speed.

    python -m benchmarks.adapters losses
    python -m benchmarks.adapters speed FOLDER          (of the starter, or of the full shape with few layers)
    python -m benchmarks.adapters memory FULL MODEL     (the full checkpoint; one of its Q8_0 files)
    python -m benchmarks.adapters table                 (rewrites the table of docs/adapters.md)

FOLDER holds what `nestling build` made with and without `--keep-adapters` in Q8_0; a checkpoint of the full shape with
four layers is made with `python -m benchmarks.make_checkpoint --shape jina-v4-short --out DIR`. Each writes its own
part of `benchmarks/results/adapters.json`. Losses are the starter's: cosines to the F16 merged model of the same task,
over the recorded texts. Speed is interleaved, round by round, so that a busy machine slows both alike. For memory, a
merged file stands in for the base, which has the same tensors; only the adapters are written.
"""

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tests.golden.texts import LONG_TEXTS, TEXTS

from benchmarks import measuring
from nestling._util.cpu import usable_threads
from nestling.engine.lora import Adapter
from nestling.engine.names import EngineName
from nestling.engine.protocol import Item, plain
from nestling.engine.registry import load_engine
from nestling.formats.gguf import GGUFFile
from nestling.models.compute import Work
from nestling.models.embedder import Embedder
from nestling.models.local import starter_checkpoint
from nestling.pipeline.conversion.adapters import write_adapter
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.pipeline.quantization import calibration
from nestling.spec import ModelSpec, Role, Task, adapter_path
from nestling.vectors import Floats, paired_cosine

KINDS = ("Q8_0", "Q4_K_M", "Q3_K_M", "IQ2_M")
ROUNDS = 5
LENGTHS = {"short": [30], "mixed": np.geomspace(16, 256, 12).astype(int).tolist(), "long": [512] * 2}
DOCUMENT = Path(__file__).parents[1] / "docs" / "adapters.md"
BEGIN, END = "<!-- table: adapters -->\n", "<!-- end -->"
CODE = "import sys; from benchmarks.adapters import memory_step; memory_step(*sys.argv[1:])"


def losses() -> dict[str, Any]:
    """Merged and adapted files of the starter in each type: cosines to the F16 merged vectors, per task."""
    with tempfile.TemporaryDirectory() as name:
        folder, threads = Path(name), usable_threads()
        collect = calibration.for_pipeline(threads=threads)
        pipeline = Pipeline(Checkpoint.open(starter_checkpoint()), folder, "starter", threads, collect=collect)
        pipeline.build(list(Task), KINDS)
        pipeline.build_base(["F32", *KINDS])
        wanted = {task: _vectors(_load(folder, task, "F16")) for task in Task}
        rows = []
        for kind in ("F32", "F16", *KINDS):
            base = _load(folder, None, kind)
            rows += [_loss("adapters", kind, task, _vectors(base.for_task(task)), wanted[task]) for task in Task]
            base.close()
        for kind, task in product(KINDS, Task):
            rows.append(_loss("merged", kind, task, _vectors(_load(folder, task, kind)), wanted[task]))
    return {"losses": rows}


def _load(folder: Path, task: Task | None, kind: str) -> Embedder:
    return Embedder.load(model_path(folder, family="starter", task=task, file_type=kind))


def _vectors(model: Embedder) -> Floats:
    texts = (*TEXTS, *LONG_TEXTS)
    prefixes = [model.spec.prefix(role) for role in (Role.QUERY, Role.PASSAGE)]
    return model.embed_ids(model.tokenizer.encode([prefix + text for prefix in prefixes for text in texts]))


def _loss(how: str, kind: str, task: Task, found: Floats, wanted: Floats) -> dict[str, Any]:
    cosines = paired_cosine(found, wanted)
    row = {"how": how, "file_type": kind, "task": task, "mean": float(cosines.mean()), "lowest": float(cosines.min())}
    print(row, flush=True)
    return row


def speed(folder: Path) -> dict[str, Any]:
    """Tokens per second of a Q8_0 base with adapters, tasks mixed, over those of a merged Q8_0 model, both built."""
    merged, base = (Embedder.load(next(folder.glob(f"*-text-{stem}-Q8_0.gguf"))) for stem in ("code", "base"))
    rows = {what: _race(merged, base, lengths) for what, lengths in LENGTHS.items()}
    print(rows, flush=True)
    return {f"speed_{merged.spec.dimensions[-1]}_wide": rows}


def _race(merged: Embedder, adapted: Embedder, lengths: Sequence[int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 20_000, length).astype(np.int32) for length in lengths]
    tasks = [list(Task)[place % 3] for place in range(len(ids))]
    works = [Work(Item(one), task) for one, task in zip(ids, tasks, strict=True)]
    seconds: dict[str, list[float]] = {"merged": [], "adapters": []}
    runs: dict[str, Callable[[], object]] = {
        "merged": lambda: merged.pool(plain(ids)),
        "adapters": lambda: list(adapted.compute.planned(works)),
    }
    for _ in range(ROUNDS + 1):
        for how, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[how].append(time.perf_counter() - began)
    medians = {how: statistics.median(all_[1:]) for how, all_ in seconds.items()}
    fastest = {how: min(all_[1:]) for how, all_ in seconds.items()}
    return {
        "lengths": list(lengths),
        "seconds_median": medians,
        "seconds_fastest": fastest,
        "throughput_ratio_median": medians["merged"] / medians["adapters"],
        "throughput_ratio_fastest": fastest["merged"] / fastest["adapters"],
    }


def memory(checkpoint: Path, model: Path) -> dict[str, Any]:
    """Resident memory of one merged Q8_0 model and of the same tensors with three adapters, each in a process."""
    with tempfile.TemporaryDirectory() as name:
        source = Checkpoint.open(checkpoint)
        for task in Task:
            write_adapter(source, task=task, out=adapter_path(Path(name), task), family="jina-v4")
        found = {}
        for how, folder in (("merged", ""), ("adapters", name)):
            run = measuring.run(sys.executable, "-c", CODE, str(model), folder)
            found[how] = {**json.loads(run.output.splitlines()[-1]), "peak_resident_bytes": run.peak_resident_bytes}
    ratio = found["adapters"]["added_bytes"]["RssAnon"] / (3 * found["merged"]["added_bytes"]["RssAnon"])
    print(found, ratio, flush=True)
    return {"memory_full_shape": {"file_type": "Q8_0", **found, "adapters_over_three_merged": ratio}}


def memory_step(model: str, adapters: str) -> None:
    """Load a model, with adapters from a folder if one is named, embed a text, and print what that added."""
    file = GGUFFile.open(Path(model))
    ids = [np.arange(64, dtype=np.int32)]
    before = _resident()
    if adapters:
        opened = [GGUFFile.open(adapter_path(Path(adapters), task)) for task in Task]
        every = [Adapter(one, ModelSpec.from_json(str(one.value("nestling.spec")))) for one in opened]
        engine = load_engine(file, adapters=every, name=EngineName.OPENVINO)
    else:
        engine = load_engine(file, name=EngineName.OPENVINO)
    engine.pool(plain(ids), adapters=[0] if adapters else ())
    print(json.dumps({"added_bytes": {name: size - before[name] for name, size in _resident().items()}}))
    engine.close()  # not before it was measured


def _resident() -> dict[str, int]:
    """Resident memory by kind, in bytes: the process's own, and what it maps of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return {name: int(found[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile")}


def table() -> str:
    """What is lost by either way, from the result file alone."""
    rows = json.loads((measuring.RESULTS / "adapters.json").read_text())["losses"]
    lines = ["| type | task | merged | adapters |", "|---|---|---|---|"]
    for kind, task in product(KINDS, Task):
        found = {r["how"]: r["mean"] for r in rows if (r["file_type"], r["task"]) == (kind, task)}
        lines.append(f"| {kind} | {task} | {found['merged']:.5f} | {found['adapters']:.5f} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """The document with the table of today's result file in its place."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: BEGIN + table() + END, text, flags=re.DOTALL)


def _keep(part: dict[str, Any]) -> None:
    path = measuring.RESULTS / "adapters.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: value for key, value in before.items() if key not in ("command", "commit", "machine")}
    measuring.write("adapters", kept | part)


STEPS: dict[str, Callable[..., dict[str, Any]]] = {"losses": losses, "speed": speed, "memory": memory}


def main() -> None:
    """Run the step that was asked for."""
    step, arguments = sys.argv[1], map(Path, sys.argv[2:])
    if step == "table":
        DOCUMENT.write_text(with_table(DOCUMENT.read_text("utf-8")), "utf-8")
        return
    _keep(STEPS[step](*arguments))


if __name__ == "__main__":
    main()
