"""A GGUF file's matrices and norms as nodes of an OpenVINO graph, in one arithmetic."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.lora_lanes import StackedAdapters
from nestling.engine.openvino import weight_cache
from nestling.engine.openvino.arithmetic import Arithmetic
from nestling.engine.openvino.expansion import Expansion
from nestling.engine.openvino.grouping import matrices
from nestling.engine.openvino.nodes import integer, ints, number
from nestling.engine.openvino.runtime import Node, op
from nestling.engine.openvino.weight_formats.base import Arrays, Factor, WeightFormat, empty, part
from nestling.engine.openvino.weight_formats.floats import FloatFormat
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats


@dataclass(frozen=True)
class Products:
    """Makes graph nodes of one file. `squares`, if given, collects the sum of squares of every product's input.

    `gates`, with LoRA adapters: each row's gate (`lora_lanes`), by the number of stacked matrices.
    """

    file: GGUFFile
    shape: Hyperparameters
    threads: int
    arithmetic: Arithmetic
    squares: dict[tuple[str, ...], Node] | None = None
    adapters: StackedAdapters | None = None
    store: weight_cache.Store = field(default_factory=weight_cache.InMemory)
    gates: Mapping[int, Node] = field(default_factory=dict)

    def linear(self, x: Node, *names: str) -> Node:
        """X times one matrix, or several stacked into one product: (N, in) -> (N, sum of out)."""
        self._observe(x, names)
        held = self._format(names)
        return self._product(held.factor(x), held, names)

    def each(self, x: Node, *names: str) -> list[Node]:
        """X times several matrices, one product each, so that later nodes fuse with it: (N, in) -> (N, out) each."""
        self._observe(x, names)
        held = [self._format((name,)) for name in names]
        factors = {one: one.factor(x) for one in held}
        return [self._product(factors[one], one, (name,)) for one, name in zip(held, names, strict=True)]

    def bias(self, *names: str) -> Node:
        """Biases, concatenated: (sum of out,)."""
        return op.constant(np.concatenate([self._expansion.bias(name) for name in names]))

    def norm(self, x: Node, name: str) -> Node:
        """RMSNorm in the pattern that the plugin fuses into one operation."""
        mean = op.reduce_mean(op.multiply(x, x), ints(-1), keep_dims=True)
        root = op.sqrt(op.add(mean, number(self.shape.rms_eps)))
        return op.multiply(op.divide(x, root), op.constant(self._expansion.norm(name)))

    @cached_property
    def _expansion(self) -> Expansion:
        return Expansion(self.file, self.arithmetic.rotation, self.threads)

    def _observe(self, x: Node, names: tuple[str, ...]) -> None:
        if self.squares is not None:
            self.squares[names] = op.reduce_sum(op.multiply(x, x), ints(0), keep_dims=False)

    def _format(self, names: Sequence[str]) -> WeightFormat:
        return self.arithmetic.format_of([self.file.tensors[name] for name in names])

    def _product(self, x: Factor, held: WeightFormat, names: Sequence[str]) -> Node:
        """With adapters, A is stacked below the matrices, which saves a pass over `x`."""
        if self.adapters is None:
            return held.times(x, self._matrix(held, names))
        out = sum(self.file.tensors[name].shape[0] for name in names)
        product = held.times(x, self._matrix(held, names, self.adapters.rows(names)))
        whole, low = op.variadic_split(product, integer(1), ints(out, len(names) * self.adapters.width)).outputs()
        gated = op.multiply(low, self.gates[len(names)])
        return op.add(whole, self._added(gated, held, names))

    def _added(self, gated: Node, held: WeightFormat, names: Sequence[str]) -> Node:
        """Multiply by the adapters' B, in floats: the input has been quantized once already."""
        assert self.adapters is not None
        floats = held if isinstance(held, FloatFormat) else FloatFormat(QuantType.F16)
        heights = [self.file.tensors[name].shape[0] for name in names]
        parts = np.split(self.adapters.columns(names), np.cumsum(heights)[:-1])
        columns = np.concatenate([self._expansion.outputs(name, rows) for name, rows in zip(names, parts, strict=True)])
        matrix = empty(floats.spaces(*columns.shape))
        floats.fill(columns, matrix)
        return floats.times(floats.factor(gated), matrix)

    def _matrix(self, held: WeightFormat, names: Sequence[str], below: Floats | None = None) -> Arrays:
        """Stacked matrices, with the adapters' A rows below; only int8 is cached on disk."""
        more = [] if below is None else [below]
        heights = [self.file.tensors[name].shape[0] for name in names] + [len(rows) for rows in more]
        tops = np.cumsum([0, *heights]).tolist()

        def fill(whole: Arrays) -> None:
            parts = [part(whole, top, bottom) for top, bottom in pairwise(tops)]
            for name, into in zip(names, parts, strict=False):
                self._expansion.matrix(name, held, into)
            for rows, into in zip(more, parts[len(names) :], strict=True):
                self._expansion.rows(names[0], rows, held, into)

        store = weight_cache.InMemory() if isinstance(held, FloatFormat) else self.store
        return store.arrays(held.spaces(tops[-1], self.file.tensors[names[0]].shape[-1]), fill)


@contextmanager
def expanded(
    file: GGUFFile, arithmetic: Arithmetic, *, adapters: Sequence[Adapter] = (), threads: int
) -> Iterator[Products]:
    """A model's products, backed by the weight cache; a new cache file is kept only if the block succeeds."""
    side = StackedAdapters(adapters) if adapters else None
    used, most = [file, *(one.file for one in adapters)], _most_bytes(file, arithmetic, side.width if side else 0)
    with weight_cache.store(used, layout=arithmetic.key, most=most) as store:
        yield Products(file, Hyperparameters.of(file), threads, arithmetic, adapters=side, store=store)


def _most_bytes(file: GGUFFile, arithmetic: Arithmetic, lanes: int) -> int:
    """An upper bound of the int8 matrices' bytes."""
    spaces = [
        arithmetic.format_of([info]).spaces(info.shape[0] + lanes, info.shape[1])
        for info in matrices(file)
        if arithmetic.is_rounded([info])
    ]
    return sum(weight_cache.in_pages(space.size_bytes) for held in spaces for space in held)
