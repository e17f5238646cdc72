"""What a form of attention offers: its part of the graph, and the inputs of a run. Knows no kernel.

Inputs of a run are index arrays, then each layer's keys and values, in the order of the graph's inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nestling.engine.openvino.runtime import Node, ov

Index = NDArray[np.integer[Any]]
Feed = list[Index | ov.Tensor]
"""The inputs of attention for one run of the graph."""


class AttentionNodes(Protocol):
    """The nodes of one graph."""

    @property
    def inputs(self) -> list[Node]:
        """The graph's inputs for it, in order."""
        ...

    def cut(self, take: Callable[[Node], Node]) -> Self:
        """For a group of layers: `take` lets all rows of an input in, or none where the group is inactive."""
        ...

    def mixed(self, q: Node, k: Node, v: Node, layer: int) -> tuple[Node, Sequence[Node]]:
        """Causal grouped-query attention over each text and its past: the mixed values (N, D), and what to keep.

        `q` (N, heads, d), `k` and `v` (N, kv heads, d), with rotary positions applied. What is kept becomes outputs of
        the graph.
        """
        ...


class LongText(Protocol):
    """The KV cache of one long text for one group of layers."""

    def feed(self, start: int, stop: int, rows: int) -> Feed:
        """The inputs for the chunk [start, stop), which is padded to `rows`."""
        ...

    def keep(self, start: int, stop: int, request: ov.InferRequest) -> None:
        """After the run: keep the chunk's keys and values for the next chunks."""
        ...


class Attention(Protocol):
    """One form of attention for one model."""

    @property
    def kept(self) -> ov.Type:
        """Type of the KV cache."""
        ...

    @property
    def score_bytes(self) -> float:
        """Most memory for a chunk's scores, which bounds its size; infinite where the kernel does not hold them."""
        ...

    @property
    def spare_pairs(self) -> float:
        """See `Engine`."""
        ...

    @property
    def cost(self) -> float:
        """Multiplications of int8 matrix products that take as long as one of attention, measured at full width."""
        ...

    def nodes(self) -> AttentionNodes:
        """The nodes of a new graph."""
        ...

    def batch(self, lengths: Sequence[int], rows: int) -> Feed:
        """The inputs for whole texts, one after another, in `rows` rows of which the last are padding."""
        ...

    def text(self, length: int, layers: range) -> LongText:
        """Room for a long text's keys and values in these layers."""
        ...
