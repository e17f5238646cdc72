"""A Hadamard rotation folded into a model's weights, under which one int8 scale for a whole row is nearly exact.

It spreads the outliers of a few channels over all. It applies to the residual stream (norm scales are folded into the
next matrices first, since a norm without scales commutes with a rotation) and to each head's values (`attn_v`, its bias
and `attn_output`). Before it, channels get random signs, so that no pattern of channels is a row of H: any row of mean
square 1 then has the tails of a normal distribution. The signs are the same for all models, and free: they are folded
into the weights too. The input of `ffn_down` cannot be rotated for free; a format that needs it rotated does so itself.
Knows nothing of int8. Written in operations that numpy's arrays and torch's tensors share; the types say numpy's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Self

import numpy as np

from nestling.engine.hyperparameters import Hyperparameters
from nestling.vectors import Floats

Lift = Callable[[Floats], Floats]
"""Turns a constant into the kind of array that it is multiplied with: a tensor on a device, say."""
SMALLEST = 32
"""Smallest block: a smaller one would hardly spread outliers."""
NORM_OF = {
    "attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm", "ffn_gate": "ffn_norm", "ffn_up": "ffn_norm",
}  # fmt: skip
"""The norm whose scales are folded into each matrix."""


def as_it_is(constant: Floats) -> Floats:
    """The `Lift` of numpy."""
    return constant


@cache
def hadamard(size: int) -> Floats:
    """Sylvester's matrix, scaled to be orthogonal, its own inverse: (size, size), size a power of two."""
    h = np.ones((1, 1), np.float32)
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return h / np.float32(np.sqrt(size))


@cache
def signs(size: int) -> Floats:
    """Pseudo-random signs of `size` channels, always the same: (size,), 1 or -1."""
    return np.random.default_rng(size).choice(np.array([-1, 1], np.float32), size)


def spread(rows: Floats, block: int, lift: Lift = as_it_is) -> Floats:
    """Each block of a row times H, as the product of two smaller Hadamard matrices: (R, W) -> (R, W)."""
    first, second = _factors(block)
    inner = rows.reshape(-1, second) @ lift(hadamard(second))
    return (lift(hadamard(first)) @ inner.reshape(-1, first, second)).reshape(rows.shape)


def spread_columns(rows: Floats, block: int, lift: Lift = as_it_is) -> Floats:
    """H times each block of a column: (R, W) -> (R, W)."""
    first, second = _factors(block)
    inner = lift(hadamard(second)) @ rows.reshape(-1, second, rows.shape[1])
    return (lift(hadamard(first)) @ inner.reshape(-1, first, second * rows.shape[1])).reshape(rows.shape)


def _factors(block: int) -> tuple[int, int]:
    first = 1 << (block.bit_length() - 1) // 2
    return first, block // first


@dataclass(frozen=True, slots=True)
class Rotation:
    """Widths of the residual stream and of a head; `lift` for other arrays than numpy's."""

    hidden: int
    head: int
    lift: Lift = field(default=as_it_is, repr=False, compare=False)

    @classmethod
    def of(cls, shape: Hyperparameters, lift: Lift = as_it_is) -> Self:
        """For a model without `misfit`."""
        return cls(shape.hidden, shape.head_dim, lift)

    def enter(self, rows: Floats) -> Floats:
        """Rotate rows into the residual stream's basis: (R, D) -> (R, D)."""
        return self._turned(rows, self.hidden)

    def leave(self, rows: Floats) -> Floats:
        """The inverse of `enter`."""
        return spread(rows, _block(self.hidden), self.lift) * self.lift(signs(self.hidden))

    def inputs(self, kind: str, rows: Floats, norm: Floats | None) -> Floats:
        """Rows of a matrix (or of an adapter's A) for rotated inputs: (R, in) -> (R, in).

        `norm`: the scales (in,) of the norm before it (`NORM_OF`), which are folded into the matrix.
        """
        if norm is not None:
            return self.enter(rows * norm)
        return self._turned(rows, self.head) if kind == "attn_output" else rows

    def outputs(self, kind: str, columns: Floats) -> Floats:
        """A matrix (or a bias as one column, or an adapter's B) whose outputs are rotated: (out, W) -> (out, W)."""
        width = {"attn_v": self.head, "attn_output": self.hidden, "ffn_down": self.hidden}.get(kind)
        if width is None:
            return columns
        signed = columns * self.lift(np.tile(signs(width), len(columns) // width))[:, None]
        return spread_columns(signed, _block(width), self.lift)

    def _turned(self, rows: Floats, width: int) -> Floats:
        signed = rows * self.lift(np.tile(signs(width), rows.shape[1] // width))
        return spread(signed, _block(width), self.lift)


def mixes_outputs(kind: str) -> bool:
    """Whether `outputs` mixes the rows of this matrix, so that it cannot be converted chunk by chunk."""
    return kind in ("attn_v", "attn_output", "ffn_down")


def _block(width: int) -> int:
    return width & -width


def misfit(shape: Hyperparameters, *, inner: int) -> str | None:
    """Why a model of this shape cannot be rotated, with `ffn_down`'s input in blocks of `inner`; None if it can."""
    if shape.feed_forward % inner:
        return f"feed_forward_length {shape.feed_forward} is not a multiple of {inner}"
    for name, size in (("embedding_length", shape.hidden), ("head size", shape.head_dim)):
        if _block(size) < SMALLEST:
            return f"{name} {size} is not a multiple of {SMALLEST}"
    return None
