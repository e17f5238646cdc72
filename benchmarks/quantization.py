"""All file types of the starter, its importance matrices, and mixes searched for embeddings compared with stock ones.

    python -m benchmarks.quantization [TASK ...]
    python -m benchmarks.quantization --merge RESULT ...
    python -m benchmarks.quantization --judge

For every task: builds all file types with the package's calibration text into a temporary folder; measures the cosine
of each file's vectors to the F16 file's on texts of the benchmark sets (never calibrated on), and between OpenVINO and
llama.cpp; chooses mixes at the sizes of four stock files, with the embedding table free and with it kept, and measures
them and the stock files on every text of the task's sets: cosine to F16, and nDCG@10 paired by query, mix and stock
and F16 with each other. `--judge` rebuilds the mixes of the result from their recorded types, and measures them again.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.judging import Judge, Judged, embed, rankings
from nestling._util.cpu import usable_threads
from nestling._util.progress import Progress, no_progress
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.observer import Observer
from nestling.engine.protocol import Item
from nestling.evaluation import data
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import FILE_TYPES, QuantType
from nestling.models.embedder import Embedder
from nestling.models.local import starter_checkpoint
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import BuiltFile, Pipeline, model_path
from nestling.pipeline.quantization import calibration
from nestling.pipeline.quantization.imatrix import ImportanceMatrix
from nestling.pipeline.quantization.kept_imatrix import matrix_path
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize
from nestling.pipeline.quantization.search.recipe_file import MixRecipe
from nestling.pipeline.quantization.search.search import Budget, Chooser, embedding_kept
from nestling.spec import ModelSpec, Role, Task
from nestling.vectors import paired_cosine

STOCK = ("Q4_K_M", "Q3_K_M", "IQ3_XXS", "IQ2_M")
LADDER = tuple(name for name in FILE_TYPES if name != "Q2_K_S")
SAMPLE = 40
"""Documents, and as many queries, of each set whose cosines every file of the ladder is judged by."""
TRIALS = 40
"""Measurements that refine each mix."""
AGREEING = 12
"""Texts that both engines embed with every file."""


def main() -> None:
    """Measure and write `benchmarks/results/quantization.json`, or parts of it for single tasks, to be merged."""
    if sys.argv[1:2] == ["--merge"]:
        _merge([Path(name) for name in sys.argv[2:]])
        return
    if sys.argv[1:2] == ["--judge"]:
        _judge_again(json.loads((measuring.RESULTS / "quantization.json").read_text("utf-8")))
        return
    tasks = [Task.parse(name) for name in sys.argv[1:]]
    result: dict[str, Any] = {"ladder": [], "mixes": [], "tasks": {}}
    for task in tasks or Task:
        with tempfile.TemporaryDirectory() as name:
            _task(Path(name), task, result)
    result["summary"] = _summary(result)
    print(measuring.write("-".join(["quantization", *tasks]), result))


def _merge(parts: Sequence[Path]) -> None:
    """Put results of single tasks together."""
    found = [json.loads(path.read_text("utf-8")) for path in parts]
    result = {
        "ladder": [row for one in found for row in one["ladder"]],
        "mixes": [row for one in found for row in one["mixes"]],
        "tasks": {task: facts for one in found for task, facts in one["tasks"].items()},
        "parts": [{key: one[key] for key in ("command", "commit", "machine")} for one in found],
    }
    print(measuring.write("quantization", {**result, "summary": _summary(result)}))


def _judge_again(result: dict[str, Any]) -> None:
    """Judge the mixes of a result that are recorded in it, without choosing them again."""
    for task in map(Task.parse, result["tasks"]):
        with tempfile.TemporaryDirectory() as name:
            _judge_mixes(Path(name), task, result)
    kept = {key: result[key] for key in ("ladder", "mixes", "tasks", "parts")}
    print(measuring.write("quantization", {**kept, "summary": _summary(result)}))


def _judge_mixes(folder: Path, task: Task, result: dict[str, Any]) -> None:
    collect = calibration.for_pipeline(threads=usable_threads())
    Pipeline(
        Checkpoint.open(starter_checkpoint()), folder, "starter", usable_threads(), lambda _: no_progress, collect
    ).build([task], ("F16", *STOCK))
    source, matrix = _built(folder, task, "F16"), ImportanceMatrix.read(matrix_path(folder, task))
    judge = Judge(source, task)
    stock = {file_type: judge.judged(_built(folder, task, file_type)) for file_type in STOCK}
    pairs = []
    for row in (row for row in result["mixes"] if row["task"] == task):
        types = {name: QuantType[kind] for name, kind in row["types"].items()}
        shapes = {name: GGUFFile.open(source).tensors[name].shape for name in types}
        made = _made(folder, source, MixRecipe(row["stock"], types, shapes), matrix)
        assert made.stat().st_size == row["bytes"], (made.stat().st_size, row["bytes"])
        pairs.append((stock[row["stock"]], judge.judged(made)))
        row.update(_judgement(judge, *pairs[-1]))
        print({key: value for key, value in row.items() if key != "types"}, flush=True)
    result["tasks"][task]["nDCG@10"] = judge.compared(*zip(*pairs, strict=True))


def _built(folder: Path, task: Task, file_type: str) -> Path:
    return model_path(folder, family="starter", task=task, file_type=file_type)


def _judgement(judge: Judge, stock: Judged, mix: Judged) -> dict[str, Any]:
    return {
        "stock_error": stock.error, "error": mix.error, "ratio": mix.error / stock.error,
        "stock_lowest": stock.lowest, "lowest": mix.lowest, "nDCG@10": judge.compared([stock], [mix]),
    }  # fmt: skip


def _task(folder: Path, task: Task, result: dict[str, Any]) -> None:
    threads = usable_threads()
    steps: dict[str, float] = {}
    began = time.perf_counter()

    def step(name: str) -> Progress:
        steps[name] = time.perf_counter() - began
        return no_progress

    collect = calibration.for_pipeline(threads=threads)
    built = Pipeline(Checkpoint.open(starter_checkpoint()), folder, "starter", threads, step, collect).build(
        [task], LADDER
    )
    build_s = time.perf_counter() - began
    print(task, "built", round(build_s, 1), flush=True)
    mixes, facts = _mixes(folder, task)
    result["mixes"] += mixes
    result["ladder"] += _ladder(task, built)
    result["tasks"][task] = {
        "build_s": build_s,
        "steps_began_s": steps,
        **facts,
        "imatrix": _collection(folder, task),
        "quantize": _speed(folder, task),
    }


def _texts(count: int) -> list[tuple[str, Role]]:
    found: list[tuple[str, Role]] = []
    for name in data.SHIPPED:
        one = data.load(name)
        assert isinstance(one, data.RetrievalSet)
        found += [(text, Role.QUERY) for text in one.queries[:count]]
        found += [(text, Role.PASSAGE) for text in one.documents[:count]]
    return found


def _ladder(task: Task, built: Sequence[BuiltFile]) -> list[dict[str, Any]]:
    texts = _texts(SAMPLE)
    few = texts[:: len(texts) // AGREEING]
    base = embed(next(file.path for file in built if file.card.file_type == "F16"), texts)
    rows = []
    for file in built:
        cosines = paired_cosine(embed(file.path, texts), base)
        agree = paired_cosine(embed(file.path, few), embed(file.path, few, "llamacpp"))
        card = file.card
        rows.append(
            {
                "task": task,
                "file_type": card.file_type,
                "size_bytes": card.size_bytes,
                "bits_per_weight": card.bits_per_weight,
                "cosine_mean": float(cosines.mean()),
                "cosine_lowest": float(cosines.min()),
                "llamacpp_lowest": float(agree.min()),
                "worst_tensor": card.worst_tensor,
                "worst_error": card.worst_error,
            }
        )
        print(rows[-1], flush=True)
    return rows


def _mixes(folder: Path, task: Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    source = _built(folder, task, "F16")
    matrix = ImportanceMatrix.read(matrix_path(folder, task))
    began = time.perf_counter()
    chooser = Chooser.measure(source, spec=_spec(source), matrix=matrix, threads=usable_threads())
    facts: dict[str, Any] = {
        "measure_s": time.perf_counter() - began,
        "estimate_correlation": chooser.correlation,
        "estimates_checked": chooser.checked,
    }
    judge = Judge(source, task)
    rows = []
    pairs: list[tuple[Judged, Judged]] = []
    for file_type in STOCK:
        plan = chooser.stock(file_type)
        stock = judge.judged(_built(folder, task, file_type))
        for kind, keep in (("free", None), ("embedding kept", embedding_kept(plan))):
            began = time.perf_counter()
            chosen = chooser.choose(Budget(size_bytes=plan.size_bytes), keep=keep, trials=TRIALS)
            choose_s = time.perf_counter() - began
            made = _made(folder, source, chosen.recipe, matrix)
            ours = judge.judged(made)
            pairs.append((stock, ours))
            row = {
                "task": task, "stock": file_type, "mix": kind, "stock_bytes": plan.size_bytes,
                "bytes": made.stat().st_size, "choose_s": choose_s, "trials": chosen.trials,
                "calibration_error": chosen.recipe.error, **_judgement(judge, stock, ours),
                "types": {name: one.name for name, one in chosen.recipe.types.items()},
            }  # fmt: skip
            rows.append(row)
            print({key: value for key, value in row.items() if key != "types"}, flush=True)
    facts["nDCG@10"] = judge.compared(*zip(*pairs, strict=True))
    return rows, facts


def _spec(path: Path) -> ModelSpec:
    model = Embedder.load(path)
    model.close()
    return model.spec


def _made(folder: Path, source: Path, recipe: MixRecipe, matrix: ImportanceMatrix) -> Path:
    """Write the recipe, read it back and apply it."""
    recipe.write(folder / "mix.json")
    shapes = {name: info.shape for name, info in GGUFFile.open(source).tensors.items()}
    return quantize(source, out=folder / "mix.gguf", mix=MixRecipe.read(folder / "mix.json").mix(shapes, matrix)).path


def _collection(folder: Path, task: Task) -> dict[str, float]:
    """Tokens per second of the engine plain and observed, in turns, best of five."""
    path = _built(folder, task, "F16")
    file, threads = GGUFFile.open(path), usable_threads()
    model = Embedder.load(path)
    text = calibration.Calibration(model.spec, model.tokenizer, calibration.default_text())
    chunks = text.chunks(calibration.BATCH)
    model.close()
    plain, observed = OpenVINOEngine(file, threads=threads), Observer(file, threads=threads)
    times: dict[str, list[float]] = {"plain": [], "observed": []}
    for _ in range(6):
        for name, run in (
            ("plain", lambda: plain.pool([Item(one) for one in chunks])),
            ("observed", lambda: observed.collect([one.tolist() for one in chunks])),
        ):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    tokens = sum(map(len, chunks))
    rates = {f"{name}_tokens_per_s": tokens / min(times[name][1:]) for name in times}
    return {**rates, "share": rates["observed_tokens_per_s"] / rates["plain_tokens_per_s"]}


def _speed(folder: Path, task: Task) -> dict[str, float]:
    """Seconds to quantize to Q4_K_M with the matrix on one core and on two, best of three."""
    source = _built(folder, task, "F16")
    mix = Mix("Q4_K_M", imatrix=ImportanceMatrix.read(matrix_path(folder, task)))
    found = {}
    for threads in (1, 2):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            quantize(source, out=folder / "speed.gguf", mix=mix, threads=threads)
            times.append(time.perf_counter() - began)
        found[f"threads_{threads}_s"] = min(times)
    return found


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """The promises: largest ratio of each kind of mix, lowest agreement, how nDCG@10 changed."""
    mixes = result["mixes"]
    upper = LADDER[: LADDER.index("Q3_K_M") + 1]
    return {
        "largest_ratio_free": max(row["ratio"] for row in mixes if row["mix"] == "free"),
        "largest_ratio_embedding_kept": max(row["ratio"] for row in mixes if row["mix"] != "free"),
        "largest_size_ratio": max(row["bytes"] / row["stock_bytes"] for row in mixes),
        "smallest_size_ratio": min(row["bytes"] / row["stock_bytes"] for row in mixes),
        "llamacpp_lowest_to_Q3_K_M": min(
            row["llamacpp_lowest"] for row in result["ladder"] if row["file_type"] in upper
        ),
        "llamacpp_lowest_below": min(
            row["llamacpp_lowest"] for row in result["ladder"] if row["file_type"] not in upper
        ),
        "nDCG@10": rankings(mixes),
        "nDCG@10, all mixes together": rankings(
            [{"task": task, "stock": "all", "mix": "all", **facts} for task, facts in result["tasks"].items()]
        ),
    }


if __name__ == "__main__":
    main()
