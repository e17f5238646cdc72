"""What every engine promises, and the shape of the model that it runs.

An engine gets token ids and answers with the final-norm hidden states of each text, pooled: their mean over all of
the text's tokens, or the last one. The answer does not depend on the text's neighbours, their order or their lengths.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nestling.errors import GGUFError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats, last_pool, mean_pool

TokenIds = NDArray[np.int32]
POOLS: dict[Pooling, Callable[[Floats, NDArray[np.int64]], Floats]] = {
    Pooling.MEAN: mean_pool,
    Pooling.LAST: last_pool,
}
"""How the rows of several texts become a vector each: (N, D) states, (B,) lengths -> (B, D)."""
LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


class Engine(Protocol):
    """One loaded model. Calls from several threads are served one after another."""

    name: str

    def pool(self, sequences: Sequence[TokenIds]) -> Floats:
        """Pooled hidden states: B sequences of at least one id each -> (B, D) float32, length not normalised."""
        ...

    def token_states(self, sequences: Sequence[TokenIds]) -> Iterator[tuple[int, Floats]]:
        """Every token's hidden state, a text at a time: yields (place of the sequence, (T, D) float32), in any order.

        What was yielded is the caller's; nothing is computed further than it is asked for but for a batch.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the engine cannot be used afterwards."""
        ...


@runtime_checkable
class Profiled(Protocol):
    """An engine that knows where its time goes."""

    def profile(self) -> dict[str, float]:
        """Seconds by stage since loading; needs `profile` at loading."""
        ...


class AdaptedEngine(Protocol):
    """One base with several adapters; `adapters` says by its place which one each sequence takes, in any mixture."""

    name: str

    def pool(self, sequences: Sequence[TokenIds], *, adapters: Sequence[int]) -> Floats:
        """As `Engine.pool`."""
        ...

    def token_states(self, sequences: Sequence[TokenIds], *, adapters: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """As `Engine.token_states`."""
        ...

    def close(self) -> None:
        """As `Engine.close`."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """The hyperparameters of a Qwen2-style text tower, read from a GGUF file and checked against its tensors."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    rms_eps: float
    rope_theta: float
    context: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @classmethod
    def of(cls, file: GGUFFile) -> Self:
        """Read and check; a field or tensor that does not fit is a GGUFError naming it."""
        shape = cls(
            layers=_number(file, "block_count", int),
            hidden=_number(file, "embedding_length", int),
            heads=_number(file, "attention.head_count", int),
            kv_heads=_number(file, "attention.head_count_kv", int),
            feed_forward=_number(file, "feed_forward_length", int),
            rms_eps=_number(file, "attention.layer_norm_rms_epsilon", float),
            rope_theta=_number(file, "rope.freq_base", float),
            context=_number(file, "context_length", int),
            vocabulary=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        )
        if shape.hidden % shape.heads or shape.heads % shape.kv_heads or shape.head_dim % 2:
            raise GGUFError(
                f"{file.path}: {shape.hidden} units do not divide into {shape.heads}/{shape.kv_heads} heads"
            )
        for name, expected in shape.tensors().items():
            found = file.tensors[name].shape if name in file.tensors else None
            if found != expected:
                raise GGUFError(f"{file.path}: {name} should have shape {expected}, found {found or 'none'}")
        return shape

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a file of this shape must hold, with its shape in numpy order."""
        kv = self.kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (self.hidden,),
            "attn_q.weight": (self.hidden, self.hidden),
            "attn_q.bias": (self.hidden,),
            "attn_k.weight": (kv, self.hidden),
            "attn_k.bias": (kv,),
            "attn_v.weight": (kv, self.hidden),
            "attn_v.bias": (kv,),
            "attn_output.weight": (self.hidden, self.hidden),
            "ffn_norm.weight": (self.hidden,),
            "ffn_gate.weight": (self.feed_forward, self.hidden),
            "ffn_up.weight": (self.feed_forward, self.hidden),
            "ffn_down.weight": (self.hidden, self.feed_forward),
        }
        names = {f"blk.{index}.{name}": shape for index in range(self.layers) for name, shape in layer.items()}
        return {"token_embd.weight": (self.vocabulary, self.hidden), "output_norm.weight": (self.hidden,), **names}


def _number(file: GGUFFile, key: str, kind: type[Any]) -> Any:  # noqa: ANN401 - int or float, as asked
    full = f"{file.value('general.architecture')}.{key}"
    value = file.value(full)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise GGUFError(f"{file.path}: {full}={value!r} is not a sensible number")
    return kind(value)
