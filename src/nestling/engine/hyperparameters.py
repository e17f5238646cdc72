"""The hyperparameters of a Qwen2-style text tower, read from a GGUF file and checked against its tensors."""

from dataclasses import dataclass
from typing import Any, Self

from nestling.errors import GGUFError
from nestling.formats.gguf import GGUFFile

LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
AXES = 3
"""Axes of an M-RoPE position: time, height, width."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Sizes and constants of the tower.

    `rope_sections`: how many of a head's rotary frequencies belong to each axis of a position (M-RoPE), in order; empty
    for a file without M-RoPE, which takes 1-D positions only.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    rms_eps: float
    rope_theta: float
    rope_sections: tuple[int, ...]
    context: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one layer."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * self.head_dim
        return attention + 3 * self.hidden * self.feed_forward

    @classmethod
    def of(cls, file: GGUFFile) -> Self:
        """Read and check. GGUFError naming the field or tensor that is missing or does not fit."""
        found = cls(
            layers=_number(file, "block_count", int),
            hidden=_number(file, "embedding_length", int),
            heads=_number(file, "attention.head_count", int),
            kv_heads=_number(file, "attention.head_count_kv", int),
            feed_forward=_number(file, "feed_forward_length", int),
            rms_eps=_number(file, "attention.layer_norm_rms_epsilon", float),
            rope_theta=_number(file, "rope.freq_base", float),
            rope_sections=_sections(file),
            context=_number(file, "context_length", int),
            vocabulary=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        )
        if found.hidden % found.heads or found.heads % found.kv_heads or found.head_dim % 2:
            raise GGUFError(
                f"{file.path}: {found.heads} heads, {found.kv_heads} key-value heads, hidden size {found.hidden}: "
                "expected an even head size, and each number to divide the next as kv heads, heads, hidden size"
            )
        for name, expected in found.tensors().items():
            shape = file.tensors[name].shape if name in file.tensors else None
            if shape != expected:
                raise GGUFError(f"{file.path}: {name}: expected shape {expected}, found {shape or 'no such tensor'}")
        return found

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a file with these hyperparameters must hold, with its shape in numpy order."""
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


def _sections(file: GGUFFile) -> tuple[int, ...]:
    field = file.metadata.get(f"{file.value('general.architecture')}.rope.dimension_sections")
    values = field.value if field else ()
    whole = isinstance(values, (list, tuple)) and all(isinstance(one, int) and 0 <= one < 1 << 16 for one in values)
    return tuple(values)[:AXES] if whole else ()


def _number(file: GGUFFile, key: str, kind: type[Any]) -> Any:  # noqa: ANN401 - int or float, as asked
    full = f"{file.value('general.architecture')}.{key}"
    value = file.value(full)
    if not isinstance(value, int if kind is int else (int, float)) or isinstance(value, bool):
        expected, found = "an integer" if kind is int else "a number", file.metadata[full].kind.name.lower()
        raise GGUFError(f"{file.path}: {full}={value!r:.80}: expected {expected}, found a {found}")
    if not 0 < value < 1 << 31:
        raise GGUFError(f"{file.path}: {full}={value!r}: expected a number above 0 and below 2^31")
    return kind(value)
