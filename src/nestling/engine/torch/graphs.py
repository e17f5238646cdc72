"""Small batches as recorded graphs: the device replays all kernels of all layers after one launch in place of hundreds.

A graph works on the tensors that it was recorded with. So a batch's rows are padded to one of `SIZES`, and attention is
masked over all of them in place of `attention`'s runs; padding rows attend to themselves alone, and no row to them.
Each size is used only if a trial at load finds its states equal to those of the packed path, and itself faster.

Does not know the text model's arithmetic; `cuda` records graphs of CUDA and ROCm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nestling.engine.torch.attention import Runs
from nestling.engine.torch.choice import fastest
from nestling.engine.torch.devices import Placement, first_line
from nestling.engine.torch.text import Batch, TextModel

SIZES = (16, 32, 64, 128)
"""Rows of a graph: a query, some queries."""
NEAR = 1e-4
"""Largest 1 - cosine of a mean state to the packed path's: bfloat16 sums in another order; a wrong graph is near 1."""
Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Records a function's kernels, and returns what replays them on the same tensors."""
Clock = Callable[[Work], float]
"""Seconds that a function takes."""


def cuda(work: Work) -> Work:
    """The `Capture` of CUDA and ROCm; RuntimeError if a kernel cannot be recorded."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are compiled, and libraries started, before anything is recorded
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another engine's thread may allocate meanwhile
        work()
    replay: Work = graph.replay
    return replay


@dataclass(frozen=True, slots=True)
class Graph:
    """A recorded size: the tensors that it works on, `x` (R, D), `mask` and those of `batch`, and what replays it."""

    x: Tensor
    mask: Tensor
    batch: Batch
    replay: Work

    @classmethod
    def recorded(cls, model: TextModel, like: Batch, size: int, capture: Capture) -> "Graph":
        """All layers over `size` rows, with or without adapters as in `like`."""
        x = torch.zeros(size, model.shape.hidden, device=like.cos.device)
        cos, sin = (torch.ones(size, *side.shape[1:], device=x.device) for side in (like.cos, like.sin))
        gates = None if like.gates is None else torch.zeros(size, like.gates.shape[1], device=x.device)
        whole = mask([], size, x.device)
        batch = Batch(whole, cos, sin, gates, None)

        def work() -> None:
            for layer in model.layers:
                model.run(x, layer, batch, size)

        return cls(x, whole, batch, capture(work))

    def run(self, x: Tensor, batch: Batch) -> Tensor:
        """States before the final norm, a view of this graph's own tensor: (N, D), N at most R."""
        assert isinstance(batch.runs, Runs)
        rows = len(x)
        self.x[rows:] = 0
        self.mask.copy_(mask(batch.runs.lengths, len(self.x), torch.device("cpu")))
        for ours, theirs in ((self.x, x), (self.batch.cos, batch.cos), (self.batch.sin, batch.sin)):
            ours[:rows] = theirs
        if self.batch.gates is not None:
            self.batch.gates[:rows] = batch.gates
        self.replay()
        return self.x[:rows]


def mask(lengths: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Which rows each row attends to: its item's, none later; (size, size) bool. Padding rows are items of one row."""
    whole = [*lengths, *[1] * (size - sum(lengths))]
    item = np.repeat(np.arange(len(whole)), whole)
    same = (item[:, None] == item) & np.tri(size, dtype=bool)
    return torch.from_numpy(same).to(device)


@dataclass(frozen=True, slots=True)
class Graphs:
    """The graphs that passed their trial, by size, and `reason`: which, or why none."""

    by_size: dict[int, Graph]
    reason: str

    def states(self, x: Tensor, batch: Batch) -> Tensor | None:
        """States before the final norm: (N, D) -> (N, D); None for a batch that no graph takes."""
        size = next((size for size in self.by_size if size >= len(x)), None)
        return None if size is None or batch.squares is not None else self.by_size[size].run(x, batch)


def tried(model: TextModel, on: Placement, like: Batch, *, capture: Capture, clock: Clock | None = None) -> Graphs:
    """Record every size, and keep those that pass their trial. `like`: an item of the most rows, with an adapter.

    Replicas on equal cards take the sizes that the first of them found, so that their vectors have the same bits.
    """
    clock, found, said = clock or partial(fastest, on=on), dict[int, Graph](), list[str]()
    kind = on.name, model.shape, model.arithmetic.name, like.gates is not None
    try:
        for size in _chosen.get(kind, SIZES):
            graph = Graph.recorded(model, like, size, capture)
            equal, faster, why = _trial(model, graph, like, clock)
            said.append(f"{size} rows {why}")
            if equal and (faster or kind in _chosen):
                found[size] = graph
    except RuntimeError as error:
        return Graphs({}, f"no graphs: {first_line(error)}")
    _chosen.setdefault(kind, tuple(found))
    return Graphs(found, f"{len(found)} of {len(SIZES)} graphs: {', '.join(said)}")


_chosen: dict[tuple[object, ...], tuple[int, ...]] = {}
"""By card, shape, arithmetic and whether there are adapters: the sizes that passed in this process."""


def _trial(model: TextModel, graph: Graph, like: Batch, clock: Clock) -> tuple[bool, bool, str]:
    """Compare a graph with the packed path, twice, so that a stale input is found; then their times: equal, faster."""
    size = len(graph.x)
    for lengths in ([size // 2, size // 4 + 1], [size]):
        x, batch = _random(model, like, lengths)
        expected = _packed(model, x.clone(), batch)
        if (lost := _loss(graph.run(x, batch), expected, lengths)) > NEAR:
            return False, False, f"wrong (1 - cosine {lost:.1e})"
    took, packed = clock(lambda: _ignore(graph.run(x, batch))), clock(lambda: _ignore(_packed(model, x.clone(), batch)))
    return True, took < packed, f"{took * 1e3:.2f} ms, packed {packed * 1e3:.2f} ms"


def _ignore(_: Tensor) -> None:
    """The states of a timed run."""


def _packed(model: TextModel, x: Tensor, batch: Batch) -> Tensor:
    for layer in model.layers:
        model.run(x, layer, batch, len(x))
    return x


def _random(model: TextModel, like: Batch, lengths: Sequence[int]) -> tuple[Tensor, Batch]:
    """Rows of the embedding table at random, at other positions for another number of rows."""
    rows, device = sum(lengths), like.cos.device
    ids = torch.from_numpy(np.random.default_rng(rows).integers(0, len(model.table), rows)).to(device)
    cos, sin = (side.roll(rows, 0)[:rows] for side in (like.cos, like.sin))
    gates = None if like.gates is None else like.gates[:rows]
    return model.embedded(ids), replace(like, runs=Runs.of(lengths, device), cos=cos, sin=sin, gates=gates)


def _loss(found: Tensor, expected: Tensor, lengths: Sequence[int]) -> float:
    """The worst 1 - cosine of an item's mean state; 2 for states that are not finite."""
    means = [torch.stack([part.mean(0) for part in rows.split(list(lengths))]).double() for rows in (found, expected)]
    lost = 1 - functional.cosine_similarity(*means)
    return float(lost.nan_to_num(2).max())
