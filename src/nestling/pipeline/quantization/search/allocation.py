"""Bit allocation: the type of each tensor that minimizes the embedding's error within a budget of bytes.

The errors are measured by a `Trial` that the caller passes, so that no engine is known here. The errors of tensors are
assumed to add up, which holds to first order; `refine` measures whole mixes and corrects the estimates.
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
"""The type of a tensor that is not quantized."""
BUCKETS = 40_000
"""Resolution of the budget in the exact search."""
TRUST = (1.0, 0.5)
"""Log-space damping of sensitivity updates: the full step, then half of it after a failed attempt."""
FLOOR = 0.1
"""A sensitivity measured inside a mix counts as at least this share of the one measured alone."""


class Trial(Protocol):
    """Measures the embedding's error: mean of 1 - cosine to the original over calibration texts."""

    def settle(self, types: Types) -> float:
        """Measure a whole mix, and make it the base of later changes."""
        ...

    def error(self, changes: Types) -> float:
        """Measure the settled mix with some types changed."""
        ...


@dataclass(frozen=True, slots=True)
class Landscape:
    """The search space: `sizes` in bytes and weight `errors` (weighted squared) of every tensor in every type.

    A tensor's `sensitivity` is the factor from its weight error to the embedding's error.
    """

    sizes: Sizes
    errors: Costs
    sensitivities: Mapping[str, float]

    def size(self, types: Types) -> int:
        """Bytes of a mix."""
        return sum(self.sizes[name][kind] for name, kind in types.items())

    def costs(self) -> dict[str, dict[QuantType, float]]:
        """The estimated error of the embedding for every tensor and type."""
        return {
            name: {kind: self.sensitivities[name] * error for kind, error in row.items()}
            for name, row in self.errors.items()
        }

    def best(self, budget: int) -> Types:
        """The mix with the lowest estimated error within `budget` bytes."""
        return allocate(self.sizes, self.costs(), budget)

    def keeping(self, kept: Types) -> "Landscape":
        """The same search space with the types of some tensors fixed."""
        sizes = {name: {kept[name]: row[kept[name]]} if name in kept else row for name, row in self.sizes.items()}
        errors = {name: {kind: self.errors[name][kind] for kind in row} for name, row in sizes.items()}
        return replace(self, sizes=sizes, errors=errors)


def allocate(sizes: Sizes, costs: Costs, budget: int) -> Types:
    """The types with the lowest total cost within `budget` bytes; BuildError when no mix is small enough.

    A multiple-choice knapsack by dynamic programming (Dudzinski and Walukiewicz 1987), exact if all sizes are multiples
    of budget / `BUCKETS`. Other sizes are rounded up; the bytes left over are then spent on single tensors.
    """
    least = sum(min(row.values()) for row in sizes.values())
    if least > budget:
        raise BuildError(f"a budget of {budget:,} bytes for the tensors: expected at least {least:,}, the smallest mix")
    step = _step(sizes, budget)
    types = _search(sizes, costs, step, budget // step)
    if types is None:  # the sizes fit, but not rounded up
        types = {name: min(row, key=lambda kind: row[kind]) for name, row in sizes.items()}
    return _spend(types, sizes, costs, budget)


def _step(sizes: Sizes, budget: int) -> int:
    common = int(np.gcd.reduce([size for row in sizes.values() for size in row.values()]))
    return common * max(1, budget // (common * BUCKETS))


def _search(sizes: Sizes, costs: Costs, step: int, capacity: int) -> Types | None:
    """The cheapest types whose sizes, rounded up to steps, add up to at most `capacity` steps."""
    best = np.zeros(capacity + 1)
    choices: list[tuple[str, list[QuantType], list[int], np.ndarray]] = []
    for name, row in sizes.items():
        kinds = list(row)
        taken = [-(-row[kind] // step) for kind in kinds]
        table = np.full((len(kinds), capacity + 1), inf)
        for place, (kind, steps) in enumerate(zip(kinds, taken, strict=True)):
            if steps <= capacity:
                table[place, steps:] = best[: capacity + 1 - steps] + costs[name][kind]
        choice = table.argmin(0)
        best = table[choice, np.arange(capacity + 1)]
        choices.append((name, kinds, taken, choice))
    if not np.isfinite(best[capacity]):
        return None
    types: Types = {}
    for name, kinds, taken, choice in reversed(choices):
        types[name] = kinds[choice[capacity]]
        capacity -= taken[choice[capacity]]
    return {name: types[name] for name in sizes}


def _spend(types: Types, sizes: Sizes, costs: Costs, budget: int) -> Types:
    """Improve single tensors, the largest gain first, while the budget allows."""
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
    """A mix with its measured error, and the number of measurements."""

    types: Types
    error: float
    trials: int


def refine(
    landscape: Landscape, start: Types, budget: int, *, trial: Trial, trials: int, progress: Progress = no_progress
) -> Refined:
    """Improve a mix with about `trials` measurements; the result is never worse than `start`.

    As long as it helps, sensitivities are remeasured inside the mix and the budget is reallocated. Then swaps are
    tried (one tensor gets a larger type, another a smaller one), best estimate first. `progress` counts measurements.
    """
    found, vain = Refined(start, trial.settle(start), 1), 0
    while vain < len(TRUST) and found.trials + len(start) < trials:
        progress(found.trials, trials)
        local = _remeasured(landscape, found, trial, TRUST[vain])
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


def _remeasured(landscape: Landscape, found: Refined, trial: Trial, trust: float) -> Landscape:
    """Remeasure sensitivities inside the mix, by restoring each tensor to its exact weights."""
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
    """Pairs of changes within the budget, best estimate first."""
    sizes, capacity = landscape.sizes, budget - landscape.size(types)
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
        if up[2] != down[2] and up[1] + down[1] <= capacity
    ]
    yield from (changes for _, changes in sorted(pairs, key=lambda pair: pair[0]))
