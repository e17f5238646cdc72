"""int8 products by row and channel: y[n, m] = a[n] b[m] sum_k x[n, k] w[m, k], and what quantizes x.

Two implementations of the same formulas: `PlainProducts` in torch operations, on any device, for tests and as the
specification; `KernelProducts` in our Triton kernels, on a GPU.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nestling.engine.rotation import Lift, spread

INNER = 256
"""Block of the rotation before `ffn_down`, the only one that costs time at every token."""
LEVELS = 127
"""Largest int8 value used: symmetric absmax quantization."""


class Quantized(NamedTuple):
    """A matrix in int8 with a scale a row: `values` (R, W) int8, `scales` (R,) float32."""

    values: Tensor
    scales: Tensor


class Int8Products(Protocol):
    """An implementation of the int8 formulas."""

    def normed(self, x: Tensor, eps: float) -> Quantized:
        """RMSNorm without a weight, quantized: (N, D) float32."""
        ...

    def rows(self, x: Tensor) -> Quantized:
        """Quantized: (N, D)."""
        ...

    def gated(self, both: Tensor) -> Quantized:
        """silu(gate) * up, rotated in blocks of `INNER`, quantized: (N, 2 F) -> (N, F)."""
        ...

    def times(self, x: Quantized, w: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The product: (N, in), (out, in), (out,) -> (N, out)."""
        ...


def lift(device: torch.device) -> Lift:
    """The rotation's constants as tensors on a device."""
    return lambda constant: torch.from_numpy(constant).to(device)


def quantized(x: Tensor) -> Quantized:
    """Symmetric absmax quantization to [-127, 127] per row; NaN and infinity propagate to the scale."""
    x = x.float()
    largest = x.abs().amax(-1)
    steps = LEVELS / largest.clamp(min=torch.finfo(torch.float32).tiny)
    return Quantized(torch.round(x * steps[:, None]).nan_to_num(0).to(torch.int8), largest / LEVELS)


class PlainProducts:
    """In torch operations; sums are accumulated in float32, exact up to 2^24."""

    def normed(self, x: Tensor, eps: float) -> Quantized:
        """See `Int8Products`."""
        return quantized(functional.rms_norm(x, x.shape[-1:], eps=eps))

    def rows(self, x: Tensor) -> Quantized:
        """See `Int8Products`."""
        return quantized(x)

    def gated(self, both: Tensor) -> Quantized:
        """See `Int8Products`."""
        gate, up = both.float().chunk(2, -1)
        return quantized(spread(functional.silu(gate) * up, INNER, lift(both.device)))

    def times(self, x: Quantized, w: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """See `Int8Products`."""
        product = (x.values.float() @ w.values.float().T) * x.scales[:, None] * w.scales
        return (product if bias is None else product + bias).to(dtype)
