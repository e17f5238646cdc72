"""The CPU engine: our own OpenVINO graph, packed batches, pooling outside the graph.

`choice` picks the arithmetic. In a rotated arithmetic the hidden states between layers are rotated; inputs and outputs
are not.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nestling._util.memory import give_back_freed
from nestling.engine import rotary
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.batching import TOKEN_BUDGET
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.openvino import packing, processor, text_graph, weight_cache
from nestling.engine.openvino.arithmetic import Arithmetic
from nestling.engine.openvino.attention import Attention, Feed
from nestling.engine.openvino.choice import Choice, choose, named
from nestling.engine.openvino.compiling import compiled
from nestling.engine.openvino.layers import expanded
from nestling.engine.openvino.paged import PAGE, Paged
from nestling.engine.openvino.rectangles import Rectangles
from nestling.engine.openvino.runtime import has_paged_attention, ov
from nestling.engine.protocol import Item, Positions, plain, pool_states
from nestling.engine.weights import input_rows, tensor
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

if TYPE_CHECKING:
    from pathlib import Path

_NODES = {
    "matrix products": ("FullyConnected", "FullyConnectedCompressed", "FullyConnectedQuantized"),
    "attention": (
        "PagedAttentionExtension", "Subgraph", "ScaledDotProductAttention", "MatMul", "Softmax", "Gather", "Transpose",
    ),
    "rounding rows": ("FakeQuantize", "Reduce"),
    "reorders": ("Reorder", "Convert"),
}  # fmt: skip
STAGES = {node: stage for stage, nodes in _NODES.items() for node in nodes} | {
    "FullyConnectedQuantizedLegacy": "matrix products"
}
"""The profile's stage of each node type of the compiled graph; all others count as the rest of the layers.

Quantizing activations in groups is part of the matrix products, and SwiGLU is fused with them.
"""
PIECE_BATCHES = 6
"""Most work of a prefill chunk, in batches: it bounds how long a query waits during a long text. At full size it is at
most 1.4, since a chunk has no more tokens than a batch and runs through a quarter of the layers."""
PAST_BYTES, PAST_TOKENS = 320 << 20, 1 << 15
"""Memory for the KV cache of a text of `PAST_TOKENS` tokens; layers are grouped to stay within it."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One run of the graph: positions, each row's adapter, the active layer groups and attention's inputs."""

    positions: Positions
    adapters: packing.Index
    groups: range
    feed: Feed


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
        self._attention = _attention(self._shape, self._arithmetic)
        self.spare_pairs = self._attention.spare_pairs
        layer_bytes = PAST_TOKENS * 2 * self._shape.kv_heads * self._shape.head_dim * self._attention.kept.size
        self._groups = packing.layer_groups(self._shape.layers, layer_bytes=layer_bytes, most_bytes=PAST_BYTES)
        with expanded(file, self._arithmetic, adapters=adapters, threads=threads) as products:
            model = text_graph.build(products, self._attention.nodes(), groups=self._groups)
        self._request = compiled(model, self._arithmetic, threads=threads, profile=profile)
        del model
        # Every group runs once: the plugin copies the weights, and skipped attention has the shape of the run before.
        self.pool(plain([np.zeros(1, np.int32)]), adapters=[0][: len(adapters)])
        self._seconds.clear()
        self.record: Path | None = None
        if isinstance(products.store, weight_cache.Mapped):
            self.record = products.store.record
            products.store.release()

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
        adapter_rows = np.repeat(np.array(adapters, np.int64), lengths if adapters else 0)
        feed = self._attention.batch(lengths, packing.bucket(sum(lengths)))
        work = _Work(rotary.positions(items), adapter_rows, range(len(self._groups)), feed)
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
        layers = self._groups[place]
        text, limits = self._attention.text(len(states), layers), self._piece_limits(layers)
        for start, stop in packing.pieces(len(states), heads=self._shape.heads, limits=limits):
            rows, own = np.repeat(np.array(adapters, np.int64), stop - start), positions[..., start:stop]
            feed = text.feed(start, stop, packing.bucket(stop - start))
            work = _Work(own, rows, range(place, place + 1), feed)
            states[start:stop] = self._infer(states[start:stop], work, after=partial(text.keep, start, stop))
            yield limits.work_of(stop - start, start) * len(layers) / self._shape.layers

    def _piece_limits(self, layers: range) -> packing.PieceLimits:
        """The limits of a chunk that runs through these layers."""
        work = PIECE_BATCHES * self.token_budget * self._shape.layers / len(layers)
        past_work = self._shape.layer_weights / (self._attention.cost * 2 * self._shape.hidden)
        return packing.PieceLimits(self.token_budget, self._attention.score_bytes, work, past_work)

    def _shrink(self) -> None:
        """Free the plugin's scratch memory: every layer keeps buffers of the text's length."""
        with self._lock:
            if self._request:
                self._request.get_compiled_model().release_memory()
        give_back_freed()

    def _infer(
        self, states: Floats, work: _Work, *, after: Callable[[ov.InferRequest], None] = lambda _: None
    ) -> Floats:
        """Run the graph once: (N, D) -> (N, D), copied out of the plugin's buffer; `after` may read other outputs."""
        rows = packing.bucket(len(states))
        inputs: list[Any] = [np.pad(states, ((0, rows - len(states)), (0, 0)))]
        cos_sin = self._rotary.cos_sin(work.positions)
        inputs += [np.pad(cos_sin, ((0, rows - len(cos_sin)), (0, 0)))]
        inputs += [np.pad(work.adapters, (0, rows - len(states)))] if self._adapted else []
        inputs += [np.isin(range(len(self._groups)), work.groups).astype(np.int64)] if len(self._groups) > 1 else []
        with self._lock:
            if self._request is None:
                raise EngineError("the engine is closed")
            began = time.perf_counter()
            self._request.infer([*inputs, *work.feed])
            self._seconds["graph"] += time.perf_counter() - began
            after(self._request)
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


def _attention(shape: Hyperparameters, arithmetic: Arithmetic) -> Attention:
    """Paged where products are in bfloat16 and the processor has it; elsewhere the operation may crash the process."""
    if arithmetic.precision != "bf16":
        return Rectangles(shape)
    able = has_paged_attention() and processor.has_bf16(processor.kind()) and shape.head_dim % PAGE == 0
    return Paged(shape) if able else Rectangles(shape, ov.Type.bf16)


def _drained(steps: Generator[float, None, Floats]) -> Floats:
    """Exhaust the generator and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            states: Floats = done.value
            return states
