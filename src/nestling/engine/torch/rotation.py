"""The Hadamard rotation under which int8 per row and channel is nearly exact, folded into the weights.

It spreads the outliers of a few channels over all, so that one scale fits a row. It applies to the residual stream
(norm scales are folded into the next matrices first, since a norm without scales commutes with a rotation), to each
head's values (in `attn_v`, its bias and `attn_output`), and to the input of `ffn_down`, in blocks of 256, the only one
that costs time at every token. H is symmetric and orthogonal, its own inverse. Cost in the vector: docs/decisions.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from nestling.engine.hyperparameters import Hyperparameters

INNER = 256
"""Block of the rotation before `ffn_down`."""
SMALLEST = 64
"""Smallest block: a smaller one would hardly spread outliers."""
NORM_OF = {
    "attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm", "ffn_gate": "ffn_norm", "ffn_up": "ffn_norm",
}  # fmt: skip


def hadamard(size: int, device: torch.device | None = None) -> Tensor:
    """Sylvester's matrix, scaled to be orthogonal: (size, size) float32, size a power of two."""
    h = torch.ones(1, 1, device=device)
    while len(h) < size:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h / size**0.5


def rotate(x: Tensor, block: int) -> Tensor:
    """Each block of the last axis times H: (..., W) -> (..., W) float32."""
    parts = x.float().reshape(*x.shape[:-1], -1, block)
    return (parts @ hadamard(block, x.device)).reshape(x.shape)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Block sizes: of the residual stream and of a head."""

    hidden: int
    head: int

    @classmethod
    def of(cls, shape: Hyperparameters) -> Self:
        """For a model without `misfit`."""
        return cls(shape.hidden & -shape.hidden, shape.head_dim & -shape.head_dim)

    def into_residual(self, rows: Tensor) -> Tensor:
        """Rotate rows into the residual stream's basis, or back: (R, D) -> (R, D)."""
        return rotate(rows, self.hidden)

    def inputs(self, kind: str, w: Tensor, norms: dict[str, Tensor]) -> Tensor:
        """A matrix (or an adapter's A) for rotated inputs: (out, in) -> (out, in)."""
        if kind in NORM_OF:
            return rotate(w * norms[NORM_OF[kind]], self.hidden)
        return rotate(w, self.head if kind == "attn_output" else INNER)

    def outputs(self, kind: str, w: Tensor) -> Tensor:
        """A matrix, a bias or an adapter's B with rotated outputs: (out,) or (out, in) -> the same."""
        block = {"attn_v": self.head, "attn_output": self.hidden, "ffn_down": self.hidden}.get(kind)
        return w if block is None else rotate(w.movedim(0, -1), block).movedim(-1, 0).contiguous()


def misfit(shape: Hyperparameters) -> str | None:
    """Why a model of this shape cannot be rotated; None if it can."""
    if shape.feed_forward % INNER:
        return f"feed_forward_length {shape.feed_forward} is not a multiple of {INNER}"
    for name, size in (("embedding_length", shape.hidden), ("head size", shape.head_dim)):
        if size & -size < SMALLEST:
            return f"{name} {size} is not a multiple of {SMALLEST}"
    return None
