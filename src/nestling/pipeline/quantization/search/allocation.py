"""Which type each tensor should have under a budget of bytes, so that the embedding suffers least.

Pure: what a type costs is measured by a `Trial` that the caller hands in, so that no engine is known here. Costs of
tensors are taken to add up, which holds to first order; `refine` then measures whole mixes and corrects the estimates.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import numpy as np

from nestling._util.progress import Progress, no_progress
from nestling.errors import BuildError
from nestling.formats.quant_types import QuantType

Types = dict[str, QuantType]
Sizes = Mapping[str, Mapping[QuantType, int]]
"""Tensor -> type -> bytes in the file."""
Costs = Mapping[str, Mapping[QuantType, float]]

EXACT = QuantType.F16
"""What stands for a tensor left as it is in the source."""
BUCKETS = 40_000
"""Steps into which the budget is divided for the exact search."""
TRUST = (1.0, 0.5)
"""Log-space damping of sensitivity updates: the full step, then half of it after a failed attempt."""
FLOOR = 0.1
"""A sensitivity measured inside a mix counts as at least this share of the one measured alone."""


class Trial(Protocol):
    """Measures the embedding's error: mean of 1 - cosine to the original over calibration texts."""

    def settle(self, types: Types) -> float:
        """The error of a whole mix, which later changes start from."""
        ...

    def error(self, changes: Types) -> float:
        """The error of the settled mix with some types changed."""
        ...


@dataclass(frozen=True, slots=True)
class Landscape:
    """The choice: `sizes` in bytes and `errors` (weighted squared error of the weights) of every tensor's types.

    `sensitivities` turn a tensor's error into the embedding's.
    """

    sizes: Sizes
    errors: Costs
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

    def best(self, budget: int) -> Types:
        """The mix with the least estimated error within `budget` bytes."""
        return allocate(self.sizes, self.costs(), budget)

    def keeping(self, kept: Types) -> "Landscape":
        """The same with the types of some tensors settled."""
        sizes = {name: {kept[name]: row[kept[name]]} if name in kept else row for name, row in self.sizes.items()}
        errors = {name: {kind: self.errors[name][kind] for kind in row} for name, row in sizes.items()}
        return replace(self, sizes=sizes, errors=errors)


def allocate(sizes: Sizes, costs: Costs, budget: int) -> Types:
    """The cheapest choice of a type for every tensor within `budget` bytes; a BuildError when there is none.

    A multiple-choice knapsack by dynamic programming (Dudzinski and Walukiewicz 1987), exact when the sizes are
    multiples of the budget's `BUCKETS`-th part. Others are rounded up to it; what that leaves over is then spent on
    single tensors.
    """
    least = sum(min(row.values()) for row in sizes.values())
    if least > budget:
        raise BuildError(f"a budget of {budget:,} bytes for the tensors: the smallest mix needs {least:,}")
    step = _step(sizes, budget)
    types = _search(sizes, costs, step, budget // step)
    if types is None:  # only rounded up do the sizes not fit
        types = {name: min(row, key=lambda kind: row[kind]) for name, row in sizes.items()}
    return _spend(types, sizes, costs, budget)


def _step(sizes: Sizes, budget: int) -> int:
    common = int(np.gcd.reduce([size for row in sizes.values() for size in row.values()]))
    return common * max(1, budget // (common * BUCKETS))


def _search(sizes: Sizes, costs: Costs, step: int, room: int) -> Types | None:
    """The cheapest choice whose sizes, rounded up to steps, take at most `room` of them."""
    best = np.zeros(room + 1)
    choices: list[tuple[str, list[QuantType], list[int], np.ndarray]] = []
    for name, row in sizes.items():
        kinds = list(row)
        taken = [-(-row[kind] // step) for kind in kinds]
        table = np.full((len(kinds), room + 1), inf)
        for place, (kind, steps) in enumerate(zip(kinds, taken, strict=True)):
            if steps <= room:
                table[place, steps:] = best[: room + 1 - steps] + costs[name][kind]
        choice = table.argmin(0)
        best = table[choice, np.arange(room + 1)]
        choices.append((name, kinds, taken, choice))
    if not np.isfinite(best[room]):
        return None
    types: Types = {}
    for name, kinds, taken, choice in reversed(choices):
        types[name] = kinds[choice[room]]
        room -= taken[choice[room]]
    return {name: types[name] for name in sizes}


def _spend(types: Types, sizes: Sizes, costs: Costs, budget: int) -> Types:
    """Change single tensors for the better, the largest gain first, while the budget allows."""
    while True:
        left = budget - sum(sizes[name][kind] for name, kind in types.items())
        gains = [
            (costs[name][types[name]] - costs[name][kind], name, kind)
            for name, row in sizes.items()
            for kind, size in row.items()
            if size - row[types[name]] <= left
        ]
        gain, name, kind = max(gains, key=lambda one: one[0])
        if gain <= 0:
            return types
        types = types | {name: kind}


@dataclass(frozen=True, slots=True)
class Refined:
    """A mix with its measured error, and how many measurements that took."""

    types: Types
    error: float
    trials: int


def refine(
    landscape: Landscape, start: Types, budget: int, *, trial: Trial, trials: int, progress: Progress = no_progress
) -> Refined:
    """Improve a mix with about `trials` measurements; the result is never worse than `start`.

    First, while that helps, sensitivities are remeasured inside the mix and the budget is reallocated. Then swaps are
    tried, one tensor growing and one shrinking, best estimate first. `progress` counts measurements.
    """
    found, vain = Refined(start, trial.settle(start), 1), 0
    while vain < len(TRUST) and found.trials + len(start) < trials:
        progress(found.trials, trials)
        local = _relearnt(landscape, found, trial, TRUST[vain])
        types = local.best(budget)
        spent = found.trials + len(start) + 1
        error = found.error if types == found.types else trial.settle(types)
        if error < found.error:
            landscape, found = local, Refined(types, error, spent)
        else:
            trial.settle(found.types)
            found, vain = replace(found, trials=spent), vain + 1
    progress(found.trials, trials)
    return _swapped(landscape, found, budget, trial=trial, trials=trials)


def _relearnt(landscape: Landscape, found: Refined, trial: Trial, trust: float) -> Landscape:
    """Sensitivities as they are inside the mix: what each tensor left exact would gain."""
    old, new = landscape.sensitivities, {}
    for name, kind in found.types.items():
        gain = (found.error - trial.error({name: EXACT})) / max(landscape.errors[name][kind], np.finfo(float).tiny)
        new[name] = float(old[name] ** (1 - trust) * max(gain, FLOOR * old[name]) ** trust)
    return replace(landscape, sensitivities=new)


def _swapped(landscape: Landscape, found: Refined, budget: int, *, trial: Trial, trials: int) -> Refined:
    costs = landscape.costs()
    refused: set[tuple[tuple[str, QuantType], ...]] = set()
    while found.trials < trials:
        changes = next((one for one in _swaps(landscape, costs, found.types, budget) if _key(one) not in refused), None)
        if changes is None:
            break
        error = trial.error(changes)
        found = replace(found, trials=found.trials + 1)
        if error < found.error:
            found = replace(found, types=found.types | changes, error=trial.settle(found.types | changes))
        else:
            refused.add(_key(changes))
    return found


def _key(changes: Types) -> tuple[tuple[str, QuantType], ...]:
    return tuple(changes.items())


def _swaps(landscape: Landscape, costs: Costs, types: Types, budget: int) -> Iterator[Types]:
    """Pairs of changes that fit the budget, the most promising first by the estimate."""
    sizes, room = landscape.sizes, budget - landscape.size(types)
    moves = [
        (costs[name][kind] - costs[name][types[name]], size - row[types[name]], name, kind)
        for name, row in sizes.items()
        for kind, size in row.items()
        if kind is not types[name]
    ]
    ups, downs = ([one for one in moves if (one[0] < 0) is up] for up in (True, False))
    pairs = [
        (up[0] + down[0], {up[2]: up[3], down[2]: down[3]})
        for up in ups
        for down in downs
        if up[2] != down[2] and up[1] + down[1] <= room
    ]
    yield from (changes for _, changes in sorted(pairs, key=lambda pair: pair[0]))
