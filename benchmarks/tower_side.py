"""How a vision tower in its own process speaks with `images`. The standard library alone."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Grid = tuple[int, int]
"""Rows and columns of an image's patches."""


def answer(load: Callable[[], Callable[[Sequence[Grid]], Callable[[], object]]], *, without: int = 0) -> None:
    """Load a tower, say how long it took; answer lists of grids with seconds, an empty one with memory in bytes.

    What `load` returns makes the inputs of some grids, and of them the work whose time is taken. The memory is the
    most that was resident, `without` what was before the tower.
    """
    began = time.perf_counter()
    prepare = load()
    print(json.dumps(time.perf_counter() - began), flush=True)
    for line in sys.stdin:
        grids = [(rows, columns) for rows, columns in json.loads(line)]
        print(json.dumps(_seconds(prepare(grids)) if grids else memory("VmHWM") - without), flush=True)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def memory(field: str) -> int:
    """Resident bytes of this process: `VmRSS` now, `VmHWM` at the highest."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) * 1024
