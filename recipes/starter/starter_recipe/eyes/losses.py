"""The losses of the eyes: pictures against names, merged tokens against text tokens, images of texts against texts.

The helpers' losses (concepts, letters) go with them: without these neither is learned in any reasonable time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from starter_recipe.eyes.samples import Pictures, Texts, as_colour
from starter_recipe.eyes.tower import CELL
from starter_recipe.model import TASKS

if TYPE_CHECKING:
    from starter_recipe.eyes.helpers import Helpers
    from starter_recipe.eyes.seeing import Eyes
    from starter_recipe.eyes.typeset import Drawn

PREFIXES = {"name": "Query: ", "text": "Passage: "}
TEMPERATURE = 0.05
TOKEN_SCALE = 16.0
"""By which the cosine of a merged token and a text token's embedding is multiplied before the softmax."""
OTHER_TOKENS = 1024
SPELLED_SHARE = 0.3
CROPS = ((48, (112, 112)), (24, (112, 224)))
STRIPS = ((16, (112, 448)), (10, (224, 336)), (12, (112, 560)), (21, (112, 336)))
PAGES = ((2, (784, 560)), (3, (560, 560)), (4, (560, 448)))
"""How many images of which (height, width) are a batch."""


class Losses:
    """Batches and their losses for one pair of towers."""

    def __init__(self, eyes: Eyes, helpers: Helpers, pictures: Pictures, texts: Texts) -> None:
        self.eyes, self.helpers, self.pictures, self.texts = eyes, helpers, pictures, texts
        self._names: dict[str, dict[str, Tensor]] = {}

    def names(self, task: str) -> dict[str, Tensor]:
        """Vectors of all names by language: English ones of all concepts, the others of the emoji, in their order."""
        if task not in self._names:
            texts = self.eyes.readers[task].texts
            self._names[task] = {
                language: texts([PREFIXES["name"] + one[language] for one in self.pictures.names if language in one])
                for language in self.pictures.names[0]
            }
        return self._names[task]

    def picture(self, random: np.random.Generator) -> Tensor:
        """Cross-entropy of each picture's name among all names of a language, averaged over the languages."""
        task = str(random.choice(TASKS))
        batch = self.pictures.batch(random)
        with torch.autocast("cpu", torch.bfloat16):
            states, places = self.eyes.tower.states(batch.pixels)
            rows = self.eyes.tower.merger(states[-1], places.tokens)
            vectors = self.eyes.readers[task](rows, (batch.pixels.shape[1] // CELL, batch.pixels.shape[2] // CELL))
            concept = self.helpers.concept_loss(states, places, batch.concepts)
        emoji = batch.concepts < self.pictures.emoji
        losses = []
        for language, names in self.names(task).items():
            chosen = slice(None) if language == "en" else emoji
            scores = vectors[chosen] @ names.T / TEMPERATURE
            losses.append(functional.cross_entropy(scores, batch.concepts[chosen]))
        return torch.stack(losses).mean() + concept

    def cells(self, random: np.random.Generator) -> Tensor:
        """Letters, and merged tokens of crops of text against the embeddings of the text tokens drawn there."""
        images = self._drawn(CROPS, random)
        rows, letters = self._rows(images)
        return letters + SPELLED_SHARE * self._spelled(rows.float(), images, random)

    def _rows(self, images: list[Drawn]) -> tuple[Tensor, Tensor]:
        """Rows of images of text, and the loss of their letters."""
        with torch.autocast("cpu", torch.bfloat16):
            states, places = self.eyes.tower.states(as_colour(images))
            rows: Tensor = self.eyes.tower.merger(states[-1], places.tokens)
            return rows, self.helpers.letter_loss(states, places, images)

    def strip(self, random: np.random.Generator) -> Tensor:
        """The same, and the strips' vectors against their texts' vectors."""
        return self._read(self._drawn(STRIPS, random), random)

    def page(self, random: np.random.Generator) -> Tensor:
        """The same on pages."""
        return self._read(self._drawn(PAGES, random), random)

    def _drawn(self, sizes: tuple[tuple[int, tuple[int, int]], ...], random: np.random.Generator) -> list[Drawn]:
        count, size = sizes[random.integers(len(sizes))]
        return self.texts.batch(count, size, random)

    def _read(self, images: list[Drawn], random: np.random.Generator) -> Tensor:
        task = str(random.choice(TASKS))
        reader, (height, width) = self.eyes.readers[task], images[0].pixels.shape
        rows, letters = self._rows(images)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = reader(rows, (height // CELL, width // CELL))
        wanted = reader.texts([PREFIXES["text"] + one.text for one in images])
        cosines = vectors @ wanted.T
        contrast = functional.cross_entropy(cosines / TEMPERATURE, torch.arange(len(images)))
        spelled = self._spelled(rows.float(), images, random)
        return (1 - cosines.diagonal()).mean() + contrast + letters + SPELLED_SHARE * spelled

    def _spelled(self, rows: Tensor, images: list[Drawn], random: np.random.Generator) -> Tensor:
        """Each cell's row against the sum of the embeddings drawn in it, scaled to their norm, and by softmax."""
        table = next(iter(self.eyes.readers.values())).embeddings
        count, flat = rows.shape[1], rows.flatten(0, 1)
        parts = [
            (cell + place * count, ids, shares)
            for place, one in enumerate(images)
            for cell, ids, shares in [one.shares()]
        ]
        cells, ids, shares = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
        wanted = torch.zeros_like(flat).index_add_(0, cells, shares[:, None] * table[ids])
        wanted = functional.normalize(wanted, dim=-1) * table[ids].norm(dim=-1).mean()
        squares = (flat - wanted).square().mean()
        others = torch.from_numpy(random.integers(0, len(table), OTHER_TOKENS))
        known, place = torch.unique(torch.cat((ids, others)), return_inverse=True)
        scores = TOKEN_SCALE * functional.normalize(flat, dim=-1) @ functional.normalize(table[known], dim=-1).T
        likely = scores.log_softmax(-1)[cells, place[: len(ids)]]
        return squares - (shares * likely).sum() / shares.sum()
