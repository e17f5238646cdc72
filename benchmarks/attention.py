"""Attention in pages against attention in rectangles: batches, and the chunks of a text of 32,768 tokens.

    python -m benchmarks.attention FILE [ROUNDS=2]

FILE has the full model's width and few layers (`cpu_speed` makes such), on a processor with bfloat16. Both engines take
turns; a figure is the median of the ratios of their processor times per token, which other load on the machine affects
less than wall time. A chunk is run alone, with a past of random keys and values, as large as that form allows.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import measuring
from nestling._util.cpu import usable_threads
from nestling.engine import rotary
from nestling.engine.openvino import engine as openvino_engine
from nestling.engine.openvino import packing
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.paged import PAGE
from nestling.engine.openvino.runtime import ov
from nestling.engine.protocol import plain
from nestling.formats.gguf import GGUFFile

BATCHES = {
    "a batch of mixed lengths, 14 to 500": (500, 200, 150, 90, 50, 20, 14),
    "a batch of equal lengths, 128": (128,) * 8,
    "one text of 16": (16,),
}
LENGTH, STARTS = 32_768, (1024, 7168, 15_360, 23_552, 31_744)
Timed = tuple[Callable[[], object], int]


def main(path: Path, rounds: int) -> None:
    """Measure and write `benchmarks/results/attention.json`."""
    file, threads = GGUFFile.open(path), usable_threads()
    paged = OpenVINOEngine(file, threads=threads)
    with patch.object(openvino_engine, "PAGE", PAGE * 1000):  # no head is so wide: the other form
        rectangles = OpenVINOEngine(file, threads=threads)
    jobs: dict[str, list[Timed]] = {
        name: [batch(engine, lengths) for engine in (paged, rectangles)] for name, lengths in BATCHES.items()
    }
    jobs |= {
        f"a piece after {start:,} tokens": [chunk(engine, start) for engine in (paged, rectangles)] for start in STARTS
    }
    spent: dict[str, list[list[float]]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, sides in jobs.items():
            spent[name].append([seconds(work) / tokens for work, tokens in sides])
    rows = [row(name, np.array(spent[name][1:]), [tokens for _, tokens in jobs[name]]) for name in jobs]
    print(measuring.write("attention", {"file": path.name, "rounds": rounds, "rows": rows}).read_text())


def batch(engine: OpenVINOEngine, lengths: tuple[int, ...]) -> Timed:
    """A batch of texts of these lengths, and its tokens."""
    draw = np.random.default_rng(0)
    items = plain([draw.integers(0, 20_000, length).astype(np.int32) for length in lengths])
    return lambda: engine.pool(items), sum(lengths)


def chunk(engine: OpenVINOEngine, start: int) -> Timed:
    """The chunk of a long text that starts here, through the first group of layers, and its tokens."""
    layers = engine._groups[0]
    cut = packing.pieces(LENGTH, heads=engine._shape.heads, limits=engine._piece_limits(layers))
    begin, end = next(one for one in cut if one[0] >= start)
    text, draw = engine._attention.text(LENGTH, layers), np.random.default_rng(0)
    for side in getattr(text, "sides", []):
        values = draw.standard_normal(side.shape).astype(np.float32).view(np.uint32) >> 16
        ov.Tensor(values.astype(np.uint16), ov.Shape(side.shape), ov.Type.bf16).copy_to(side)
    states = draw.standard_normal((end - begin, engine._shape.hidden)).astype(np.float32)
    positions = rotary.positions(plain([np.zeros(LENGTH, np.int32)]))[..., begin:end]
    feed = text.feed(begin, end, packing.bucket(end - begin))
    work = openvino_engine._Work(positions, np.zeros(0, np.int64), range(1), feed)
    return lambda: engine._infer(states, work), end - begin


def seconds(work: Callable[[], object]) -> float:
    """Processor time of all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def row(name: str, spent: "np.ndarray[Any, np.dtype[np.float64]]", tokens: list[int]) -> dict[str, Any]:
    """Median seconds a token, tokens a run, and the median ratio."""
    paged, rectangles = np.median(spent, 0).tolist()
    return {
        "run": name,
        "paged": {"tokens": tokens[0], "s_per_token": paged},
        "rectangles": {"tokens": tokens[1], "s_per_token": rectangles},
        "ratio": float(np.median(spent[:, 0] / spent[:, 1])),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
