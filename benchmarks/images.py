"""The vision tower at full size: share of the machine's matrix peak, torch for comparison, memory, mixed sizes.

    python -m benchmarks.images DIR [--torch PYTHON] [--blocks 32] [--threads N] [--rounds 3] [--float32]

DIR, outside the repository, holds a tower of the published shape with random weights (1.25 GiB), which is made if it is
not there; with fewer `--blocks` only a part of it, to try the script. PYTHON is an interpreter with torch and
transformers. Each side is a separate process; they are interleaved, and the median of the rounds after a warm-up
counts. Peaks are OpenVINO's own product of two large matrices, with the same threads.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measuring
from benchmarks.cpu_speed import Side, peak
from nestling.engine.vision import Grid
from nestling.engine.windows import Layout
from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.mmproj import ARCHITECTURE, fields_of
from nestling.formats.quant_types import QuantType
from nestling.formats.tower_shape import ImageSpec, TowerShape

CASES: dict[str, list[Grid]] = {
    "largest, 896 x 672": [(64, 48)],
    "A4 page, 644 x 896": [(64, 46)],
    "screen, 1008 x 560": [(40, 72)],
    "12 of 224 x 224": [(16, 16)] * 12,
    "3 equal of 448 x 448": [(32, 32)] * 3,
    "mixed, as many patches": [(46, 34), (2, 58), (20, 32), (16, 16), (18, 24), (4, 4), (12, 4)],
}
EQUAL, MIXED = "3 equal of 448 x 448", "mixed, as many patches"
PERIOD = 8_388_593  # prime, so that the noise does not repeat from row to row
KINDS = {"bfloat16": "bf16", "float32": "f32"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is measured."""

    folder: Path
    shape: TowerShape
    threads: int
    rounds: int
    kind: str
    torch: Path | None


def main() -> None:
    """Measure and write `benchmarks/results/images.json`."""
    asked = _arguments()
    sides = {"nestling": Side("nestling", [sys.executable, "-m", "benchmarks.our_tower", *_ours(asked)])}
    if asked.torch:
        command = [str(asked.torch), "-m", "benchmarks.torch_tower", _torch_shape(asked.shape)]
        sides["transformers + torch"] = Side("torch", [*command, str(asked.threads), asked.kind])
    seconds: dict[str, dict[str, list[float]]] = {name: {case: [] for case in CASES} for name in sides}
    gops = [peak(KINDS[asked.kind], rounded=False, threads=asked.threads)]
    for turn in range(asked.rounds + 1):
        for case, grids in CASES.items():
            for name, side in sides.items():
                took = side.run([list(grid) for grid in grids])
                seconds[name][case] += [took] if turn else []
        gops.append(peak(KINDS[asked.kind], rounded=False, threads=asked.threads))
    memory = {name: side.run([]) for name, side in sides.items()}
    for side in sides.values():
        side.close()
    path = measuring.write("images", _result(asked, seconds, memory, max(gops)))
    print(path.read_text())


def _arguments() -> Asked:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", type=Path)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--float32", action="store_true", help="the exact mode in place of bfloat16")
    given = parser.parse_args()
    shape = TowerShape(given.blocks, 1280, 16, 3420, 2048, min(8, given.blocks), 1e-6)
    kind = "float32" if given.float32 else "bfloat16"
    return Asked(given.folder, shape, given.threads, given.rounds, kind, given.torch)


def _ours(asked: Asked) -> list[str]:
    path = asked.folder / f"mmproj-random-{asked.shape.blocks}-BF16.gguf"
    if not path.exists():
        random_tower(path, asked.shape)
    return [str(path), str(asked.threads), asked.kind]


def random_tower(path: Path, shape: TowerShape) -> None:
    """A tower of noise whose states stay of order one."""
    noise = np.random.default_rng(3).standard_normal(PERIOD, np.float32)
    fields = {"general.architecture": Field.string(ARCHITECTURE), "general.type": Field.string("mmproj")}
    fields |= fields_of(shape, ImageSpec(prompt=(1, 2, 3), image_token=2))
    plans = [_plan(noise, name, size) for name, size in shape.tensors().items()]
    write_gguf(path, fields, plans)


def _plan(noise: NDArray[np.float32], name: str, size: tuple[int, ...]) -> TensorPlan:
    kind = QuantType.BF16 if len(size) > 1 else QuantType.F32
    return TensorPlan(name, size, kind, lambda: _noise(noise, name, size))


def _noise(noise: NDArray[np.float32], name: str, size: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    if len(size) == 1:
        yield noise[: size[0]] * np.float32(0.02) + np.float32("ln" in name)
        return
    left, at = prod(size), sum(name.encode()) * 1009 % PERIOD
    factor = np.float32(0.6 / prod(size[1:]) ** 0.5)
    while left:
        piece = noise[at : at + left] * factor
        yield (piece.view(np.uint32) >> 16).astype(np.uint16)
        left, at = left - piece.size, 0


def _torch_shape(shape: TowerShape) -> str:
    full = [block for block in range(shape.blocks) if shape.is_full(block)]
    return json.dumps(
        {
            "depth": shape.blocks, "hidden_size": shape.hidden, "num_heads": shape.heads,
            "intermediate_size": shape.feed_forward, "out_hidden_size": shape.out, "window_size": shape.window,
            "fullatt_block_indexes": full, "patch_size": shape.patch,
        }
    )  # fmt: skip


def operations(shape: TowerShape, grids: list[Grid]) -> float:
    """Multiplications and additions that images of these grids take, without padding."""
    layout = Layout.of(grids, shape)
    patches, wide = int(layout.images.sum()), shape.hidden
    full = sum(shape.is_full(block) for block in range(shape.blocks))
    products = patches * (4 * wide * wide + 3 * wide * shape.feed_forward) * shape.blocks
    pairs = int((layout.windows**2).sum()) * (shape.blocks - full) + int((layout.images**2).sum()) * full
    merger = patches // 4 * (4 * wide) * (4 * wide + shape.out)
    return 2.0 * (products + 2 * wide * pairs + merger + patches * shape.patch_values * wide)


def _result(
    asked: Asked, seconds: dict[str, dict[str, list[float]]], memory: dict[str, float], gops: float
) -> dict[str, Any]:
    medians = {name: {case: statistics.median(took) for case, took in cases.items()} for name, cases in seconds.items()}
    rows = []
    for case, grids in CASES.items():
        work = operations(asked.shape, grids)
        for name, cases in medians.items():
            done = work / cases[case] / 1e9
            row = {"case": case, "side": name, "seconds": round(cases[case], 4), "gops": round(done, 1)}
            rows.append(row | {"share_of_peak": round(done / gops, 3)})
    ours = {case: operations(asked.shape, CASES[case]) / took for case, took in medians["nestling"].items()}
    result: dict[str, Any] = {
        "blocks": asked.shape.blocks, "threads": asked.threads, "arithmetic": asked.kind, "rounds": asked.rounds,
        "peak_gops": round(gops, 1), "rows": rows, "mixed_over_equal": round(ours[MIXED] / ours[EQUAL], 3),
        "highest_memory_bytes": memory,
    }  # fmt: skip
    if asked.torch:
        other = medians["transformers + torch"]
        result["torch_over_nestling"] = {
            case: round(other[case] / took, 2) for case, took in medians["nestling"].items()
        }
    return result


if __name__ == "__main__":
    main()
