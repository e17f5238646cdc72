"""Our three Triton kernels for int8 rows: the product, (norm and) quantize, SwiGLU with rotation and quantize.

Plain functions here, compiled by `triton.jit` below; the launchers check shapes. What they compute is `products`'
`PlainProducts`. Tests compile them offline and interpret them on a CPU; tiles are timed on the GPU (`tune`).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nestling.engine.torch.products import INNER, LEVELS, Quantized

BLOCK_ROWS = 16
"""Rows of one program of the SwiGLU kernel: the least that a tensor core takes."""
WIDE = 4096
"""Widest row that four warps quantize."""
SIDE = 16
"""H of 256 is the Kronecker product of H of 16 with itself, which fits into registers."""
assert SIDE * SIDE == INNER


class Tiles(NamedTuple):
    """One tiling of the product: rows, channels and depth of a tile, warps, pipeline stages."""

    rows: int
    channels: int
    depth: int
    warps: int
    stages: int


TILES = (
    Tiles(128, 256, 128, 8, 3), Tiles(128, 128, 128, 8, 3), Tiles(128, 128, 64, 4, 4), Tiles(64, 128, 128, 4, 3),
    Tiles(32, 128, 128, 4, 4),
)  # fmt: skip
"""What `tune` chooses from."""


def _product(
    x: tl.tensor, w: tl.tensor, a: tl.tensor, b: tl.tensor, bias: tl.tensor, y: tl.tensor,
    rows: tl.tensor, channels: tl.tensor, depth: tl.tensor,
    BIAS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of y = (x w^T) a b + bias; `GROUP` bands of rows go together, so that they share channels in L2."""
    across = tl.cdiv(channels, C)
    band = tl.program_id(0) // (GROUP * across) * GROUP
    high = tl.minimum(tl.cdiv(rows, R) - band, GROUP)
    inside = tl.program_id(0) % (GROUP * across)
    row = (band + inside % high) * R + tl.arange(0, R)
    channel = inside // high * C + tl.arange(0, C)
    k = tl.arange(0, D)
    from_x = x + (row % rows)[:, None].to(tl.int64) * depth + k[None, :]
    from_w = w + (channel % channels)[None, :].to(tl.int64) * depth + k[:, None]
    total = tl.zeros((R, C), tl.int32)
    for start in range(0, depth, D):
        left = depth - start
        part_x = tl.load(from_x, mask=k[None, :] < left, other=0)
        part_w = tl.load(from_w, mask=k[:, None] < left, other=0)
        total = tl.dot(part_x, part_w, total)
        from_x += D
        from_w += D
    scaled = total.to(tl.float32) * tl.load(a + row % rows)[:, None] * tl.load(b + channel % channels)[None, :]
    if BIAS:
        scaled += tl.load(bias + channel % channels)[None, :]
    inside_y = (row < rows)[:, None] & (channel < channels)[None, :]
    tl.store(y + row[:, None].to(tl.int64) * channels + channel[None, :], scaled.to(tl.bfloat16), mask=inside_y)


def _quantize(
    x: tl.tensor, values: tl.tensor, scales: tl.tensor, width: tl.tensor, eps: tl.tensor,
    NORM: tl.constexpr, W: tl.constexpr, STEPS: tl.constexpr,
) -> None:  # fmt: skip
    """One row: RMSNorm without a weight if `NORM`, then absmax quantization."""
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, W)
    one = tl.load(x + row * width + place, mask=place < width, other=0.0).to(tl.float32)
    if NORM:
        one = one * tl.rsqrt(tl.sum(one * one) / width + eps)
    largest = tl.max(_size(one))
    steps = one * (STEPS / tl.maximum(largest, 1e-30))
    tl.store(values + row * width + place, _nearest(steps), mask=place < width)
    tl.store(scales + row, largest / STEPS)


def _nearest_int8(steps: tl.tensor) -> tl.tensor:
    """Round to the nearest int8, halves away from zero."""
    return (steps + tl.where(steps < 0, -0.5, 0.5)).to(tl.int8)


def _absolute(x: tl.tensor) -> tl.tensor:
    """|x|, infinity for NaN: a maximum skips NaN, but infinity propagates to the row's scale."""
    return tl.where(x == x, tl.abs(x), float("inf"))  # noqa: PLR0124 - false for NaN alone


def _rotated_block(
    both: tl.tensor, width: tl.tensor, row: tl.tensor, start: tl.tensor, rows: tl.tensor, h: tl.tensor, N: tl.constexpr
) -> tl.tensor:
    """SwiGLU of a block of 256 values of some rows, times H of 256 as two products with H of 16: -> (rows, 16, 16)."""
    high, low = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    place = both + row[:, None, None].to(tl.int64) * (2 * width) + start + high * 16 + low
    there = (row < rows)[:, None, None] & (high >= 0)
    gate = tl.load(place, mask=there, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=there, other=0.0).to(tl.float32)
    z = gate / (1 + tl.exp(-gate)) * up
    z = tl.dot(tl.reshape(z, (N * 16, 16)), h)
    z = tl.permute(tl.reshape(z, (N, 16, 16)), (0, 2, 1))
    z = tl.dot(tl.reshape(z, (N * 16, 16)), h)
    return tl.permute(tl.reshape(z, (N, 16, 16)), (0, 2, 1))


def _gate(
    both: tl.tensor, values: tl.tensor, scales: tl.tensor, rows: tl.tensor, width: tl.tensor,
    N: tl.constexpr, STEPS: tl.constexpr,
) -> None:  # fmt: skip
    """`N` rows of SwiGLU, rotated and quantized: one pass for each row's absmax, a second one to round."""
    row = tl.program_id(0) * N + tl.arange(0, N)
    both_bits = tl.arange(0, 16)[:, None] & tl.arange(0, 16)[None, :]
    odd = (both_bits ^ (both_bits >> 1) ^ (both_bits >> 2) ^ (both_bits >> 3)) & 1
    h = 0.25 - 0.5 * odd.to(tl.float32)
    largest = tl.zeros((N,), tl.float32)
    for start in range(0, width, 256):
        z = _size(_rotated(both, width, row, start, rows, h, N))
        largest = tl.maximum(largest, tl.max(tl.max(z, 2), 1))
    steps = STEPS / tl.maximum(largest, 1e-30)
    high, low = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    for start in range(0, width, 256):
        z = _nearest(_rotated(both, width, row, start, rows, h, N) * steps[:, None, None])
        place = values + row[:, None, None].to(tl.int64) * width + start + high * 16 + low
        tl.store(place, z, mask=(row < rows)[:, None, None] & (low >= 0))
    tl.store(scales + row, largest / STEPS, mask=row < rows)


_nearest, _size, _rotated = triton.jit(_nearest_int8), triton.jit(_absolute), triton.jit(_rotated_block)
product, quantize, gate = triton.jit(_product), triton.jit(_quantize), triton.jit(_gate)


class KernelProducts:
    """int8 arithmetic by these kernels; see `products.Int8Products`."""

    def __init__(self, tiles: Tiles = TILES[1]) -> None:
        self.tiles = tiles

    def normed(self, x: Tensor, eps: float) -> Quantized:
        """(N, D) float32 -> (N, D)."""
        return _quantized(x, eps, norm=True)

    def rows(self, x: Tensor) -> Quantized:
        """(N, D) -> (N, D)."""
        return _quantized(x, 0.0, norm=False)

    def gated(self, both: Tensor) -> Quantized:
        """(N, 2 F) -> (N, F), F a multiple of 256."""
        rows, width = both.shape[0], both.shape[1] // 2
        assert both.is_contiguous(), "the kernel reads rows one after another"
        assert width % INNER == 0, f"{width} is not a multiple of {INNER}"
        made = _empty_quantized(both, rows, width)
        grid = (triton.cdiv(rows, BLOCK_ROWS),)
        gate[grid](both, *made, rows, width, N=BLOCK_ROWS, STEPS=LEVELS, num_warps=4)
        return made

    def times(self, x: Quantized, w: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(N, in), (out, in) -> (N, out) bfloat16."""
        assert dtype is torch.bfloat16, dtype
        (rows, depth), channels, tiles = x.values.shape, w.values.shape[0], self.tiles
        assert x.values.is_contiguous(), "the kernel reads rows one after another"
        assert w.values.is_contiguous(), "the kernel reads rows one after another"
        y = torch.empty(rows, channels, dtype=dtype, device=x.values.device)
        grid = (triton.cdiv(rows, tiles.rows) * triton.cdiv(channels, tiles.channels),)
        product[grid](
            x.values, w.values, x.scales, w.scales, w.scales if bias is None else bias, y, rows, channels, depth,
            BIAS=bias is not None, R=tiles.rows, C=tiles.channels, D=tiles.depth, GROUP=8,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
        return y


def _quantized(x: Tensor, eps: float, *, norm: bool) -> Quantized:
    assert x.is_contiguous(), "the kernel reads rows one after another"
    made, block = _empty_quantized(x, *x.shape), triton.next_power_of_2(x.shape[1])
    quantize[(x.shape[0],)](
        x, *made, x.shape[1], eps, NORM=norm, W=block, STEPS=LEVELS, num_warps=4 if block <= WIDE else 8
    )
    return made


def _empty_quantized(like: Tensor, rows: int, width: int) -> Quantized:
    values = torch.empty(rows, width, dtype=torch.int8, device=like.device)
    return Quantized(values, torch.empty(rows, dtype=torch.float32, device=like.device))
