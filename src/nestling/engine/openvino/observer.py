"""Run a GGUF file to collect the sums of squares of an importance matrix (imatrix)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling.engine import rotary
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.lora_lanes import StackedAdapters
from nestling.engine.openvino import text_graph
from nestling.engine.openvino.choice import unrotated
from nestling.engine.openvino.compiling import compiled
from nestling.engine.openvino.layers import Products
from nestling.engine.openvino.rectangles import Rectangles
from nestling.engine.weights import embedding_rows
from nestling.formats.gguf import GGUFFile

if TYPE_CHECKING:
    from nestling.engine.openvino.runtime import Node


class Observer:
    """Sums of squares of every product's input, over all tokens of all texts of a call.

    Never in a rotated arithmetic: an importance matrix describes the file's own channels.
    """

    def __init__(self, file: GGUFFile, *, threads: int, adapters: Sequence[Adapter] = ()) -> None:
        self._file, self._shape, self._adapters = file, Hyperparameters.of(file), len(adapters)
        squares: dict[tuple[str, ...], Node] = {}
        side, arithmetic = StackedAdapters(adapters) if adapters else None, unrotated(file)
        products = Products(file, self._shape, threads, arithmetic, squares, side)
        self._attention = Rectangles(self._shape)
        model = text_graph.build(products, self._attention.nodes(), groups=[range(self._shape.layers)])
        model.add_outputs([node.output(0) for node in squares.values()])
        self._names, self._request = list(squares), compiled(model, arithmetic, threads=threads)

    def collect(self, sequences: Sequence[Sequence[int]]) -> dict[str, tuple[NDArray[np.float32], int]]:
        """Run the texts: matrix name -> (sum over tokens of the input's squares (W,), number of tokens).

        With adapters, text i takes adapter i modulo their number.
        """
        ids = np.concatenate([np.asarray(one, np.int32) for one in sequences])
        lengths = [len(one) for one in sequences]
        rows = np.repeat(np.arange(len(sequences)) % max(self._adapters, 1), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        inputs = [embedding_rows(self._file, ids), rotary.Rotary(self._shape).cos_sin(positions)]
        feed = self._attention.batch(lengths, len(ids))
        self._request.infer([*inputs, *([rows] if self._adapters else []), *feed])
        first = 1 + 2 * self._shape.layers
        sums = [np.array(self._request.get_output_tensor(first + place).data) for place in range(len(self._names))]
        return {name: (row, len(ids)) for names, row in zip(self._names, sums, strict=True) for name in names}
