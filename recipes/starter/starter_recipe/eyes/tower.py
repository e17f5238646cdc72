"""The vision tower in torch, in the layout of Qwen2.5-VL; its state dict is what goes to disk (after `visual.`).

Windows of 8 x 8 patches, blocks with attention over the whole image, rotary positions by row and column, a merger of
2 x 2 patches. Every image of a batch has the same grid. Windows that the image's edge cuts are padded and masked,
except along a side that has less than a window: there the windows are as small as the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

PATCH, MERGE, SIDE = 14, 2, 8
"""Pixels of a patch, patches that are merged, and patches of a window, each along one side."""
CELL = PATCH * MERGE
"""Pixels along one side of a merged token."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_THETA, _EPSILON = 10000.0, 1e-6


@dataclass(frozen=True, slots=True)
class TowerShape:
    """Sizes of the tower; every `full_every`-th block attends to the whole image."""

    depth: int = 4
    hidden: int = 192
    heads: int = 3
    intermediate: int = 512
    output: int = 256
    full_every: int = 4

    def is_full(self, block: int) -> bool:
        """Whether a block attends to the whole image."""
        return (block + 1) % self.full_every == 0


@dataclass(frozen=True, slots=True)
class Places:
    """Where the patches of a (rows, columns) grid go: windows one after another, all of L places.

    `window` is L; `patches` (P,): the patch at each place; `real` (W, L): False for padding, or None if there is none;
    `cosine` and `sine` (P, head); `tokens` (T,): the group of four places that is each merged token, row by row.
    """

    window: int

    patches: Tensor
    real: Tensor | None
    cosine: Tensor
    sine: Tensor
    tokens: Tensor

    @classmethod
    @cache
    def of(cls, grid: tuple[int, int], head: int) -> Self:
        """Return the places of one grid."""
        window = (min(SIDE, grid[0]), min(SIDE, grid[1]))
        rows, columns = (-(-side // part) * part for side, part in zip(grid, window, strict=True))
        row, column = (_window_order(values, window) for values in np.mgrid[:rows, :columns])
        real = (row < grid[0]) & (column < grid[1])
        group = (row // MERGE * (grid[1] // MERGE) + column // MERGE) * MERGE**2
        patch = np.where(real, group + row % MERGE * MERGE + column % MERGE, 0)
        first = group[:: MERGE**2] // MERGE**2
        tokens = np.flatnonzero(real[:: MERGE**2])
        tokens = tokens[np.argsort(first[tokens])]
        speeds = _THETA ** (-np.arange(head // 4) / (head // 4))
        angles = np.concatenate((np.outer(row, speeds), np.outer(column, speeds)), 1)
        angles = torch.from_numpy(np.tile(angles, 2)).float()
        mask = None if real.all() else torch.from_numpy(real.reshape(-1, window[0] * window[1]))
        return cls(
            window[0] * window[1], torch.from_numpy(patch), mask, angles.cos(), angles.sin(), torch.from_numpy(tokens)
        )


def _window_order(values: NDArray[np.int64], window: tuple[int, int]) -> NDArray[np.int64]:
    """Reorder a grid by windows, within a window by groups of 2 x 2, row by row: (R, C) -> (R * C,)."""
    rows, columns = values.shape
    high, wide = window
    split = values.reshape(rows // high, high // MERGE, MERGE, columns // wide, wide // MERGE, MERGE)
    return split.transpose(0, 3, 1, 4, 2, 5).ravel()


def to_patches(pixels: Tensor) -> Tensor:
    """Normalised patches, the four of a token together: (B, H, W, 3) uint8 -> (B, N, 588), each channel, y, x."""
    mean, std = (torch.tensor(values) * 255 for values in (MEAN, STD))
    batch, height, width, _ = pixels.shape
    parts = ((pixels - mean) / std).reshape(batch, height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH, 3)
    return parts.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(batch, -1, 3 * PATCH**2)


class Norm(nn.Module):
    """RMS norm with a learned scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, states: Tensor) -> Tensor:
        """Normalise the last axis."""
        return functional.rms_norm(states, (states.shape[-1],), self.weight.to(states.dtype), _EPSILON)


class Attention(nn.Module):
    """Attention both ways, within windows or over the image."""

    def __init__(self, shape: TowerShape, *, full: bool) -> None:
        super().__init__()
        self.heads, self.full = shape.heads, full
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.proj = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, states: Tensor, places: Places) -> Tensor:
        """Map (B, P, hidden) to the same."""
        batch, count, hidden = states.shape
        query, key, value = self.qkv(states).view(batch, count, 3, self.heads, -1).unbind(2)
        query, key = (_rotate(side, places) for side in (query, key))
        runs = batch if self.full else batch * count // places.window
        split = [
            side.reshape(runs, -1, self.heads, hidden // self.heads).transpose(1, 2) for side in (query, key, value)
        ]
        mixed = functional.scaled_dot_product_attention(*split, attn_mask=self._mask(places, batch))
        output: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, hidden))
        return output

    def _mask(self, places: Places, batch: int) -> Tensor | None:
        if places.real is None:
            return None
        return places.real.reshape(1, 1, 1, -1) if self.full else places.real.repeat(batch, 1)[:, None, None]


def _rotate(states: Tensor, places: Places) -> Tensor:
    """Turn pairs (j, j + D / 2) of each head: (B, P, H, D)."""
    first, second = states.chunk(2, -1)
    cosine, sine = (table[:, None].to(states.dtype) for table in (places.cosine, places.sine))
    return states * cosine + torch.cat((-second, first), -1) * sine


class FeedForward(nn.Module):
    """Gated feed-forward layer with biases."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden)

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., hidden) to the same."""
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))
        return output


class Block(nn.Module):
    """One block of the tower."""

    def __init__(self, shape: TowerShape, *, full: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(shape.hidden), Norm(shape.hidden)
        self.attn = Attention(shape, full=full)
        self.mlp = FeedForward(shape)

    def forward(self, states: Tensor, places: Places) -> Tensor:
        """Map (B, P, hidden) to the same."""
        states = states + self.attn(self.norm1(states), places)
        output: Tensor = states + self.mlp(self.norm2(states))
        return output


class PatchEmbed(nn.Module):
    """The linear layer over a patch; both frames of a still image are equal, so their weights are added."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, shape.hidden, (2, PATCH, PATCH), bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Map (B, N, 588) to (B, N, hidden)."""
        return functional.linear(patches, self.proj.weight.sum(2).flatten(1))


class Merger(nn.Module):
    """Four patches to one row of the text tower's width."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        wide = MERGE**2 * shape.hidden
        self.ln_q = Norm(shape.hidden)
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, shape.output))

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Map (B, P, hidden) to (B, T, output), the tokens row by row."""
        batch, places, hidden = states.shape
        groups = self.ln_q(states).view(batch, places // MERGE**2, MERGE**2 * hidden)
        output: Tensor = self.mlp(groups[:, tokens])
        return output


class VisionTower(nn.Module):
    """Pixels to the rows that replace the embeddings of an image's placeholder tokens."""

    def __init__(self, shape: TowerShape | None = None, *, seed: int = 11) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shape = shape or TowerShape()
        self.patch_embed = PatchEmbed(self.shape)
        self.blocks = nn.ModuleList(Block(self.shape, full=self.shape.is_full(n)) for n in range(self.shape.depth))
        self.merger = Merger(self.shape)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("attn.proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=(2 * self.shape.depth * parameter.shape[1]) ** -0.5)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)

    def states(self, pixels: Tensor) -> tuple[list[Tensor], Places]:
        """Return every block's states, (B, P, hidden) in window order, of (B, H, W, 3) uint8 pixels."""
        grid = (pixels.shape[1] // PATCH, pixels.shape[2] // PATCH)
        places = Places.of(grid, self.shape.hidden // self.shape.heads)
        states = self.patch_embed(to_patches(pixels)[:, places.patches])
        found = []
        for block in self.blocks:
            states = block(states, places)
            found.append(states)
        return found, places

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, H, W, 3) uint8 pixels to (B, T, output) rows."""
        states, places = self.states(pixels)
        rows: Tensor = self.merger(states[-1], places.tokens)
        return rows
