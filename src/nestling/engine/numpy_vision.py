"""The vision oracle: a Qwen2.5-VL tower in plain numpy, in float32.

Weights are dequantized on use and not kept; the file's resident pages are dropped.

Slow, small enough to check by eye, and the reference for the other engines. RMSNorm, bidirectional attention over a
window or the image, rotary positions by row and column in the half-split layout, SwiGLU, a merger with exact GELU.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nestling.engine.numpy_reference import gated, rms_norm
from nestling.engine.vision import Grid, check_patches, refuse_not_finite, tokens_of
from nestling.engine.weights import as_float32, tensor
from nestling.engine.windows import GROUP, Layout
from nestling.formats.mmproj import VisionFile
from nestling.vectors import Floats

PIECE_BYTES = 1 << 20
"""Bytes of a matrix that are dequantized at once: what fits a processor's cache."""


class ReferenceTower:
    """An mmproj file run by numpy in float32."""

    name = "reference"

    def __init__(self, vision: VisionFile) -> None:
        self._shape, self._file = vision.shape, vision.file

    def rows(self, patches: Sequence[Floats], grids: Sequence[Grid]) -> list[Floats]:
        """Patches and the grid of each image -> (tokens, D) each, one after another."""
        check_patches(patches, grids, self._shape)
        return [self.together([one], [grid])[0] for one, grid in zip(patches, grids, strict=True)]

    def together(self, patches: Sequence[Floats], grids: Sequence[Grid]) -> list[Floats]:
        """The same in one run, which holds the activations of all images."""
        rows = self._images(np.concatenate(patches), Layout.of(grids, self._shape))
        found = np.split(rows, np.cumsum([tokens_of(grid) for grid in grids])[:-1])
        for image, rows in enumerate(found):
            refuse_not_finite(finite=bool(np.isfinite(rows).all()), image=image)
        return found

    def _images(self, patches: Floats, layout: Layout) -> Floats:
        frames = [tensor(self._file, name).reshape(self._shape.hidden, 3, -1) for name in _PATCH]
        x = patches[layout.patches] @ np.stack(frames, 2).reshape(self._shape.hidden, -1).T
        for block in range(self._shape.blocks):
            runs = layout.images if self._shape.is_full(block) else layout.windows
            x = self._block(x, f"v.blk.{block}.", layout.cos_sin, np.cumsum(runs)[:-1])
        y = self._norm(x, "v.post_ln.weight").reshape(len(x) // GROUP, -1)
        return self._linear(gelu(self._linear(y, "mm.0")), "mm.2")[layout.merged]

    def _block(self, x: Floats, at: str, cos_sin: Floats, ends: NDArray[np.int64]) -> Floats:
        y = self._norm(x, at + "ln1.weight")
        q, k, v = (self._heads(self._linear(y, f"{at}attn_{n}")) for n in "qkv")
        sides = [np.split(side, ends, 1) for side in (turned(q, cos_sin), turned(k, cos_sin), v)]
        mixed = np.concatenate([attention(*run) for run in zip(*sides, strict=True)], 1)
        x = x + self._linear(mixed.transpose(1, 0, 2).reshape(x.shape), at + "attn_out")
        y = self._norm(x, at + "ln2.weight")
        inner = gated(self._linear(y, at + "ffn_gate"), self._linear(y, at + "ffn_up"))
        return x + self._linear(inner, at + "ffn_down")

    def _heads(self, flat: Floats) -> Floats:
        """(N, heads * d) -> (heads, N, d)."""
        return flat.reshape(len(flat), self._shape.heads, -1).transpose(1, 0, 2)

    def _linear(self, x: Floats, name: str) -> Floats:
        """(N, in) -> (N, out), a few rows of the matrix at a time."""
        raw, kind = self._file.raw(f"{name}.weight"), self._file.tensors[f"{name}.weight"].kind
        out, step = np.empty((len(x), len(raw)), np.float32), max(1, PIECE_BYTES // raw.shape[1])
        for start in range(0, len(raw), step):
            out[:, start : start + step] = x @ as_float32(raw[start : start + step], kind).T
        self._file.forget(raw)
        return out + tensor(self._file, f"{name}.bias")

    def _norm(self, x: Floats, name: str) -> Floats:
        return rms_norm(x, tensor(self._file, name), self._shape.rms_eps)


_PATCH = ("v.patch_embd.weight", "v.patch_embd.weight.1")


def turned(x: Floats, cos_sin: Floats) -> Floats:
    """Rotate each pair (i, i + d/2) of a head by its angle: (H, N, d), (N, d) -> (H, N, d)."""
    cos, sin = np.split(cos_sin, 2, 1)
    a, b = np.split(x, 2, -1)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def attention(q: Floats, k: Floats, v: Floats) -> Floats:
    """Bidirectional attention within one run of patches: three of (H, N, d) -> (H, N, d)."""
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[-1]))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray((scores / scores.sum(-1, keepdims=True)) @ v)


def gelu(x: Floats) -> Floats:
    """Exact GELU (error function), not the tanh approximation."""
    erf = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)).astype(np.float32)
    return np.asarray(x / 2 * (1 + erf), np.float32)
