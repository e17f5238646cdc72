"""Pictures made by numbers alone: the same bytes on every machine, whatever drew or decoded them.

Shared by `record_pixels.py`, which runs where torch and torchvision are, and by the tests.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def gradient(height: int, width: int) -> Pixels:
    """Smooth in all channels, each in its own direction."""
    y, x = np.mgrid[:height, :width]
    parts = (255 * x // max(width - 1, 1), 255 * y // max(height - 1, 1), (x + y) % 256)
    return np.stack(parts, -1).astype(np.uint8)


def noise(height: int, width: int) -> Pixels:
    """Every byte at random, of a generator that is said here in full."""
    state = np.arange(height * width * 3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(29)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    return (state >> np.uint64(56)).astype(np.uint8).reshape(height, width, 3)


def page(height: int, width: int) -> Pixels:
    """Black words on white: lines of boxes with the sharp edges of text, which overshoot when they are resized."""
    paper, ink = np.full((height, width, 3), 255, np.uint8), noise(height // 18 + 1, width // 5 + 1)[:, :, 0]
    y, x = np.mgrid[:height, :width]
    letters = ink[y // 18, x // 5] > 70
    inside = (y % 18 > 3) & (y % 18 < 14) & (x % 5 > 0) & (y > 40) & (x > 40) & (y < height - 40) & (x < width - 40)
    paper[letters & inside] = 0
    return paper


def board(height: int, width: int) -> Pixels:
    """Squares of three pixels in pure colours: the largest steps there are."""
    y, x = np.mgrid[:height, :width]
    return (255 * np.stack([(y // 3 + x // 3) % 2, (x // 3) % 2, (y // 3) % 2], -1)).astype(np.uint8)


IMAGES: dict[str, tuple[Callable[[int, int], Pixels], int, int]] = {
    "photo": (gradient, 1500, 2000),
    "large": (gradient, 3000, 4000),
    "a4": (page, 1754, 1240),
    "screen": (page, 1080, 1920),
    "square": (noise, 1000, 1000),
    "same": (noise, 224, 224),
    "narrower": (noise, 224, 230),
    "lower": (noise, 230, 224),
    "vga": (board, 480, 640),
    "thumbnail": (noise, 75, 100),
    "tiny": (board, 20, 20),
    "dot": (noise, 1, 1),
    "line": (noise, 1, 200),
    "post": (noise, 200, 1),
    "ribbon": (board, 28, 5600),
    "odd": (board, 777, 333),
}
"""Name -> what makes it, height, width."""


def image(name: str) -> Pixels:
    """The picture of a name: (H, W, 3)."""
    make, height, width = IMAGES[name]
    return make(height, width)
