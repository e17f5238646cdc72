"""What quantizing and collecting an importance matrix cost: memory at full size, two cores against one, tokens.

    python -m benchmarks.quantizing memory FILE [FILE_TYPES ...]
    python -m benchmarks.quantizing cores
    python -m benchmarks.quantizing imatrix
    python -m benchmarks.quantizing types

`memory` quantizes FILE, the full-size F16 file that `benchmarks.full_size` makes, with a made-up matrix of the right
shape: Q3_K_M to its end, then, for a few minutes each, IQ3_XXS, IQ2_XXS and four file types in one pass as `nestling
build` makes them (the highest memory is reached within seconds: a run keeps no more than the pieces it works on).
Types that are not named keep their result. The others make models of noise in the full model's width
with few layers and a small vocabulary. `cores`: Q4_K_M of two layers on one core and on two. `imatrix`: for the starter
and for four layers, the engine's tokens per second, plain and while it collects a matrix, in turns. `types`: how fast
each tensor type is made on one core. Each of the three is one part of `benchmarks/results/quantizing.json`.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import measuring
from nestling._util.cpu import usable_threads
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.observer import Observer
from nestling.engine.protocol import Item
from nestling.formats.ggml import quantize_rows
from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType
from nestling.models import local
from nestling.pipeline.quantization import calibration
from nestling.pipeline.quantization.file_types import is_quantizable
from nestling.pipeline.quantization.imatrix import ColumnSums, ImportanceMatrix
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize_many

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 1 << 30
LIMIT_S = 180.0
"""How long a run that would take an hour is watched."""
TOGETHER = "Q3_K_M,Q4_K_M,IQ3_XXS,IQ2_XXS"
RUNS = {"Q3_K_M": None, "IQ3_XXS": LIMIT_S, "IQ2_XXS": LIMIT_S, TOGETHER: LIMIT_S}
ROUNDS = 6
QUANTIZED_LAYERS, OBSERVED_LAYERS = 2, 4
VOCABULARY = 4096
PERIOD = 4_194_301
"""Numbers of noise before they come again: prime, so that no two rows are alike."""
TYPE_ROWS = 64
CODE = "import sys; from nestling.cli import main; main()"
MANY = "import sys; from benchmarks.quantizing import many_step; many_step(*sys.argv[1:])"


def main() -> None:
    """Measure what the first argument says."""
    if sys.argv[1] == "memory":
        _memory(Path(sys.argv[2]), sys.argv[3:] or list(RUNS))
        return
    path = measuring.RESULTS / "quantizing.json"
    parts: dict[str, Any] = json.loads(path.read_text("utf-8"))["parts"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        parts[sys.argv[1]] = PARTS[sys.argv[1]](Path(name))
    print(measuring.write("quantizing", {"parts": parts}).read_text())


# Memory.


def _memory(source: Path, names: list[str]) -> None:
    """Watch the runs that are named and write `benchmarks/results/quantize-full-size.json` after each."""
    file = GGUFFile.open(source)
    path = measuring.RESULTS / "quantize-full-size.json"
    runs: dict[str, Any] = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else {}
    facts = {"source_bytes": source.stat().st_size, "tensors": len(file.tensors)}
    with tempfile.TemporaryDirectory(dir=source.parent) as name:
        folder = Path(name)
        matrix = folder / "imatrix.gguf"
        made_up_matrix(file).write(matrix)
        for what in names:
            if what == TOGETHER:
                runs[what] = _watched(MANY, str(source), str(matrix), str(folder), limit_s=RUNS[what])
            else:
                stock = ("--imatrix", str(matrix), "--out", str(folder / "out.gguf"), "--json")
                runs[what] = _watched(CODE, "quantize", str(source), what, *stock, limit_s=RUNS[what])
            print(what, runs[what], flush=True)
            measuring.write("quantize-full-size", {**facts, "runs": runs})


def _watched(code: str, *arguments: str, limit_s: float | None) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = measuring.run(sys.executable, "-c", code, *arguments, limit_s=limit_s)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "to_its_end": bool(run.output.strip()),
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_anonymous_gib": run.peak_anonymous_bytes / GIB,
        "peak_resident_gib": run.peak_resident_bytes / GIB,
    }


def many_step(source: str, matrix: str, folder: str) -> None:
    """Several file types in one pass over the source; runs in its own process until it is ended."""
    made, kinds = ImportanceMatrix.read(Path(matrix)), TOGETHER.split(",")
    quantize_many(Path(source), {Path(folder) / f"{kind}.gguf": Mix(kind, imatrix=made) for kind in kinds})
    print("done")


def made_up_matrix(file: GGUFFile) -> ImportanceMatrix:
    """A matrix of the right shape for a file: random squares for every matrix of a layer."""
    rng = np.random.default_rng(0)
    shapes = {name: info.shape for name, info in file.tensors.items() if name.startswith("blk.")}
    entries = {
        name: ColumnSums(rng.chisquare(1, shape[-1]).astype(np.float32) + np.float32(0.01), 1)
        for name, shape in shapes.items()
        if is_quantizable(name, shape)
    }
    return ImportanceMatrix(entries, ("noise",), 1, 512)


# Speed.


def _imatrix(folder: Path) -> dict[str, Any]:
    deep = full_width(folder / "deep.gguf", OBSERVED_LAYERS)
    starter = local.resolve("starter-retrieval:F16")
    return {"starter": _share(starter), f"{OBSERVED_LAYERS} layers of full width": _share(deep)}


def _types(_folder: Path) -> dict[str, float]:
    """Seconds for 10^9 weights on one core, with a matrix, of rows of the full width."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((TYPE_ROWS, 2048), np.float32) * np.float32(0.02)
    importance = rng.chisquare(1, 2048).astype(np.float32) + np.float32(0.01)
    found = {}
    for kind in QuantType:
        if kind.is_float:
            continue
        quantize_rows(rows[:1], kind, importance)  # makes the tables
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            quantize_rows(rows, kind, importance)
            seconds.append(time.perf_counter() - began)
        found[kind.name] = round(min(seconds) / rows.size * 1e9, 1)
    return found


def full_width(path: Path, layers: int) -> Path:
    """A model of noise in the full model's width with few layers and a small vocabulary, as F16."""
    hidden, keys, inner = 2048, 256, 11008
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, hidden), "output_norm.weight": (hidden,)}
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,), "attn_q.weight": (hidden, hidden), "attn_q.bias": (hidden,),
        "attn_k.weight": (keys, hidden), "attn_k.bias": (keys,), "attn_v.weight": (keys, hidden),
        "attn_v.bias": (keys,), "attn_output.weight": (hidden, hidden), "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (inner, hidden), "ffn_up.weight": (inner, hidden), "ffn_down.weight": (hidden, inner),
    }  # fmt: skip
    shapes |= {f"blk.{index}.{name}": shape for index in range(layers) for name, shape in layer.items()}
    numbers = {
        "context_length": 32768, "embedding_length": hidden, "block_count": layers, "feed_forward_length": inner,
        "attention.head_count": 16, "attention.head_count_kv": 2,
    }  # fmt: skip
    fields = {"general.architecture": Field.string("qwen2vl"), "general.file_type": Field.uint32(1)}
    fields |= {f"qwen2vl.{key}": Field.uint32(value) for key, value in numbers.items()}
    fields["qwen2vl.attention.layer_norm_rms_epsilon"] = Field.float32(1e-6)
    fields["qwen2vl.rope.freq_base"] = Field.float32(1e6)
    write_gguf(path, fields, [_noise(name, shape) for name, shape in shapes.items()])
    return path


def _noise(name: str, shape: tuple[int, ...]) -> TensorPlan:
    kind = QuantType.F16 if len(shape) > 1 else QuantType.F32

    def pieces() -> list[np.ndarray]:
        noise = np.random.default_rng(len(name)).standard_normal(PERIOD, np.float32) * np.float32(0.02)
        values = np.resize(noise, shape)
        return [(values + ("norm" in name)).astype(np.float16 if kind is QuantType.F16 else np.float32)]

    return TensorPlan(name, shape, kind, pieces)


def _cores(folder: Path) -> dict[str, Any]:
    """Wall seconds on one core (`taskset`) and on two."""
    source = full_width(folder / "shallow.gguf", QUANTIZED_LAYERS)
    matrix = folder / "imatrix.gguf"
    made_up_matrix(GGUFFile.open(source)).write(matrix)
    out = folder / "out.gguf"
    seconds: dict[str, float] = {}
    for name, cores in (("one core", "0"), ("two cores", "0,1")):
        command = ["taskset", "-c", cores, sys.executable, "-c", CODE, "quantize", str(source), "Q4_K_M"]
        arguments = ["--imatrix", str(matrix), "--out", str(out), "--threads", str(len(cores.split(","))), "--json"]
        seconds[name] = measuring.run(*command, *arguments).wall_s
    ratio = seconds["one core"] / seconds["two cores"]
    return {"file_type": "Q4_K_M", "layers": QUANTIZED_LAYERS, "wall_s": seconds, "speedup": ratio}


def _share(path: Path) -> dict[str, Any]:
    """Tokens per second of the engine plain and observed, on a call's calibration chunks, in turns."""
    file, threads = GGUFFile.open(path), usable_threads()
    rng = np.random.default_rng(0)
    vocabulary = file.tensors["token_embd.weight"].shape[0]
    chunks = [rng.integers(0, vocabulary, calibration.CHUNK_TOKENS).astype(np.int32) for _ in range(calibration.BATCH)]
    plain, observed = OpenVINOEngine(file, threads=threads), Observer(file, threads=threads)
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.pool([Item(one) for one in chunks]),
        "observed": lambda: observed.collect([one.tolist() for one in chunks]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    tokens = sum(map(len, chunks))
    rates = {name: tokens / median(values[1:]) for name, values in seconds.items()}  # the first one compiles kernels
    share = median(a / b for a, b in zip(*(values[1:] for values in seconds.values()), strict=True))
    row = {"tokens_per_s": rates, "share": share, "seconds": seconds}
    print(json.dumps(row), flush=True)
    return row


PARTS = {"cores": _cores, "imatrix": _imatrix, "types": _types}


if __name__ == "__main__":
    main()
