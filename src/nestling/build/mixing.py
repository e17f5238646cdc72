"""Which type each tensor should have under a budget of bytes, so that the embedding suffers least.

Pure: what a type costs is measured by callables that the caller hands in, so that no engine is known here. Costs of
tensors are taken to add up, which holds to first order; `refine` then measures whole mixes and mends what did not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from nestling.errors import BuildError
from nestling.files import Progress, no_progress
from nestling.quants import QuantType

Types = dict[str, QuantType]
Options = Mapping[str, Mapping[QuantType, float]]
"""Tensor -> type -> a figure: bytes in the file, or cost."""
Measure = Callable[[Types], float]
"""The error of a whole mix: mean of 1 - cosine over calibration texts."""

BUCKETS = 40_000
"""Steps in which the budget is divided for the exact search: rounding up to one costs a file 0.1 % at most."""
DAMPING = 0.5
"""How far a tensor's sensitivity moves to the one newly measured, in logarithms."""
FLOOR = 0.05
"""A sensitivity measured inside a mix is never taken for less than this share of the one measured alone."""


@dataclass(frozen=True, slots=True)
class Landscape:
    """The choice: `sizes` in bytes and `errors` (weighted squared error of the tensor) of each tensor's types.

    `sensitivities` turn a tensor's error into the embedding's.
    """

    sizes: Mapping[str, Mapping[QuantType, int]]
    errors: Options
    sensitivities: Mapping[str, float]

    def size(self, types: Types) -> int:
        """Bytes of the tensors in these types."""
        return sum(self.sizes[name][kind] for name, kind in types.items())

    def costs(self) -> dict[str, dict[QuantType, float]]:
        """The estimated error of the embedding for every choice."""
        return {
            name: {kind: self.sensitivities[name] * error for kind, error in row.items()}
            for name, row in self.errors.items()
        }


def allocate(sizes: Mapping[str, Mapping[QuantType, int]], costs: Options, budget: int) -> Types:
    """The cheapest choice of a type for every tensor within `budget` bytes; a BuildError when there is none.

    Exact but for rounding sizes up to the budget's `BUCKETS`-th part (multiple-choice knapsack by dynamic programming,
    Dudzinski and Walukiewicz 1987); for budgets of fewer bytes it is exact.
    """
    least = sum(min(row.values()) for row in sizes.values())
    if least > budget:
        raise BuildError(f"a budget of {budget:,} bytes for the tensors: the smallest mix needs {least:,}")
    step = max(1, budget // BUCKETS)
    room = budget // step + len(sizes) // 2  # rounding to the nearest errs half a step a tensor; checked below
    while True:
        types = _search(sizes, costs, step, room)
        if types and (over := sum(sizes[name][kind] for name, kind in types.items()) - budget) <= 0:
            return types
        if types is None:
            return {name: min(row, key=lambda kind: row[kind]) for name, row in sizes.items()}
        room -= max(1, over // step)


def _search(sizes: Mapping[str, Mapping[QuantType, int]], costs: Options, step: int, room: int) -> Types | None:
    best = np.zeros(room + 1)
    choices = []
    for name, row in sizes.items():
        kinds = list(row)
        table = np.full((len(kinds), room + 1), inf)
        for place, kind in enumerate(kinds):
            taken = round(row[kind] / step)
            if taken <= room:
                table[place, taken:] = best[: room + 1 - taken] + costs[name][kind]
        choice = table.argmin(0)
        best = table[choice, np.arange(room + 1)]
        choices.append((name, kinds, choice))
    if not np.isfinite(best[room]):
        return None
    types: Types = {}
    left = room
    for name, kinds, choice in reversed(choices):
        types[name] = kinds[choice[left]]
        left -= round(sizes[name][types[name]] / step)
    return {name: types[name] for name in sizes}
