"""A GGUF file's matrices and norms as nodes of an OpenVINO graph.

Weights of float files keep their type. Those of quantized files become int8 with a scale per group (`int8_groups`);
the plugin multiplies them in int8 where the processor can, and dequantizes them group by group where it cannot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora_lanes import StackedAdapters
from nestling.engine.openvino import int8_groups, weight_cache
from nestling.engine.openvino.runtime import Node, op
from nestling.engine.weights import tensor
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
    squares: dict[tuple[str, ...], Node] | None = None
    adapters: StackedAdapters | None = None
    store: weight_cache.Store = field(default_factory=weight_cache.InMemory)
    gates: Mapping[int, Node] = field(default_factory=dict)

    @cached_property
    def group(self) -> int:
        """Values per scale of the int8 matrices."""
        return int8_groups.group_of(self.file)

    def vector(self, name: str) -> Node:
        """A vector of the file: (W,)."""
        return op.constant(tensor(self.file, name))

    def linear(self, x: Node, *names: str) -> Node:
        """X times one matrix, or several stacked into one product: (N, in) -> (N, sum of out)."""
        self._observe(x, names)
        return self._product(x, names)

    def each(self, x: Node, *names: str) -> list[Node]:
        """X times several matrices, one product each, so that later nodes fuse with it: (N, in) -> (N, out) each."""
        self._observe(x, names)
        return [self._product(x, (name,)) for name in names]

    def _observe(self, x: Node, names: tuple[str, ...]) -> None:
        if self.squares is not None:
            self.squares[names] = op.reduce_sum(op.multiply(x, x), ints(0), keep_dims=False)

    def _product(self, x: Node, names: Sequence[str]) -> Node:
        """With adapters, A is stacked below the matrices, which saves a pass over `x`."""
        if self.adapters is None:
            return _times(x, self._matrix(names))
        out = sum(self.file.tensors[name].shape[0] for name in names)
        product = _times(x, self._matrix(names, self.adapters.rows(names)))
        whole, low = op.variadic_split(product, integer(1), ints(out, len(names) * self.adapters.width)).outputs()
        gated = op.multiply(low, self.gates[len(names)])
        return op.add(whole, _times(gated, self._added(names, self.adapters.columns(names))))

    def _matrix(self, names: Sequence[str], below: Floats | None = None) -> Node:
        """Stacked matrices, with the adapters' A rows below, in one precision."""
        more = [] if below is None else [below]
        infos = [self.file.tensors[name] for name in names]
        if self._in_floats(names):
            stacked = np.concatenate([tensor(self.file, name) for name in names] + more)
            return _float_matrix(stacked, self._kinds(names))

        heights = [info.shape[0] for info in infos] + [len(rows) for rows in more]
        tops = np.cumsum([0, *heights]).tolist()

        def fill(whole: int8_groups.Groups) -> None:
            parts = [whole.rows(top, bottom) for top, bottom in pairwise(tops)]
            for name, part in zip(names, parts, strict=False):
                int8_groups.expand(self.file, name, part, threads=self.threads)
            for rows, part in zip(more, parts[len(names) :], strict=True):
                int8_groups.quantize(rows, part, threads=self.threads)

        return self._int8(tops[-1], infos[0].shape[-1], fill)

    def _added(self, names: Sequence[str], columns: Floats) -> Node:
        """The adapters' B, in floats: its input has been rounded to int8 once already."""
        kinds = self._kinds(names)
        return _float_matrix(columns, kinds if self._in_floats(names) else {QuantType.F16})

    def _int8(self, rows: int, width: int, fill: int8_groups.Fill) -> Node:
        return _int8_matrix(self.store.matrix(rows, width, self.group, fill))

    def _kinds(self, names: Sequence[str]) -> set[QuantType]:
        return {self.file.tensors[name].kind for name in names}

    def _in_floats(self, names: Sequence[str]) -> bool:
        every_float = all(kind.is_float for kind in self._kinds(names))
        return every_float or bool(self.file.tensors[names[0]].shape[-1] % self.group)

    def norm(self, x: Node, name: str) -> Node:
        """RMSNorm in the pattern that the plugin fuses into one operation."""
        mean = op.reduce_mean(op.multiply(x, x), op.constant(np.array([-1], np.int64)), keep_dims=True)
        root = op.sqrt(op.add(mean, op.constant(np.float32(self.shape.rms_eps))))
        return op.multiply(op.divide(x, root), self.vector(name))


def _times(x: Node, matrix: Node) -> Node:
    return op.matmul(x, matrix, transpose_a=False, transpose_b=True)


def _int8_matrix(groups: int8_groups.Groups) -> Node:
    """Groups and scales as one matrix, in the pattern that the plugin multiplies in int8; not copied."""
    values = op.convert(op.constant(groups.values, shared_memory=True), "f32")
    numbers = op.multiply(values, op.constant(groups.scales, shared_memory=True))
    return op.reshape(numbers, ints(len(groups.values), -1), special_zero=False)


def _float_matrix(rows: Floats, kinds: set[QuantType]) -> Node:
    if kinds == {QuantType.F16}:
        return op.convert(op.constant(rows.astype(np.float16)), "f32")
    return op.constant(rows)


def integer(value: int) -> Node:
    """One whole number."""
    return op.constant(np.int64(value))


def ints(*values: int) -> Node:
    """Several whole numbers: (n,)."""
    return op.constant(np.array(values, np.int64))
