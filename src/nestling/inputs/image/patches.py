"""A resized image, its patches for the vision tower, and its placeholder tokens in the prompt.

Arithmetic only, as in jina-embeddings-v4's processor (Qwen2-VL's): order of patches, prompt around an image, M-RoPE
positions. Does not know image files or models.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nestling.formats.tower_shape import MERGE, ImageSpec
from nestling.inputs.image.resize import FACTOR, Pixels
from nestling.vectors import Floats

PATCH = FACTOR // MERGE
"""Pixels along a patch's side."""


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A resized image: (h, w, 3) uint8, both sides multiples of 28. `key` is a hash of its pixels, for caches.

    `sent_pixels` is how many pixels it had before the resize.
    """

    pixels: Pixels
    key: bytes
    sent_pixels: int = 0

    @classmethod
    def of(cls, pixels: Pixels, *, sent_pixels: int = 0) -> "Image":
        """Make an image of resized pixels."""
        shape = np.array(pixels.shape, "<u4").tobytes()
        return cls(pixels, hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).digest(), sent_pixels)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.pixels.shape[0] // PATCH, self.pixels.shape[1] // PATCH

    @property
    def tokens(self) -> int:
        """How many placeholder tokens its embeddings replace."""
        return int(self.pixels.shape[0] * self.pixels.shape[1]) // FACTOR**2

    def patches(self, spec: ImageSpec) -> Floats:
        """Normalised patches: -> (rows * columns, 1176) float32, each channel, frame, y, x; both frames are equal.

        Row by row of tokens, with the four patches of a token together: (0, 0) (0, 1) (1, 0) (1, 1).
        """
        rows, columns = (side // MERGE for side in self.grid)
        table = _normalised(spec.mean, spec.std)
        parts = self.pixels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        one_frame = table[np.arange(3)[:, None, None], parts]
        both = np.broadcast_to(one_frame[..., None, :, :], (*one_frame.shape[:5], 2, PATCH, PATCH))
        return both.reshape(rows * columns * MERGE**2, -1)


@cache
def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Floats:
    """Lookup table (3, 256) of normalised values: (x - 255 mean) / (255 std), each step rounded to float32."""
    whole = np.float32(1 / (1 / 255))
    centre, spread = (np.array(one, np.float32)[:, None] * whole for one in (mean, std))
    table: Floats = (np.arange(256, dtype=np.float32) - centre) / spread
    return table


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """An image in its prompt, T tokens: `ids` (T,), M-RoPE `positions` (3, T) of time, row and column.

    The vision tower's rows replace the token embeddings of the slice `image`. The image's vector is the mean of the
    hidden states of the slice `pooled`: `image` with the start and end tokens around it.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    image: slice
    pooled: slice


def placed(grid: tuple[int, int], spec: ImageSpec) -> Placed:
    """Ids and positions of the specification's prompt, for an image of `grid` (rows, columns) of patches."""
    prompt, image_token = spec.prompt, spec.image_token
    assert image_token is not None, "the prompt of a published file must be filled in first"
    rows, columns = (side // MERGE for side in grid)
    start = prompt.index(image_token)
    stop = start + rows * columns
    ids = np.array([*prompt[:start], *[image_token] * (rows * columns), *prompt[start + 1 :]], np.int32)
    positions = np.broadcast_to(np.arange(len(ids)), (3, len(ids))).copy()
    row, column = np.divmod(np.arange(rows * columns), columns)
    positions[:, start:stop] = start + np.stack([np.zeros_like(row), row, column])
    positions[:, stop:] += start + max(rows, columns) - stop
    return Placed(ids, positions, slice(start, stop), slice(start - 1, stop + 1))
