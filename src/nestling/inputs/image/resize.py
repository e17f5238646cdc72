"""The resize of the original model's image processor: torchvision's antialiased bicubic on uint8, byte for byte.

Pure numpy: pixels in, pixels out. The kernel is Pillow's algorithm with 16-bit weights (torchvision 0.29,
`upsample_bicubic2d_aa` on uint8): width first, then height, each rounded to bytes. Pillow's own resize cannot be used:
its weights have 22 bits and the order of its passes depends on its version.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.errors import ImageError
from nestling.formats.tower_shape import MAX_PIXELS, MIN_PIXELS

Pixels = NDArray[np.uint8]
FACTOR = 28
"""Both sides are multiples of it: patches of 14 pixels, 2x2 patches per token."""
MOST_ELONGATED = 200
"""The largest aspect ratio."""
BLOCK = 16
"""Output columns or rows per matrix product; their inputs overlap, so some weights are zero."""
ONE_THREAD = 1 << 18
"""The most multiplications of a product that OpenBLAS computes in one thread. Its other threads would spin while they
wait for busy processors: on a loaded machine a large image took 20 s instead of 1 s."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Outputs [start, stop) as a product of inputs [first, last) with weights (stop - start, last - first)."""

    start: int
    stop: int
    first: int
    last: int
    weights: NDArray[np.float64]


def smart_size(
    height: int, width: int, *, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The size to resize to: (h, w) -> (h, w), multiples of 28, at most `max_pixels` or else 28x28.

    Qwen2-VL's `smart_resize`, in float64 with Python's round (half to even). ImageError for a side of 0, or for one
    side more than 200 times the other.
    """
    if min(height, width) < 1:
        raise ImageError(f"{width}x{height} pixels: expected at least 1x1", index=0)
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ImageError(f"{width}x{height} pixels: one side is more than {MOST_ELONGATED} times the other", index=0)
    high, wide = (round(side / FACTOR) * FACTOR for side in (height, width))
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high, wide = (max(FACTOR, math.floor(side / shrink / FACTOR) * FACTOR) for side in (height, width))
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high, wide = (math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width))
    return high, wide


def resized(strips: Iterable[Pixels], size: tuple[int, int], to: tuple[int, int]) -> Pixels:
    """Resize an image from strips of rows, (h, W, 3) each: from `size` (H, W) to `to` (h, w) -> (h, w, 3) uint8.

    One strip is held at a time, never the full-size image.
    """
    columns = list(_blocks(size[1], to[1]))
    narrow = np.empty((size[0], to[1], 3), np.uint8)
    done = 0
    for strip in strips:
        narrow[done : done + len(strip)] = _across(strip, columns) if size[1] != to[1] else strip
        done += len(strip)
    assert done == size[0], "the strips add up to the image"
    return _down(narrow, to[0]) if size[0] != to[0] else narrow


def _across(strip: Pixels, columns: list[_Block]) -> Pixels:
    """Resize rows horizontally: (H, W, 3) -> (H, w, 3)."""
    out = np.empty((len(strip), columns[-1].stop, 3), np.uint8)
    for one in columns:
        slab = strip[:, one.first : one.last].transpose(0, 2, 1).astype(np.float64)
        mixed = _bytes(_product(slab.reshape(-1, slab.shape[2]), one.weights.T))
        out[:, one.start : one.stop] = mixed.reshape(len(strip), 3, -1).transpose(0, 2, 1)
    return out


def _down(image: Pixels, height: int) -> Pixels:
    """Resize columns vertically: (H, w, 3) -> (h, w, 3)."""
    flat, out = image.reshape(len(image), -1), np.empty((height, image.shape[1] * 3), np.uint8)
    for one in _blocks(len(image), height):
        slab = flat[one.first : one.last].T.astype(np.float64)
        out[one.start : one.stop] = _bytes(_product(slab, one.weights.T)).T
    return out.reshape(height, -1, 3)


def _product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, K) @ (K, N), in pieces small enough for BLAS to stay in the calling thread."""
    out, step = np.empty((len(left), right.shape[1])), max(1, ONE_THREAD // right.size)
    whole = len(left) // step * step
    np.matmul(left[:whole].reshape(-1, step, left.shape[1]), right, out=out[:whole].reshape(-1, step, right.shape[1]))
    np.matmul(left[whole:], right, out=out[whole:])
    return out


def _bytes(sums: NDArray[np.float64]) -> Pixels:
    """Round half up and clip, in place; the sums are exact, since every weight is a multiple of 2 ** -22."""
    sums += 0.5
    return np.clip(sums, 0, 255, out=sums).astype(np.uint8)


def _blocks(inputs: int, outputs: int) -> Iterator[_Block]:
    first, weights = _weights(inputs, outputs)
    taps = np.arange(weights.shape[1])
    for start in range(0, outputs, BLOCK):
        stop = min(outputs, start + BLOCK)
        low, high = int(first[start]), min(inputs, int(first[stop - 1]) + len(taps))
        places = first[start:stop, None] + taps - low
        real = places < high - low
        rows = np.broadcast_to(np.arange(stop - start)[:, None], places.shape)
        matrix = np.zeros((stop - start, high - low))
        matrix[rows[real], places[real]] = weights[start:stop][real]
        yield _Block(start, stop, low, high, matrix)


def _weights(inputs: int, outputs: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The first input of each output, (N,), and the weights, (N, taps): integers divided by a power of two.

    Keys' cubic kernel with a = -0.5, widened when shrinking. The power of two is the largest, up to 2 ** 22, for which
    the largest weight fits a signed 16-bit integer.
    """
    scale = inputs / outputs
    wide = max(scale, 1.0)
    centre = scale * (np.arange(outputs) + 0.5)
    first = np.maximum((centre - 2 * wide + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + 2 * wide + 0.5).astype(np.int64), inputs)
    places = first[:, None] + np.arange(int((last - first).max()))
    exact = _cubic((places - centre[:, None] + 0.5) / wide) * (places < last[:, None])
    exact /= exact.sum(1, keepdims=True)
    most, bits = float(exact.max()), 0
    while bits < 22 and int(0.5 + most * 2 ** (bits + 1)) < 1 << 15:  # noqa: PLR2004 - 22 and 15 are the kernel's
        bits += 1
    return first, np.trunc(exact * 2**bits + np.copysign(0.5, exact)) / 2**bits


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))  # noqa: PLR2004 - where the cubic ends
