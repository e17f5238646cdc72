"""What the matrix products are computed in: floats (float32, or bfloat16 on a card), or int8 after a rotation.

An arithmetic packs matrices once and turns rows into what its product takes. Between products rows are of its `dtype`,
the residual stream is always float32. float16 is never used: states of this model family overflow it.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.torch import products
from nestling.engine.torch.products import Quantized
from nestling.engine.torch.rotation import Rotation

Rows: TypeAlias = Tensor | Quantized
"""What a product takes, (N, in), or a packed matrix, (out, in)."""


@dataclass(frozen=True, slots=True)
class FloatArithmetic:
    """float32 or bfloat16 as it is."""

    name: ArithmeticName
    dtype: torch.dtype
    rotation: ClassVar[None] = None

    @property
    def bias_dtype(self) -> torch.dtype:
        """Of biases, as the product takes them."""
        return self.dtype

    def pack(self, w: Tensor) -> Rows:
        """A matrix as products take it: (out, in) float32 -> (out, in)."""
        return w.to(self.dtype)

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Rows:
        """RMSNorm: (N, D) float32, (D,) -> (N, D)."""
        return functional.rms_norm(x, x.shape[-1:], weight, eps).to(self.dtype)

    def rows(self, x: Tensor) -> Rows:
        """Attention's output as a product takes it: (N, D) -> (N, D)."""
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

    `by` computes: our kernels on a card, the same formulas in plain torch elsewhere. Shapes as in `FloatArithmetic`.
    """

    name: ClassVar[ArithmeticName] = ArithmeticName.INT8_ROWS
    bias_dtype: ClassVar[torch.dtype] = torch.float32
    dtype: torch.dtype
    rotation: Rotation
    by: products.Int8Products

    def pack(self, w: Tensor) -> Rows:
        """A scale for each row, which is an output channel."""
        return products.quantized(w)

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Rows:
        """RMSNorm, rounded to int8; the weight has gone into the matrices."""
        del weight
        return self.by.normed(x, eps)

    def rows(self, x: Tensor) -> Rows:
        """Rounded to int8."""
        return self.by.rows(x)

    def gated(self, both: Tensor) -> Rows:
        """SwiGLU, rotated and rounded to int8."""
        return self.by.gated(both)

    def times(self, x: Rows, w: Rows, bias: Tensor | None) -> Tensor:
        """Sums in int32, scaled."""
        assert isinstance(x, Quantized)
        assert isinstance(w, Quantized)
        return self.by.times(x, w, bias, self.dtype)


Arithmetic = FloatArithmetic | Int8Arithmetic
