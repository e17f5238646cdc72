"""The CPU engine: our own OpenVINO graph, packed batches, pooling outside the graph.

Float files run in float32, so that an F32 or F16 file answers as the original does. Quantized files run in int8 where
the processor has int8 dot products (AVX-512 VNNI, AVX2 VNNI, AMX); elsewhere (plain AVX2) the int8 weights are
expanded block by block and multiplied in float32, which is slower and a little more exact.
"""

import threading
from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from nestling.engine import batching, graph
from nestling.engine.base import Shape, TokenIds
from nestling.engine.weights import embedding_rows
from nestling.errors import EngineError
from nestling.gguf_io import GGUFFile
from nestling.vectors import Floats, mean_pool

TOKEN_BUDGET = 2048
"""Tokens that go through the graph at once (a longer text goes alone)."""


class OpenVINOEngine:
    """A GGUF file compiled for this processor."""

    name = "openvino"

    def __init__(self, file: GGUFFile, *, threads: int) -> None:
        self._file, self._shape, self._lock = file, Shape.of(file), threading.Lock()
        core = ov.Core()
        model = graph.build(file, threads=threads)
        self._request = core.compile_model(model, "CPU", _properties(threads)).create_infer_request()

    def pool(self, sequences: Sequence[TokenIds]) -> Floats:
        """Mean of the final hidden states of each sequence: B sequences -> (B, D)."""
        pooled = np.empty((len(sequences), self._shape.hidden), np.float32)
        for batch in batching.plan([len(ids) for ids in sequences], TOKEN_BUDGET):
            group = [sequences[index] for index in batch]
            states = self._states(group)
            pooled[batch] = mean_pool(states, np.array([len(ids) for ids in group], np.int64))
        return pooled

    def close(self) -> None:
        """Give the compiled model back."""
        with self._lock:
            self._request = None

    def _states(self, group: Sequence[TokenIds]) -> Floats:
        positions, rectangle, rows = graph.layout([len(ids) for ids in group])
        inputs = [embedding_rows(self._file, np.concatenate(group)), positions, rectangle, rows]
        with self._lock:
            if self._request is None:
                raise EngineError("the engine is closed")
            self._request.infer(inputs)
            return np.array(self._request.get_output_tensor(0).data)


class Observer:
    """The same file, answering with the sums of squares that an importance matrix is made of.

    Only attention sees which text a token is in, so the sums run over all tokens of all texts of a call.
    """

    def __init__(self, file: GGUFFile, *, threads: int) -> None:
        self._file = file
        model, self._names = graph.build_observed(file, threads=threads)
        self._request = ov.Core().compile_model(model, "CPU", _properties(threads)).create_infer_request()

    def collect(self, sequences: Sequence[Sequence[int]]) -> dict[str, tuple[NDArray[np.float32], int]]:
        """Run the texts: matrix name -> (sum over tokens of the input's squares (W,), number of tokens)."""
        positions, rectangle, rows = graph.layout([len(ids) for ids in sequences])
        ids = np.concatenate([np.asarray(one, np.int32) for one in sequences])
        self._request.infer([embedding_rows(self._file, ids), positions, rectangle, rows])
        sums = [np.array(self._request.get_output_tensor(place + 1).data) for place in range(len(self._names))]
        return {name: (row, len(ids)) for names, row in zip(self._names, sums, strict=True) for name in names}


def _properties(threads: int) -> dict[str, str | int]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": graph.GROUP,
    }
