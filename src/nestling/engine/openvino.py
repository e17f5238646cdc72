"""The CPU engine: our own OpenVINO graph, packed batches, pooling outside the graph.

Float files run in float32, so that an F32 or F16 file answers as the original does. Quantized files run in int8 where
the processor has int8 dot products (AVX-512 VNNI, AVX2 VNNI, AMX), with bfloat16 between the products where it has
that; elsewhere (plain AVX2) the int8 weights are expanded group by group and multiplied in float32, which is slower and
a little more exact.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nestling.engine import batching, expanded, graph, int8, packing
from nestling.engine.adapters import Adapter
from nestling.engine.base import POOLS, Shape, TokenIds
from nestling.engine.low_rank import SideBySide
from nestling.engine.runtime import ov
from nestling.engine.weights import embedding_rows
from nestling.errors import EngineError
from nestling.gguf_io import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

TOKEN_BUDGET = 2048
"""Tokens that go through the graph at once; a longer text goes in pieces of at most so many."""
KEPT_SHAPES = 128
"""Kernels that are kept for shapes met before; unbounded, a server's memory grows with every new number of tokens."""
STAGES = {"FullyConnected": "matrix products", "FullyConnectedCompressed": "matrix products"} | dict.fromkeys(
    ("Subgraph", "ScaledDotProductAttention", "MatMul", "Softmax", "Gather", "Transpose"), "attention"
)
"""Which stage of a profile a node of the compiled graph belongs to, by its type; the others are the layers' rest."""
SCORE_BYTES = 1 << 28
"""Memory for the attention scores of a piece of a long text: with 16 heads, 2,048 tokens of the first piece."""


class OpenVINOEngine:
    """A GGUF file compiled for this processor."""

    name = "openvino"

    def __init__(
        self,
        file: GGUFFile,
        *,
        threads: int,
        pooling: Pooling = Pooling.MEAN,
        adapters: Sequence[Adapter] = (),
        profile: bool = False,
    ) -> None:
        self._file, self._shape, self._lock = file, Shape.of(file), threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._profiled = profile
        self._pooled, self._adapted = POOLS[pooling], bool(adapters)
        lanes = SideBySide(adapters).width if adapters else 0
        with expanded.store(file, adapters=[one.file for one in adapters], lanes=lanes) as store:
            model = graph.build(file, threads=threads, store=store, adapters=adapters)
        more = {"PERF_COUNT": True} if profile else {}
        self._request = _compiled(model, file, threads, INFERENCE_PRECISION_HINT=_between(file), **more)
        del model
        if isinstance(store, expanded.Mapped):
            self.pool([np.zeros(1, np.int32)], adapters=[0][: len(adapters)])  # the plugin makes its own copy now
            store.release()
            self._seconds.clear()

    def pool(self, sequences: Sequence[TokenIds], *, adapters: Sequence[int] = ()) -> Floats:
        """The final hidden states of each sequence, pooled: B sequences -> (B, D)."""
        pooled = np.empty((len(sequences), self._shape.hidden), np.float32)
        for batch, states in self._batches(sequences, adapters):
            began = time.perf_counter()
            pooled[batch] = self._pooled(states, np.array([len(sequences[index]) for index in batch], np.int64))
            self._seconds["pool"] += time.perf_counter() - began
        return pooled

    def profile(self) -> dict[str, float]:
        """Seconds by stage since loading; the graph's are shared out by what its nodes took.

        EngineError if it was not loaded with `profile`.
        """
        if not self._profiled:
            raise EngineError("no profile: load with profile=True")
        nodes: dict[str, float] = defaultdict(float)
        for node in self._request.profiling_info if self._request else []:
            nodes[STAGES.get(node.node_type, "rest of the layers")] += node.real_time.total_seconds()
        graph = {stage: self._seconds["graph"] * took / (sum(nodes.values()) or 1) for stage, took in nodes.items()}
        return {"embedding rows": self._seconds["embedding rows"], **graph, "pool": self._seconds["pool"]}

    def token_states(
        self, sequences: Sequence[TokenIds], *, adapters: Sequence[int] = ()
    ) -> Iterator[tuple[int, Floats]]:
        """The final hidden states of each sequence: yields (its place, (T, D)), longest first."""
        for batch, states in self._batches(sequences, adapters):
            ends = np.cumsum([len(sequences[index]) for index in batch])[:-1]
            yield from zip(batch, np.split(states, ends), strict=True)

    def _batches(self, sequences: Sequence[TokenIds], adapters: Sequence[int]) -> Iterator[tuple[list[int], Floats]]:
        """Run everything, a batch at a time: yields places and their states, one text after another, (N, D)."""
        for batch in batching.plan([len(ids) for ids in sequences], TOKEN_BUDGET):
            group, chosen = [sequences[index] for index in batch], [adapters[index] for index in batch if adapters]
            long = len(group[0]) > TOKEN_BUDGET
            yield batch, self._long(group[0], chosen) if long else self._group(group, chosen)

    def close(self) -> None:
        """Give the compiled model back."""
        with self._lock:
            self._request = None

    def _group(self, group: Sequence[TokenIds], adapters: Sequence[int]) -> Floats:
        lengths = [len(ids) for ids in group]
        packed = packing.side_by_side(lengths, memory=self._shape.memory)
        rows = np.repeat(np.array(adapters, np.int64), lengths if adapters else 0)
        return self._infer(np.concatenate(group), packed, rows, outputs=1)[0]

    def _long(self, ids: TokenIds, adapters: Sequence[int]) -> Floats:
        """One text in pieces, each of which sees the keys and values of those before it: (T,) -> (T, D)."""
        shape = self._shape
        states = np.empty((len(ids), shape.hidden), np.float32)
        past = np.zeros((len(ids), *shape.memory), np.float32)
        for start, stop in packing.pieces(
            len(ids), heads=shape.heads, most_tokens=TOKEN_BUDGET, score_bytes=SCORE_BYTES
        ):
            packed = packing.piece(start, stop, past=past)
            rows = np.repeat(np.array(adapters, np.int64), stop - start)
            states[start:stop], *new = self._infer(ids[start:stop], packed, rows, outputs=1 + 2 * shape.layers)
            past[start:stop] = np.stack(new, 1).reshape(stop - start, *shape.memory)
        return states

    def _infer(self, ids: TokenIds, packed: packing.Packed, adapters: packing.Index, *, outputs: int) -> list[Floats]:
        """Run the graph once; the first outputs, copied, so that the next run may overwrite its own.

        `adapters` is the adapter of every token, if there are adapters.
        """
        began, rows = time.perf_counter(), packing.room(len(ids))
        states = np.zeros((rows, self._shape.hidden), np.float32)
        states[: len(ids)] = embedding_rows(self._file, ids)
        inputs = [states, *packed.in_room(rows).inputs()]
        inputs += [np.pad(adapters, (0, rows - len(ids)))] if self._adapted else []
        with self._lock:
            if self._request is None:
                raise EngineError("the engine is closed")
            ready = time.perf_counter()
            self._request.infer(inputs)
            self._seconds["embedding rows"] += ready - began
            self._seconds["graph"] += time.perf_counter() - ready
            return [np.array(self._request.get_output_tensor(place).data[: len(ids)]) for place in range(outputs)]


class Observer:
    """The same file, answering with the sums of squares that an importance matrix is made of.

    Only attention sees which text a token is in, so the sums run over all tokens of all texts of a call.
    """

    def __init__(self, file: GGUFFile, *, threads: int, adapters: Sequence[Adapter] = ()) -> None:
        self._file, self._shape, self._adapters = file, Shape.of(file), len(adapters)
        model, self._names = graph.build_observed(file, threads=threads, adapters=adapters)
        self._request = _compiled(model, file, threads, INFERENCE_PRECISION_HINT="f32")

    def collect(self, sequences: Sequence[Sequence[int]]) -> dict[str, tuple[NDArray[np.float32], int]]:
        """Run the texts: matrix name -> (sum over tokens of the input's squares (W,), number of tokens).

        With adapters, the texts take them in turn, as they stand in the call.
        """
        ids = np.concatenate([np.asarray(one, np.int32) for one in sequences])
        packed = packing.side_by_side([len(one) for one in sequences], memory=self._shape.memory)
        rows = np.repeat(np.arange(len(sequences)) % max(self._adapters, 1), [len(one) for one in sequences])
        self._request.infer([embedding_rows(self._file, ids), *packed.inputs(), *([rows] if self._adapters else [])])
        first = 1 + 2 * self._shape.layers
        sums = [np.array(self._request.get_output_tensor(first + place).data) for place in range(len(self._names))]
        return {name: (row, len(ids)) for names, row in zip(self._names, sums, strict=True) for name in names}


def _between(file: GGUFFile) -> str:
    """The arithmetic between the matrix products: bfloat16 where they are int8 and the processor has it."""
    in_floats = any(info.kind.is_float for info in int8.matrices(file))
    has_it = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if has_it and not in_floats else "f32"


def _compiled(model: ov.Model, file: GGUFFile, threads: int, **more: str | bool) -> ov.InferRequest:
    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # or the threads of several processes would share the first processors
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": int8.group_of(file),
        "CPU_RUNTIME_CACHE_CAPACITY": KEPT_SHAPES,
        **more,
    }
    return ov.Core().compile_model(model, "CPU", properties).create_infer_request()
