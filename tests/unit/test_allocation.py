from itertools import product

import numpy as np
import pytest

from nestling.errors import BuildError
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.search.allocation import EXACT, Landscape, Types, allocate, refine

T = QuantType
KINDS = (T.Q8_0, T.Q4_K, T.IQ3_S, T.IQ2_S)


def random_landscape(seed: int, *, tensors: int = 5, step: int = 1) -> Landscape:
    """Sizes that grow and errors that fall with the bits, as real ones do, but not in one proportion."""
    rng = np.random.default_rng(seed)
    names = [f"blk.{index}.attn_q.weight" for index in range(tensors)]
    weights = rng.integers(20, 400, tensors)
    sizes = {
        name: {kind: int(count * kind.bits_per_weight) * step for kind in KINDS}
        for name, count in zip(names, weights, strict=True)
    }
    errors = {name: {kind: float(rng.random() * 4.0**-kind.bits_per_weight) for kind in KINDS} for name in names}
    return Landscape(sizes, errors, {name: float(rng.random() * 100) for name in names})


def brute_force(landscape: Landscape, budget: int) -> float:
    costs = landscape.costs()
    mixes = [dict(zip(costs, kinds, strict=True)) for kinds in product(KINDS, repeat=len(costs))]
    return min(cost(landscape, mix) for mix in mixes if landscape.size(mix) <= budget)


def cost(landscape: Landscape, types: Types) -> float:
    costs = landscape.costs()
    return sum(costs[name][kind] for name, kind in types.items())


@pytest.mark.parametrize("seed", range(12))
def test_the_allocation_is_the_best_of_all(seed: int) -> None:
    landscape = random_landscape(seed, step=32)
    least = sum(min(row.values()) for row in landscape.sizes.values())
    most = sum(max(row.values()) for row in landscape.sizes.values())
    for budget in np.linspace(least, most + 1, 7).astype(int).tolist():
        found = landscape.best(budget)
        assert list(found) == list(landscape.sizes)
        assert landscape.size(found) <= budget
        assert cost(landscape, found) == pytest.approx(brute_force(landscape, budget), rel=1e-12)


def test_the_smallest_mix_fits_its_own_size_and_one_byte_less_is_refused() -> None:
    landscape = random_landscape(1)
    least = sum(min(row.values()) for row in landscape.sizes.values())
    assert landscape.size(landscape.best(least)) == least
    with pytest.raises(BuildError, match=rf"expected at least {least:,}, the smallest mix"):
        landscape.best(least - 1)


def test_sizes_too_large_for_the_table_stay_within_the_budget_and_use_it() -> None:
    """Sizes without a common divisor, far more of them than steps: rounded up, then what is left is spent."""
    rng = np.random.default_rng(3)
    sizes = {f"t{i}": {kind: int(rng.integers(1, 10**9) * kind.bits_per_weight) for kind in KINDS} for i in range(40)}
    costs = {name: {kind: 4.0**-kind.bits_per_weight * row[T.Q8_0] for kind in KINDS} for name, row in sizes.items()}
    budget = sum(row[T.Q4_K] for row in sizes.values())
    found = allocate(sizes, costs, budget)
    assert 0.995 * budget <= sum(sizes[name][kind] for name, kind in found.items()) <= budget
    assert sum(costs[n][k] for n, k in found.items()) < sum(costs[n][T.Q4_K] for n in sizes)


def test_kept_types_are_kept_and_paid_for() -> None:
    landscape = random_landscape(4)
    name = "blk.2.attn_q.weight"
    budget = sum(row[T.IQ3_S] for row in landscape.sizes.values()) * 2
    found = landscape.keeping({name: T.IQ2_S}).best(budget)
    assert found[name] is T.IQ2_S
    assert landscape.size(found) <= budget


class Real:
    """A world in which the true cost of a tensor is its error times a sensitivity that the landscape has wrong."""

    def __init__(self, landscape: Landscape, truth: dict[str, float]) -> None:
        self.errors, self.truth, self.types = landscape.errors, truth, Types()
        self.asked = 0

    def settle(self, types: Types) -> float:
        self.types = dict(types)
        return self.error({})

    def error(self, changes: Types) -> float:
        self.asked += 1
        types = self.types | changes
        return sum(self.truth[n] * self.errors[n][k] for n, k in types.items() if k is not EXACT)


@pytest.mark.parametrize("seed", range(8))
def test_refining_finds_what_the_estimate_got_wrong_and_never_makes_it_worse(seed: int) -> None:
    landscape = random_landscape(seed, tensors=6, step=32)
    rng = np.random.default_rng(100 + seed)
    truth = {name: one * float(10 ** rng.uniform(-1, 1)) for name, one in landscape.sensitivities.items()}
    budget = sum(row[T.IQ3_S] for row in landscape.sizes.values())
    start = landscape.best(budget)
    real = Real(landscape, truth)
    before = real.settle(start)
    found = refine(landscape, start, budget, trial=real, trials=200)
    assert landscape.size(found.types) <= budget
    assert found.error == pytest.approx(real.settle(found.types))
    assert found.error <= before
    best = brute_force(Landscape(landscape.sizes, landscape.errors, truth), budget)
    assert found.error <= best + 0.1 * (before - best) + 1e-12


@pytest.mark.parametrize("trials", [1, 5, 20])
def test_refining_keeps_to_its_trials(trials: int) -> None:
    landscape = random_landscape(2)
    budget = sum(row[T.IQ3_S] for row in landscape.sizes.values())
    real = Real(landscape, dict(landscape.sensitivities))
    told: list[int] = []
    found = refine(
        landscape, landscape.best(budget), budget, trial=real, trials=trials, progress=lambda done, _: told.append(done)
    )
    assert found.trials <= trials + 1
    assert real.asked <= 2 * trials + 2  # settling again what was found is not counted
    assert told == sorted(told)
