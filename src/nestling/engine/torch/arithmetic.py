"""The arithmetic of the matrix products: float32, bfloat16 (on a GPU), or int8 after a rotation.

An arithmetic packs matrices once and converts activations to the form that its product takes. Between products they
have its `dtype`; the residual stream is always float32. float16 is never used: states of this model family overflow it.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.rotation import Rotation
from nestling.engine.torch import products
from nestling.engine.torch.products import Quantized

Rows: TypeAlias = Tensor | Quantized
"""Activations in a product's form, (N, in), or a packed matrix, (out, in)."""


@dataclass(frozen=True, slots=True)
class FloatArithmetic:
    """Products in float32 or bfloat16."""

    name: ArithmeticName
    dtype: torch.dtype
    rotation: ClassVar[None] = None

    @property
    def bias_dtype(self) -> torch.dtype:
        """The type in which the product takes biases."""
        return self.dtype

    def pack(self, w: Tensor) -> Rows:
        """A matrix in the product's form: (out, in) float32 -> (out, in)."""
        return w.to(self.dtype)

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Rows:
        """RMSNorm: (N, D) float32, (D,) -> (N, D)."""
        return functional.rms_norm(x, x.shape[-1:], weight, eps).to(self.dtype)

    def rows(self, x: Tensor) -> Rows:
        """Attention's output in the product's form: (N, D) -> (N, D)."""
        return x

    def gated(self, both: Tensor) -> Rows:
        """SwiGLU, in place: (N, 2 F), gate and up concatenated -> (N, F)."""
        gate, up = both.chunk(2, -1)
        return functional.silu(gate, inplace=True).mul_(up)

    def times(self, x: Rows, w: Rows, bias: Tensor | None) -> Tensor:
        """The product: (N, in), (out, in) -> (N, out)."""
        return functional.linear(x, w, bias)


@dataclass(frozen=True, slots=True)
class Int8Arithmetic:
    """int8 per row x per channel after `rotation`, bfloat16 between products (float32 on a CPU, for tests).

    `by`: our kernels on a GPU, the same formulas in plain torch elsewhere. Shapes as in `FloatArithmetic`.
    """

    name: ClassVar[ArithmeticName] = ArithmeticName.INT8_ROWS
    bias_dtype: ClassVar[torch.dtype] = torch.float32
    dtype: torch.dtype
    rotation: Rotation
    by: products.Int8Products

    def pack(self, w: Tensor) -> Rows:
        """Quantized with one scale per row (output channel)."""
        return products.quantized(w)

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Rows:
        """RMSNorm, quantized to int8; its weight is folded into the matrices."""
        del weight
        return self.by.normed(x, eps)

    def rows(self, x: Tensor) -> Rows:
        """Quantized to int8."""
        return self.by.rows(x)

    def gated(self, both: Tensor) -> Rows:
        """SwiGLU, rotated and quantized to int8."""
        return self.by.gated(both)

    def times(self, x: Rows, w: Rows, bias: Tensor | None) -> Tensor:
        """int8 times int8, times both scales."""
        assert isinstance(x, Quantized)
        assert isinstance(w, Quantized)
        return self.by.times(x, w, bias, self.dtype)


Arithmetic = FloatArithmetic | Int8Arithmetic
