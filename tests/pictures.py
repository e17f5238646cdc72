"""Pictures made by whole-number arithmetic alone: the same bytes on every machine. (H, W, 3) uint8.

`PICTURES` are those whose vectors were recorded (`tests.golden.record_images`): sizes that stand as they are, sizes
that are resized, the smallest, the longest and one that is larger than the most pixels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def gradient(height: int, width: int) -> Picture:
    """Red grows to the right, green downwards, blue along the diagonal."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + 2 * y) % 256], -1).astype(
        np.uint8
    )


def page(height: int, width: int) -> Picture:
    """Dark words of random strokes in lines on white paper, and a picture frame in the corner."""
    bits, paper = np.random.PCG64(5), np.full((height, width, 3), 250, np.uint8)
    for top in range(12, height - 16, 14):
        left = 10
        while left < width - 40:
            word = 12 + int(bits.random_raw() % 28)
            strokes = bits.random_raw(8 * word).reshape(8, word) % 3 == 0
            paper[top : top + 8, left : left + word][strokes] = (20, 20, 40)
            left += word + 6
    paper[height // 2 : height // 2 + 60, width // 2 : width // 2 + 60] = gradient(60, 60)[: height - height // 2]
    return paper


def noise(height: int, width: int) -> Picture:
    """Every byte at random."""
    raw = np.random.PCG64(height * 1000 + width).random_raw(height * width * 3)
    return (raw >> np.uint64(56)).astype(np.uint8).reshape(height, width, 3)


def plain(height: int, width: int, *, value: int) -> Picture:
    """One grey."""
    return np.full((height, width, 3), value, np.uint8)


def bars(height: int, width: int) -> Picture:
    """Coloured stripes, 7 pixels wide, that lean."""
    y, x = np.mgrid[:height, :width]
    colours = np.array([(230, 30, 30), (30, 200, 60), (40, 60, 220), (240, 220, 40), (10, 10, 10)], np.uint8)
    lean: NDArray[np.int64] = (x + y // 3) // 7 % len(colours)
    return colours[lean]


PICTURES: dict[str, Callable[[], Picture]] = {
    "gradient 168x224": lambda: gradient(168, 224),
    "page 392x280": lambda: page(392, 280),
    "bars 84x420": lambda: bars(84, 420),
    "black 56x56": lambda: plain(56, 56, value=0),
    "noise 20x20": lambda: noise(20, 20),
    "gradient 1x200": lambda: gradient(1, 200),
    "page 500x333": lambda: page(500, 333),
    "bars 1500x1100": lambda: bars(1500, 1100),
}
"""Height x width; the first four need no resizing."""
AS_THEY_ARE = tuple(PICTURES)[:4]
