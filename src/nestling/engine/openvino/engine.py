"""The CPU engine: our own OpenVINO graph, packed batches, pooling outside the graph.

Float files run in float32, so that an F32 or F16 file answers as the original does. Quantized files run in int8 where
the processor has int8 dot products (AVX-512 VNNI, AVX2 VNNI, AMX), with bfloat16 between the products where it has
that; elsewhere (plain AVX2) the int8 weights are expanded group by group and multiplied in float32, which is slower and
a little more exact.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling._util.memory import give_back_freed
from nestling.engine import rotary
from nestling.engine.batching import TOKEN_BUDGET
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.lora_lanes import SideBySide
from nestling.engine.openvino import int8_groups, packing, text_graph, weight_cache
from nestling.engine.openvino.runtime import ov
from nestling.engine.protocol import Item, Positions, plain, pool_states
from nestling.engine.weights import embedding_rows, input_rows
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

KEPT_SHAPES = 128
"""Kernels that are kept for shapes met before; unbounded, a server's memory grows with every new number of tokens."""
STAGES = {"FullyConnected": "matrix products", "FullyConnectedCompressed": "matrix products"} | dict.fromkeys(
    ("Subgraph", "ScaledDotProductAttention", "MatMul", "Softmax", "Gather", "Transpose"), "attention"
)
"""Which stage of a profile a node of the compiled graph belongs to, by its type; the others are the layers' rest."""
SCORE_BYTES = 136 << 20
"""Memory for the attention scores of a piece of a long text: with 16 heads, 64 tokens that see 32,768."""
PAST_WORK = 8192
"""Earlier tokens that cost a token about as much to attend to as its matrix products: the measure of a piece's work."""
PAST_BYTES, PAST_TOKENS = 320 << 20, 1 << 15
"""Memory for the keys and values of a text of so many tokens: layers are in groups that keep within it."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One run of the graph: where its rows stand, the adapter of each, the groups that work, what they remember."""

    packed: packing.Packed
    positions: Positions
    adapters: packing.Index
    groups: range
    past: Sequence[ov.Tensor]


class OpenVINOEngine:
    """A GGUF file compiled for this processor."""

    name = "openvino"
    token_budget = TOKEN_BUDGET
    reason = "asked for by name"

    def __init__(
        self,
        file: GGUFFile,
        *,
        threads: int,
        pooling: Pooling = Pooling.MEAN,
        adapters: Sequence[Adapter] = (),
        profile: bool = False,
    ) -> None:
        self._file, self._shape, self._lock = file, Hyperparameters.of(file), threading.Lock()
        self._rotary = rotary.Rotary(self._shape)
        self._seconds: dict[str, float] = defaultdict(float)
        self._profiled = profile
        self._pooling, self._adapted = pooling, bool(adapters)
        lanes = SideBySide(adapters).width if adapters else 0
        between = _between(file)
        self._kept = ov.Type.bf16 if between == "bf16" else ov.Type.f32
        self._nothing = [self._past(np.zeros(0, self._kept.to_dtype()))] * (2 * self._shape.layers)
        token_bytes = 2 * self._shape.kv_heads * self._shape.head_dim * self._kept.size
        self._groups = packing.layer_groups(
            self._shape.layers, layer_bytes=PAST_TOKENS * token_bytes, most_bytes=PAST_BYTES
        )
        with weight_cache.store(file, adapters=[one.file for one in adapters], lanes=lanes) as store:
            model = text_graph.build(
                file, threads=threads, groups=self._groups, store=store, adapters=adapters, kept=self._kept
            )
        more = {"PERF_COUNT": True} if profile else {}
        self._request = _compiled(model, file, threads, INFERENCE_PRECISION_HINT=between, **more)
        del model
        if isinstance(store, weight_cache.Mapped):
            one = plain([np.zeros(1, np.int32)])
            self.pool(one, adapters=[0][: len(adapters)])  # the plugin makes its own copy of the weights now
            store.release()
            self._seconds.clear()

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        """Pooled hidden states of a batch: B items -> (B, D)."""
        states = self._run(items, adapters)
        began = time.perf_counter()
        pooled = pool_states(self._pooling, states, items)
        self._seconds["pool"] += time.perf_counter() - began
        return pooled

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        """Hidden states of a batch: B items -> B arrays of (T, D)."""
        return np.split(self._run(items, adapters), np.cumsum([len(item) for item in items])[:-1])

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

    def close(self) -> None:
        """Give the compiled model back."""
        with self._lock:
            self._request = None

    def _run(self, items: Sequence[Item], adapters: Sequence[int]) -> Floats:
        """The states of a batch, one item after another: -> (N, D)."""
        if len(items) == 1 and len(items[0]) > self.token_budget:
            return _drained(self.steps(items[0], adapters=adapters))
        lengths = [len(item) for item in items]
        packed = packing.side_by_side(lengths, heads=self._shape.kv_heads)
        rows = np.repeat(np.array(adapters, np.int64), lengths if adapters else 0)
        work = _Work(packed, rotary.positions(items), rows, range(len(self._groups)), self._nothing)
        return self._infer(self._embedded(items), work)

    def steps(self, item: Item, *, adapters: Sequence[int] = ()) -> Generator[float, None, Floats]:
        """One item in pieces, each of which sees the keys and values of those before it: T tokens -> (T, D).

        All pieces go through a group of layers before the next, so that only one group's keys and values are held.
        Yields after each piece; see `Resumable`.
        """
        states, positions = self._embedded([item]), rotary.positions([item])
        for place in range(len(self._groups)):
            yield from self._through(states, positions, adapters, place)
            if len(self._groups) > 1:
                self._shrink()
        return states

    def _through(
        self, states: Floats, positions: Positions, adapters: Sequence[int], place: int
    ) -> Generator[float, None, None]:
        """All pieces of a long item through one group of layers, in place."""
        shape, layers = self._shape, self._groups[place]
        sides, before = slice(2 * layers.start, 2 * layers.stop), list(self._nothing)
        room = packing.handed(len(states)), shape.kv_heads, shape.head_dim
        kept = [np.zeros(room, self._kept.to_dtype()) for _ in self._nothing[sides]]
        for start, stop in packing.pieces(
            len(states), heads=shape.heads, most_tokens=self.token_budget, score_bytes=SCORE_BYTES
        ):
            if before[sides.start].shape[0] != packing.handed(start):
                give_back_freed()  # the plugin's arrays grow with what is handed, and leave holes
            before[sides] = [self._past(one[: packing.handed(start)]) for one in kept]
            rows = np.repeat(np.array(adapters, np.int64), stop - start)
            packed, own = packing.piece(start, stop, heads=shape.kv_heads), positions[..., start:stop]
            work = _Work(packed, own, rows, range(place, place + 1), before)
            states[start:stop] = self._infer(states[start:stop], work, new=[one[start:stop] for one in kept])
            yield (stop - start) * len(layers) / shape.layers * (1 + start / PAST_WORK)

    def _shrink(self) -> None:
        """Give back what the plugin keeps for its own: every layer keeps arrays as long as the text was."""
        with self._lock:
            if self._request:
                self._request.get_compiled_model().release_memory()
        give_back_freed()

    def _infer(self, states: Floats, work: _Work, *, new: Sequence[Floats] = ()) -> Floats:
        """Run the graph once: (N, D) -> (N, D), copied, so that the next run may overwrite its own.

        `new` takes the keys and values of the first group that works.
        """
        rows = packing.room(len(states))
        inputs: list[NDArray[Any]] = [np.pad(states, ((0, rows - len(states)), (0, 0)))]
        turns = self._rotary.turns(work.positions)
        inputs += [np.pad(turns, ((0, rows - len(turns)), (0, 0))), *work.packed.in_room(rows).inputs()]
        inputs += [np.pad(work.adapters, (0, rows - len(states)))] if self._adapted else []
        inputs += [np.isin(range(len(self._groups)), work.groups).astype(np.int64)] if len(self._groups) > 1 else []
        with self._lock:
            if self._request is None:
                raise EngineError("the engine is closed")
            began = time.perf_counter()
            self._request.infer([*inputs, *work.past])
            self._seconds["graph"] += time.perf_counter() - began
            first = 1 + 2 * self._groups[work.groups[0]].start
            for place, one in enumerate(new, first):
                one[...] = self._request.get_output_tensor(place).data[: len(one)]
            return np.array(self._request.get_output_tensor(0).data[: len(states)])

    def _embedded(self, items: Sequence[Item]) -> Floats:
        began = time.perf_counter()
        states = input_rows(self._file, items)
        self._seconds["embedding rows"] += time.perf_counter() - began
        return states

    def _past(self, values: Floats) -> ov.Tensor:
        """Keys or values of earlier tokens as the graph takes them, not copied; none of them for an empty array."""
        shape = (len(values), self._shape.kv_heads, self._shape.head_dim)
        return ov.Tensor(values.reshape(shape), ov.Shape(shape), self._kept)


class Observer:
    """The same file, answering with the sums of squares that an importance matrix is made of.

    Only attention sees which text a token is in, so the sums run over all tokens of all texts of a call.
    """

    def __init__(self, file: GGUFFile, *, threads: int, adapters: Sequence[Adapter] = ()) -> None:
        self._file, self._shape, self._adapters = file, Hyperparameters.of(file), len(adapters)
        model, self._names = text_graph.build_observed(file, threads=threads, adapters=adapters)
        self._request = _compiled(model, file, threads, INFERENCE_PRECISION_HINT="f32")

    def collect(self, sequences: Sequence[Sequence[int]]) -> dict[str, tuple[NDArray[np.float32], int]]:
        """Run the texts: matrix name -> (sum over tokens of the input's squares (W,), number of tokens).

        With adapters, the texts take them in turn, as they stand in the call.
        """
        ids = np.concatenate([np.asarray(one, np.int32) for one in sequences])
        packed = packing.side_by_side([len(one) for one in sequences], heads=self._shape.kv_heads)
        rows = np.repeat(np.arange(len(sequences)) % max(self._adapters, 1), [len(one) for one in sequences])
        nothing = np.empty((0, self._shape.kv_heads, self._shape.head_dim), np.float32)
        positions = np.concatenate([np.arange(len(one)) for one in sequences])
        inputs = [embedding_rows(self._file, ids), rotary.Rotary(self._shape).turns(positions), *packed.inputs()]
        self._request.infer([*inputs, *([rows] if self._adapters else []), *[nothing] * (2 * self._shape.layers)])
        first = 1 + 2 * self._shape.layers
        sums = [np.array(self._request.get_output_tensor(first + place).data) for place in range(len(self._names))]
        return {name: (row, len(ids)) for names, row in zip(self._names, sums, strict=True) for name in names}


def _drained(steps: Generator[float, None, Floats]) -> Floats:
    """Run to the end without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            states: Floats = done.value
            return states


def _between(file: GGUFFile) -> str:
    """The arithmetic between the matrix products: bfloat16 where they are int8 and the processor has it."""
    in_floats = any(info.kind.is_float for info in int8_groups.matrices(file))
    has_it = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if has_it and not in_floats else "f32"


def _compiled(model: ov.Model, file: GGUFFile, threads: int, **more: str | bool) -> ov.InferRequest:
    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # or the threads of several processes would share the first processors
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": int8_groups.group_of(file),
        "CPU_RUNTIME_CACHE_CAPACITY": KEPT_SHAPES,
        **more,
    }
    return ov.Core().compile_model(model, "CPU", properties).create_infer_request()
