"""The CPU engine: our own OpenVINO graph, packed batches, pooling outside the graph.

`choice` picks the arithmetic. In a rotated arithmetic the hidden states between layers are rotated; inputs and outputs
are not.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nestling._util.memory import give_back_freed
from nestling.engine import rotary
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.batching import TOKEN_BUDGET
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.openvino import packing, text_graph, weight_cache
from nestling.engine.openvino.choice import Choice, choose, named
from nestling.engine.openvino.compiling import compiled
from nestling.engine.openvino.layers import expanded
from nestling.engine.openvino.runtime import ov
from nestling.engine.protocol import Item, Positions, plain, pool_states
from nestling.engine.weights import input_rows, tensor
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_NODES = {
    "matrix products": ("FullyConnected", "FullyConnectedCompressed", "FullyConnectedQuantized"),
    "attention": ("Subgraph", "ScaledDotProductAttention", "MatMul", "Softmax", "Gather", "Transpose"),
    "rounding rows": ("FakeQuantize", "Reduce"),
    "reorders": ("Reorder", "Convert"),
}
STAGES = {node: stage for stage, nodes in _NODES.items() for node in nodes} | {
    "FullyConnectedQuantizedLegacy": "matrix products"
}
"""The profile's stage of each node type of the compiled graph; all others count as the rest of the layers.

Quantizing activations in groups is part of the matrix products, and SwiGLU is fused with them.
"""
SCORE_BYTES = 136 << 20
"""Memory for the attention scores of a prefill chunk: with 16 heads, 64 tokens that attend to 32,768."""
PIECE_BATCHES = 6
"""Most work of a prefill chunk, in batches: it bounds how long a query waits during a long text. At full width memory
already limits a chunk to about one. In a narrow model a limit of 6 takes 4 % more time for a long text than one of 12,
and a limit of 4 takes 11 % more, since every chunk copies the past."""
ATTENTION = 2.3
"""Multiplications of int8 matrix products that take as long as one of attention, measured at full width (attending to
8,192 past tokens takes as long as a token's matrix products)."""
PAST_BYTES, PAST_TOKENS = 320 << 20, 1 << 15
"""Memory for the KV cache of a text of `PAST_TOKENS` tokens; layers are grouped to stay within it."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One run of the graph: packing, positions, each row's adapter, the active layer groups and their KV cache."""

    packed: packing.Packed
    positions: Positions
    adapters: packing.Index
    groups: range
    past: Sequence[ov.Tensor]


class OpenVINOEngine:
    """A GGUF file compiled for this processor. `arithmetic`: that of its products; `reason`: why it was chosen.

    `record`: file that caches the reference's states (`self_check`), if the weights are in the weight cache.
    """

    name = "openvino"
    token_budget = TOKEN_BUDGET

    def __init__(
        self,
        file: GGUFFile,
        *,
        threads: int,
        pooling: Pooling = Pooling.MEAN,
        adapters: Sequence[Adapter] = (),
        profile: bool = False,
        arithmetic: ArithmeticName = ArithmeticName.AUTO,
    ) -> None:
        self._file, self._shape, self._lock = file, Hyperparameters.of(file), threading.Lock()
        self._rotary = rotary.Rotary(self._shape)
        self._seconds: dict[str, float] = defaultdict(float)
        self._profiled = profile
        self._pooling, self._adapted = pooling, bool(adapters)
        asked = Choice(arithmetic, "as asked")
        choice = choose(file, threads=threads) if arithmetic is ArithmeticName.AUTO else asked
        self._arithmetic, self.arithmetic = named(file, choice.name), choice.name
        self.reason = f"in {choice.name}: {choice.reason}"
        self._output_norm = tensor(file, "output_norm.weight")
        self._kept = ov.Type.bf16 if self._arithmetic.precision == "bf16" else ov.Type.f32
        self._nothing = [self._past(np.zeros(0, self._kept.to_dtype()))] * (2 * self._shape.layers)
        token_bytes = 2 * self._shape.kv_heads * self._shape.head_dim * self._kept.size
        self._groups = packing.layer_groups(
            self._shape.layers, layer_bytes=PAST_TOKENS * token_bytes, most_bytes=PAST_BYTES
        )
        with expanded(file, self._arithmetic, adapters=adapters, threads=threads) as products:
            model = text_graph.build(products, groups=self._groups, kept=self._kept)
        self._request = compiled(model, self._arithmetic, threads=threads, profile=profile)
        del model
        self.record: Path | None = None
        if isinstance(products.store, weight_cache.Mapped):
            self.record = products.store.record
            one = plain([np.zeros(1, np.int32)])
            self.pool(one, adapters=[0][: len(adapters)])  # the plugin copies the weights on its first run
            products.store.release()
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
        """Seconds by stage since loading; the graph's time is split in proportion to its nodes' times.

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
        """Free the compiled model."""
        with self._lock:
            self._request = None

    def _run(self, items: Sequence[Item], adapters: Sequence[int]) -> Floats:
        """Hidden states of a batch, items concatenated: -> (N, D)."""
        if len(items) == 1 and len(items[0]) > self.token_budget:
            return _drained(self.steps(items[0], adapters=adapters))
        lengths = [len(item) for item in items]
        packed = packing.side_by_side(lengths, heads=self._shape.kv_heads)
        rows = np.repeat(np.array(adapters, np.int64), lengths if adapters else 0)
        work = _Work(packed, rotary.positions(items), rows, range(len(self._groups)), self._nothing)
        return self._final(self._infer(self._embedded(items), work))

    def steps(self, item: Item, *, adapters: Sequence[int] = ()) -> Generator[float, None, Floats]:
        """One item in prefill chunks, each attending to the KV cache of those before it: T tokens -> (T, D).

        A group of layers runs all chunks before the next group starts, so that only one group's KV cache is held.
        Yields after each chunk; see `Resumable`.
        """
        states, positions = self._embedded([item]), rotary.positions([item])
        for place in range(len(self._groups)):
            yield from self._through(states, positions, adapters, place)
            if len(self._groups) > 1:
                self._shrink()
        return self._final(states)

    def _through(
        self, states: Floats, positions: Positions, adapters: Sequence[int], place: int
    ) -> Generator[float, None, None]:
        """Run all chunks of a long item through one group of layers, in place."""
        shape, layers = self._shape, self._groups[place]
        sides, before = slice(2 * layers.start, 2 * layers.stop), list(self._nothing)
        kv_shape = packing.padded_past(len(states)), shape.kv_heads, shape.head_dim
        kept = [np.zeros(kv_shape, self._kept.to_dtype()) for _ in self._nothing[sides]]
        limits = self._piece_limits(layers)
        for start, stop in packing.pieces(len(states), heads=shape.heads, limits=limits):
            if before[sides.start].shape[0] != packing.padded_past(start):
                give_back_freed()  # the plugin's buffers grow with the past and fragment the heap
            before[sides] = [self._past(one[: packing.padded_past(start)]) for one in kept]
            rows = np.repeat(np.array(adapters, np.int64), stop - start)
            packed, own = packing.piece(start, stop, heads=shape.kv_heads), positions[..., start:stop]
            work = _Work(packed, own, rows, range(place, place + 1), before)
            states[start:stop] = self._infer(states[start:stop], work, new=[one[start:stop] for one in kept])
            yield limits.work_of(stop - start, start) * len(layers) / shape.layers

    def _piece_limits(self, layers: range) -> packing.PieceLimits:
        """The limits of a chunk that runs through these layers."""
        work = PIECE_BATCHES * self.token_budget * self._shape.layers / len(layers)
        past_work = self._shape.layer_weights / (ATTENTION * 2 * self._shape.hidden)
        return packing.PieceLimits(self.token_budget, SCORE_BYTES, work, past_work)

    def _shrink(self) -> None:
        """Free the plugin's scratch memory: every layer keeps buffers of the text's length."""
        with self._lock:
            if self._request:
                self._request.get_compiled_model().release_memory()
        give_back_freed()

    def _infer(self, states: Floats, work: _Work, *, new: Sequence[Floats] = ()) -> Floats:
        """Run the graph once: (N, D) -> (N, D), copied out of the plugin's buffer.

        `new` receives the keys and values of the first active group.
        """
        rows = packing.bucket(len(states))
        inputs: list[NDArray[Any]] = [np.pad(states, ((0, rows - len(states)), (0, 0)))]
        cos_sin = self._rotary.cos_sin(work.positions)
        inputs += [np.pad(cos_sin, ((0, rows - len(cos_sin)), (0, 0))), *work.packed.padded(rows).inputs()]
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
        states, rotation = input_rows(self._file, items), self._arithmetic.rotation
        if rotation is not None:
            states = rotation.enter(states)
        self._seconds["embedding rows"] += time.perf_counter() - began
        return states

    def _final(self, states: Floats) -> Floats:
        """Undo the rotation, if any, and apply the final norm's scales, which a rotated graph leaves out."""
        rotation = self._arithmetic.rotation
        return states if rotation is None else rotation.leave(states) * self._output_norm

    def _past(self, values: Floats) -> ov.Tensor:
        """Past keys or values as an input tensor, not copied; an empty array is an empty past."""
        shape = (len(values), self._shape.kv_heads, self._shape.head_dim)
        return ov.Tensor(values.reshape(shape), ov.Shape(shape), self._kept)


def _drained(steps: Generator[float, None, Floats]) -> Floats:
    """Exhaust the generator and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            states: Floats = done.value
            return states
