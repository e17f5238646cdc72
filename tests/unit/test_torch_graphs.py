"""Small batches by graphs, on a CPU: a graph here is the function that it would record, called again.

So the padded rows, the mask and the copies are what a GPU takes; that its driver replays them rightly is found by the
trial at load, whose verdicts are tested. Doors by which a graph could answer wrongly: padding rows, items beside each
other, an input left over from the batch before, a batch that is too large, sums of squares, a driver that replays
something else, one that fails while recording or later.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny_gguf
from tests.unit.test_torch import BOUNDS, CPU, failing, loss, random_ids

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.lora import load_adapters
from nestling.engine.protocol import Item, Rows, plain
from nestling.engine.torch import graphs
from nestling.engine.torch.engine import TorchEngine
from nestling.engine.torch.graphs import SIZES, Graphs, Work, tried
from nestling.formats.gguf import GGUFFile
from nestling.models import local

FAST: Callable[[Work], float] = lambda work: 0.001  # noqa: E731


def again(work: Work) -> Work:
    return work


def alternately(*seconds: float) -> Callable[[Work], float]:
    """A clock: a graph's seconds, the packed path's, and so on."""
    left = list(seconds) * len(SIZES)
    return lambda _work: left.pop(0)


def graphed(engine: TorchEngine, capture: graphs.Capture = again, clock: Any = None) -> Graphs:
    assert engine._model
    graphs._chosen.clear()
    with torch.inference_mode():
        return tried(engine._model, CPU, engine.example(), capture=capture, clock=clock or alternately(1, 2))


def image_item() -> Item:
    places = np.zeros(20, bool)
    places[4:10] = True
    rows = Rows(places, np.random.default_rng(0).standard_normal((6, tiny_gguf.HIDDEN)).astype(np.float32))
    return Item(random_ids(20), np.stack([np.arange(20), np.arange(20) // 2, np.arange(20) % 5]).astype(np.int64), rows)


BATCHES: Sequence[list[Item]] = [
    plain([random_ids(1)]), plain([random_ids(16)]), plain([random_ids(17)]), [image_item(), Item(random_ids(7))],
    plain([random_ids(length, length) for length in (5, 5, 30, 1, 40)]), plain([random_ids(128)]),
    [Item(random_ids(9), pooled=slice(2, 5)), Item(random_ids(9))],
]  # fmt: skip


@pytest.mark.parametrize("arithmetic", [ArithmeticName.FLOAT32, ArithmeticName.INT8_ROWS])
def test_vectors_are_those_of_the_packed_path(tiny_models: dict[str, Path], arithmetic: ArithmeticName) -> None:
    """One batch after another through the same tensors, the largest first and again last."""
    engine = TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU, arithmetic=arithmetic)
    expected = [engine.pool(items) for items in BATCHES]
    engine.graphs = graphed(engine)
    assert list(engine.graphs.by_size) == list(SIZES)
    bound = BOUNDS[arithmetic] if arithmetic is ArithmeticName.INT8_ROWS else 1e-6
    for place in (*range(len(BATCHES))[::-1], *range(len(BATCHES))):
        assert loss(engine.pool(BATCHES[place]), expected[place]) <= bound, place
    [states] = engine.token_states(BATCHES[2])
    engine.graphs = None
    np.testing.assert_allclose(states, engine.token_states(BATCHES[2])[0], atol=1e-4 if bound == 1e-6 else 0.2)


def test_each_row_keeps_its_adapter() -> None:
    file = GGUFFile.open(local.resolve("starter-base:F16"))
    engine = TorchEngine(file, on=CPU, adapters=load_adapters(file))
    batches = [([1, 5, 9], [2, 0, 1]), ([15], [1]), ([15], [2])]
    items = [plain([random_ids(length, length) for length in lengths]) for lengths, _ in batches]
    expected = [engine.pool(one, adapters=adapters) for one, (_, adapters) in zip(items, batches, strict=True)]
    engine.graphs = graphed(engine)
    for one, (_, adapters), wanted in zip(items, batches, expected, strict=True):
        assert loss(engine.pool(one, adapters=adapters), wanted) <= 1e-6


def test_a_larger_batch_and_sums_of_squares_take_the_packed_path(tiny_models: dict[str, Path]) -> None:
    engine = TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU)
    large, small = plain([random_ids(129)]), plain([random_ids(9)])
    expected, sums = engine.pool(large), engine.squares(small)
    engine.graphs = graphed(engine)
    np.testing.assert_array_equal(engine.pool(large), expected)
    for name, row in engine.squares(small).items():
        np.testing.assert_array_equal(row, sums[name])


def nothing(_work: Work) -> Work:
    """A driver that replays no kernel."""
    return lambda: None


def stale(work: Work) -> Work:
    """One that replays its first answer."""
    kept: list[torch.Tensor] = []

    def replay() -> None:
        x = work.__closure__[-1].cell_contents  # type: ignore[index]
        assert isinstance(x, torch.Tensor)
        if kept:
            x.copy_(kept[0])
            return
        work()
        kept.append(x.clone())

    return replay


@pytest.mark.parametrize("capture", [nothing, stale])
def test_a_driver_that_replays_something_else_is_found(tiny_models: dict[str, Path], capture: graphs.Capture) -> None:
    engine = TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU)
    found = graphed(engine, capture)
    assert found.by_size == {}
    assert found.reason.startswith("0 of 4 graphs: 16 rows wrong (1 - cosine ")


def test_only_faster_graphs_are_used(tiny_models: dict[str, Path]) -> None:
    engine = TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU)
    found = graphed(engine, clock=alternately(0.001, 0.002, 0.003, 0.002))
    assert list(found.by_size) == [16, 64]
    assert found.reason.startswith("2 of 4 graphs: 16 rows 1.00 ms, packed 2.00 ms, 32 rows 3.00 ms, packed 2.00 ms")
    items = plain([random_ids(20)])
    packed = engine.pool(items)
    engine.graphs = found
    assert loss(engine.pool(items), packed) <= 1e-6, "in the next larger one"


def test_equal_cards_take_the_same_sizes(tiny_models: dict[str, Path]) -> None:
    """Whatever the second one's times; a wrong graph is not used there either."""
    engine = TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU)
    first = graphed(engine, clock=alternately(0.001, 0.002, 0.003, 0.002))
    assert engine._model
    with torch.inference_mode():
        second, third = (
            tried(engine._model, CPU, engine.example(), capture=capture, clock=alternately(2, 1))
            for capture in (again, nothing)
        )
    assert list(second.by_size) == list(first.by_size) == [16, 64]
    assert third.by_size == {}
    graphs._chosen.clear()


def test_a_driver_that_records_nothing_is_said(tiny_models: dict[str, Path]) -> None:
    engine = TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU)
    refused = RuntimeError("CUDA error: operation not permitted when stream is capturing.\nmore")
    found = graphed(engine, failing([refused], again))
    assert (found.by_size, found.reason) == (
        {}, "no graphs: CUDA error: operation not permitted when stream is capturing"
    )  # fmt: skip


def test_this_torch_records_as_we_ask_it_to() -> None:
    """What only a card runs: the names and the option exist."""
    assert "capture_error_mode" in inspect.signature(torch.cuda.graph.__init__).parameters
    assert callable(torch.cuda.CUDAGraph.replay)
    assert callable(torch.cuda.Stream.wait_stream)


def test_a_cpu_has_no_graphs(tiny_models: dict[str, Path]) -> None:
    engine = TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU)
    assert engine.graphs is None
    assert "graphs" not in engine.reason
