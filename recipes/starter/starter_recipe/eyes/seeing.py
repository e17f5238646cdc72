"""An image's vector: the vision tower's rows through the frozen text tower, as the checkpoint's code pools them.

Only the tokens up to `<|vision_end|>` are computed: attention is causal and later ones are not in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from starter_recipe.checkpoint import load_model
from starter_recipe.eyes.tower import CELL, VisionTower
from starter_recipe.model import Embedder, pool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SECTIONS = (8, 12, 12)
"""Frequencies of a head that turn by time, row and column."""
BEFORE, START, END = "<|im_start|>user\n", "<|vision_start|>", "<|vision_end|>"
LONGEST, BATCH_TOKENS = 512, 16384
Grid = tuple[int, int]
"""Rows and columns of an image's tokens."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids around an image."""

    before: list[int]
    after: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Prompt:
        """Encode the prompt up to the image's end."""
        return cls(tokenizer.encode(BEFORE + START).ids, tokenizer.encode(END).ids)

    def positions(self, grid: Grid) -> Tensor:
        """M-RoPE positions of the prompt and an image between: (3, T) of time, row and column."""
        rows, columns = grid
        first = len(self.before)
        text = torch.arange(first).expand(3, -1)
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        image = first + torch.stack((torch.zeros(rows, columns, dtype=torch.long), row, column)).flatten(1)
        return torch.cat((text, image, torch.full((3, 1), first + max(grid))), 1)


class Reader(nn.Module):
    """The frozen text tower with one task's adapter merged; embeds texts, and images given as rows."""

    def __init__(self, folder: Path, task: str) -> None:
        super().__init__()
        self.model: Embedder = load_model(folder, task)
        for _, layer in self.model.linears():
            if layer.adapter is not None:
                layer.weight.data += layer.adapter[1] @ layer.adapter[0]
                layer.adapter = None
        self.requires_grad_(False)  # noqa: FBT003 - torch's own signature
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)
        self.prompt = Prompt.of(self.tokenizer)

    @property
    def embeddings(self) -> Tensor:
        """The token embeddings, (V, D)."""
        weight: Tensor = self.model.model.embed_tokens.weight
        return weight

    def forward(self, rows: Tensor, grid: Grid) -> Tensor:
        """Unit vectors of images of one grid: (B, T, D) -> (B, D)."""
        before, after = (
            self.embeddings[ids].expand(len(rows), -1, -1) for ids in (self.prompt.before, self.prompt.after)
        )
        states = torch.cat((before.to(rows.dtype), rows, after.to(rows.dtype)), 1)
        cosine, sine = self._angles(grid)
        for layer in self.model.model.layers:
            states = layer(states, cosine.to(rows.dtype), sine.to(rows.dtype))
        pooled = self.model.model.norm(states)[:, len(self.prompt.before) - 1 :].float().mean(1)
        return functional.normalize(pooled, dim=-1)

    def _angles(self, grid: Grid) -> tuple[Tensor, Tensor]:
        tower, positions = self.model.model, self.prompt.positions(grid)
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(SECTIONS)).repeat(2)
        place = positions[axis].T  # (T, head)
        return tower.cosine.gather(0, place), tower.sine.gather(0, place)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of prefixed texts: (N, D)."""
        ids = [one.ids for one in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        found = torch.zeros(len(ids), self.embeddings.shape[1])
        while order:
            width = len(ids[order[-1]])
            cut = max(0, len(order) - max(1, BATCH_TOKENS // width))
            order, members = order[:cut], order[cut:]
            batch = torch.tensor([ids[one] + [0] * (width - len(ids[one])) for one in members])
            mask = torch.arange(width)[None] < torch.tensor([[len(ids[one])] for one in members])
            found[members] = pool(self.model.hidden(batch), mask.float())
        return functional.normalize(found, dim=-1).clone()


class Eyes:
    """A vision tower and the readers of all tasks."""

    def __init__(self, tower: VisionTower, readers: dict[str, Reader]) -> None:
        self.tower, self.readers = tower, readers

    def vectors(self, pixels: Tensor, task: str) -> Tensor:
        """Unit vectors of (B, H, W, 3) uint8 images of one size, sides multiples of 28: (B, D)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.tower.training):
            rows = self.tower(pixels)
            found: Tensor = self.readers[task](rows, (pixels.shape[1] // CELL, pixels.shape[2] // CELL))
        return found
