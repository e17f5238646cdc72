"""Every arithmetic of the OpenVINO engine on this processor: tokens a second of processor time, one thread.

    [ONEDNN_MAX_CPU_ISA=AVX2_VNNI] python -m benchmarks.arithmetics FILE [--cost MODEL ...]
    python -m benchmarks.arithmetics --cost MODEL ...   (speeds, and costs of other models, are kept)

FILE has the full model's width (`cpu_speed` makes such). Arithmetics are interleaved in rounds of new texts; the best
round of each counts. Times are processor time of one thread, which other load on the machine affects less; only ratios
are meaningful. A cap on OpenVINO's kernels simulates an older processor. Each kind has a separate result file. Memory
bandwidth, which limits a text of 16 tokens, is that of numpy's maximum over an array, interleaved with the rest. The
accuracy of the arithmetics is measured on each MODEL, over documents of the shipped benchmark sets: 1 - cosine to
float32 with the same file. A decoder of the `llama` architecture is rewritten first (`int8_cost`).
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.int8_cost import texts
from nestling._util.cpu import usable_threads
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.openvino import processor
from nestling.engine.openvino.choice import ROTATED, named
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.grouping import group_of, matrices
from nestling.engine.protocol import plain
from nestling.formats.gguf import GGUFFile
from nestling.vectors import paired_cosine

ROUNDS = 9
LENGTHS = (16, 256)
NAMES = tuple(name for name in ArithmeticName if name is not ArithmeticName.AUTO)
READ_BYTES = 1 << 28
EVERY, LONGEST = 5, 200
"""Of the documents of `int8_cost`, every fifth, and their first tokens."""


def main() -> None:
    """Measure and write `benchmarks/results/arithmetics-KIND.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--cost", type=Path, nargs="*", default=[], metavar="MODEL")
    asked = parser.parse_args()
    costs = [_costs(GGUFFile.open(path)) for path in asked.cost]
    name = f"arithmetics-{measuring.slug(processor.kind())}"
    if asked.file:
        print(measuring.write(name, _speeds(GGUFFile.open(asked.file)) | {"cost": costs}).read_text())
        return
    old = {one["model"]: one for one in json.loads((measuring.RESULTS / f"{name}.json").read_text("utf-8"))["cost"]}
    new = {one["model"]: one for one in costs}
    print(measuring.renew(name, {"cost": list((old | new).values())}).read_text())


def _speeds(file: GGUFFile) -> dict[str, Any]:
    engines = {name: made for name in NAMES if (made := _loaded(file, name))}
    seconds: dict[tuple[str, int], list[float]] = {(name, length): [] for name in engines for length in LENGTHS}
    reading, rng, block = list[float](), np.random.default_rng(0), np.ones(READ_BYTES // 4, np.float32)
    for _ in range(ROUNDS + 1):
        reading.append(_spent(block.max))
        for length in LENGTHS:
            items = plain([rng.integers(0, 20_000, length).astype(np.int32)])
            for name, engine in engines.items():
                seconds[name, length].append(_spent(partial(engine.pool, items)))
    speed = READ_BYTES / min(reading) / 1e9
    rows = [_row(file, name, {length: min(seconds[name, length][1:]) for length in LENGTHS}, speed) for name in engines]
    return {"kind": processor.kind(), "file": file.path.name, "read_gb_per_s": speed, "rows": rows}


def _loaded(file: GGUFFile, name: ArithmeticName) -> OpenVINOEngine | None:
    """The engine, unless its kernels cannot be compiled for this processor."""
    engine = OpenVINOEngine(file, threads=1, arithmetic=name)
    try:
        engine.pool(plain([np.zeros(length, np.int32) for length in LENGTHS]))
    except RuntimeError:
        return None
    return engine


def _spent(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _costs(file: GGUFFile) -> dict[str, Any]:
    """Mean and worst 1 - cosine of each arithmetic's pooled vectors."""
    items = plain([ids[:LONGEST] for ids in texts(file)[::EVERY]])
    exact = ReferenceEngine(file).pool(items)
    found: dict[str, Any] = {"model": file.path.stem, "group": group_of(file), "texts": len(items)}
    for name in (ArithmeticName.BF16, ArithmeticName.INT8_GROUPS, *ROTATED):
        engine = OpenVINOEngine(file, threads=usable_threads(), arithmetic=name)
        lost = 1 - paired_cosine(np.concatenate([engine.pool([item]) for item in items]), exact)
        found[name] = {"mean": float(lost.mean()), "worst": float(lost.max())}
    return found


def _row(file: GGUFFile, name: ArithmeticName, best: dict[int, float], read: float) -> dict[str, Any]:
    arithmetic = named(file, name)
    held = sum(
        space.size_bytes for info in matrices(file) for space in arithmetic.format_of([info]).spaces(*info.shape)
    )
    return {
        "arithmetic": name,
        "tokens_per_s": {str(length): length / spent for length, spent in best.items()},
        "held_bytes": held,
        "share_of_bandwidth_at_16": held / best[16] / 1e9 / read,
    }


if __name__ == "__main__":
    main()
