"""Tokens per second at the full model's width: our engine, xllamacpp's llama.cpp, and one compiled for this machine.

    python -m benchmarks.cpu_speed DIR [--shape jina-v4-short] [--quant Q8_0 ...] [--native-llama PYTHON]
        [--sides NAME ...] [--rounds 5]

DIR, outside the repository, holds files of the shape (`make_checkpoint`: noise of the full model's width and 4 of its
36 layers, or with `--shape jina-v4` all of them), which are made if they are not there. All sides of a file are loaded
together, each in its own process, and are interleaved in rounds of new texts; medians count. Every kind of processor
has a separate result file, and so does every shape other than `jina-v4-short`. PYTHON is an interpreter with
llama-cpp-python, compiled for this machine. Peaks are OpenVINO's own product of two large matrices: in float32, in
bfloat16 and in int8 with one scale for each matrix.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from nestling.engine.hyperparameters import LAYER_MATRICES
from nestling.engine.openvino import processor
from nestling.engine.openvino.runtime import Node, op, ov
from nestling.formats.gguf import GGUFFile

ROUNDS = 5
SHORT = "jina-v4-short"
LENGTHS = {
    "mixed, 16 to 512": tuple(np.geomspace(16, 512, 36).astype(int).tolist()),
    "equal, 128": (128,) * 10,
    "one of 16": (16,),
    "16 of 16": (16,) * 16,
    "64 of 16": (16,) * 64,
}
MIXED, EQUAL, ONE, SIXTEEN, MANY = LENGTHS
PEAK_SIZE = 4096
PEAKS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
GIB = 1 << 30


class Side:
    """A child that answers lists of token ids with seconds."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.samples: dict[str, list[float]] = {lengths: [] for lengths in LENGTHS}
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_s = self._answer()

    def run(self, texts: list[list[int]]) -> float:
        """Seconds for these texts; without any, the resident memory in bytes."""
        assert self._child.stdin
        self._child.stdin.write(json.dumps(texts) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the child."""
        self._child.communicate()

    def _answer(self) -> float:
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: ended with {self._child.wait()}")
        return float(json.loads(line))


def main() -> None:
    """Measure and write `benchmarks/results/cpu-speed-KIND.json`, or that of another shape."""
    asked = _arguments()
    kind = processor.kind()
    shape = "" if asked.shape == SHORT else f"-{asked.shape}"
    name = f"cpu-speed{shape}-{measuring.slug(kind)}"
    peaks = {name: peak(precision, rounded=name == "int8") for name, precision in PEAKS.items()}
    result: dict[str, Any] = {"kind": kind, "shape": asked.shape, "peak_gops": peaks, "lengths": LENGTHS, "files": []}
    for quant in asked.quant:
        path = _file(asked.folder, asked.shape, quant)
        result["files"].append(_compare(path, quant, asked))
        result["files"][-1] |= _shares(path, result)
        measuring.write(name, result)
        print(table(result), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default=SHORT)
    parser.add_argument("--quant", nargs="+", default=["Q4_K_M", "Q8_0"])
    parser.add_argument("--native-llama", type=Path)
    parser.add_argument("--sides", nargs="+", help="of those in the table, our own first; all by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args()


def _file(folder: Path, shape: str, quant: str) -> Path:
    """The file of this shape and type, made if it is not there."""
    checkpoint, base = folder / f"{shape}-checkpoint", folder / f"{shape}-F16.gguf"
    path = folder / f"{shape}-{quant}.gguf"
    if path.exists():
        return path
    if not checkpoint.exists():
        _call("-m", "benchmarks.make_checkpoint", "--shape", shape, "--out", str(checkpoint))
    command = ("-c", "from nestling.cli import main; main()")
    if not base.exists():
        _call(*command, "convert", str(checkpoint), "--task", "retrieval", "--family", shape, "--out", str(base))
    _call(*command, "quantize", str(base), quant, "--out", str(path))
    return path


def _call(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def _compare(path: Path, quant: str, asked: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        commands = _commands(path, asked.native_llama)
        sides = [Side(name, command) for name, command in commands if name in (asked.sides or dict(commands))]
        for side in sides:
            stack.callback(side.close)
        for number in range(asked.rounds + 1):
            for name, lengths in LENGTHS.items():
                texts = [rng.integers(0, 20_000, length).tolist() for length in lengths]
                for side in sides:
                    seconds = side.run(texts)
                    if number:
                        side.samples[name].append(seconds)
        rows = [_row(side) for side in sides]
    return {"quant": quant, "load_before": before, "load_after": os.getloadavg()[0], "sides": rows}


def _commands(path: Path, native: Path | None) -> list[tuple[str, list[str]]]:
    threads = str(len(os.sched_getaffinity(0)))
    ours = [sys.executable, "-m", "benchmarks.our_engine", str(path), threads]
    found = [("nestling openvino", [*ours, "openvino"]), ("xllamacpp", [*ours, "llamacpp"])]
    if native:
        script = [str(native), str(Path(__file__).with_name("native_llama.py")), str(path), threads]
        found += [
            ("llama.cpp native", [*script, "0"]),
            ("llama.cpp native, extra layouts", [*script, "1"]),
        ]
    return found


def _row(side: Side) -> dict[str, Any]:
    speeds = {name: sum(lengths) / statistics.median(side.samples[name]) for name, lengths in LENGTHS.items()}
    return {
        "side": side.name,
        "load_s": side.load_s,
        "resident_bytes": side.run([]),
        "tokens_per_s": speeds,
        "seconds": side.samples,
    }


def peak(precision: str, *, rounded: bool, threads: int | None = None) -> float:
    """The best of five, in 10^9 additions and multiplications a second."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((PEAK_SIZE, PEAK_SIZE), np.float32)
    x = op.parameter(matrix.shape, np.float32)
    sides = [_int8(x, 0, 256), _int8(op.constant(matrix), -4, 255)] if rounded else [x, op.constant(matrix)]
    model = ov.Model([op.matmul(*sides, transpose_a=False, transpose_b=True)], [x], "peak")
    properties = {
        "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
        "INFERENCE_PRECISION_HINT": precision,
    }
    run = ov.Core().compile_model(model, "CPU", properties)
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        run([matrix])
        seconds.append(time.perf_counter() - began)
    return 2 * PEAK_SIZE**3 / min(seconds) / 1e9


def _int8(x: Node, low: float, levels: int) -> Node:
    """Numbers rounded to so many steps from `low` to 4, which the plugin multiplies as int8."""
    edges = [op.constant(np.float32(edge)) for edge in (low, 4, low, 4)]
    return op.fake_quantize(x, *edges, levels)


def _shares(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Our engine's products a second, over texts of one length, as shares of the peaks; and what mixing costs."""
    tensors = GGUFFile.open(path).tensors
    weights = sum(
        int(np.prod(info.shape))
        for name, info in tensors.items()
        if any(f".{one}.weight" in name for one in LAYER_MATRICES)
    )
    ours = result["files"][-1]["sides"][0]["tokens_per_s"]
    done = 2 * weights * ours[EQUAL] / 1e9
    shares = {name: done / peak for name, peak in result["peak_gops"].items()}
    return {"share_of_peak": shares, "mixed_over_equal": ours[MIXED] / ours[EQUAL]}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown: tokens per second, and how many times the others' ours are."""
    head = ["file", "side", *LENGTHS, "mixed: ours / this", "resident GiB"]
    lines = [head, ["---"] * len(head)]
    for file in result["files"]:
        ours = file["sides"][0]["tokens_per_s"][MIXED]
        for side in file["sides"]:
            speeds = side["tokens_per_s"]
            cells = [f"{speeds[name]:.1f}" for name in LENGTHS]
            cells += [f"{ours / speeds[MIXED]:.2f}", f"{side['resident_bytes'] / GIB:.2f}"]
            lines.append([file["quant"], side["side"], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
