"""The losses of the eyes: pictures against names, merged tokens against text tokens, images of texts against texts.

The helpers' losses (concepts, letters) go with them: without these neither is learned in any reasonable time.
"""

from __future__ import annotations

from collections import defaultdict, deque
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
BAG_TEMPERATURE = 0.1
LETTERS, SPELLED, CONTRAST = 4.0, 0.5, 0.15
"""Weights with which the gradients are of like size; the contrast's alone would be 25 times the letters'."""
EARLIER_BATCHES = 60
"""Of texts that are also contrasted with; their vectors do not age, for the text tower is frozen."""
SMALL = (224, 56)
PICTURES = ((80, 84), (80, 84), (80, 84), (48, 112))
"""How many pictures are a batch, and the pixels along their side; one of these a batch."""
OTHER_LANGUAGES = 3
CROPS = ((48, (112, 112)), (24, (112, 224)))
STRIPS = ((11, (112, 448)), (7, (224, 336)), (9, (112, 560)), (15, (112, 336)))
PAGES = ((1, (784, 560)), (2, (560, 560)), (3, (560, 448)))
"""How many images of which (height, width) are a batch."""


class Losses:
    """Batches and their losses for one pair of towers."""

    def __init__(self, eyes: Eyes, helpers: Helpers, pictures: Pictures, texts: Texts | None) -> None:
        self.eyes, self.helpers, self.pictures, self.texts = eyes, helpers, pictures, texts
        self._names: dict[str, dict[str, Tensor]] = {}
        self._earlier: dict[tuple[str, str], deque[Tensor]] = defaultdict(lambda: deque(maxlen=EARLIER_BATCHES))

    def names(self, task: str) -> dict[str, Tensor]:
        """Vectors of all names by language: English ones of all concepts, the others of the emoji, in their order."""
        if task not in self._names:
            texts = self.eyes.readers[task].texts
            self._names[task] = {
                language: texts([PREFIXES["name"] + one[language] for one in self.pictures.names if language in one])
                for language in self.pictures.names[0]
            }
        return self._names[task]

    def concept(self, random: np.random.Generator) -> Tensor:
        """Cross-entropy of small pictures' concepts alone, without the text tower: five times as many a second."""
        batch = self.pictures.batch(SMALL[0], SMALL[1], random)
        with torch.autocast("cpu", torch.bfloat16):
            return self.helpers.concept_loss(*self.eyes.tower.states(batch.pixels), batch.concepts)

    def picture(self, random: np.random.Generator) -> Tensor:
        """Cross-entropy of each picture's name among all names of a language, averaged over a few languages."""
        task = _task(random)
        count, side = PICTURES[random.integers(len(PICTURES))]
        batch = self.pictures.batch(count, side, random)
        with torch.autocast("cpu", torch.bfloat16):
            states, places = self.eyes.tower.states(batch.pixels)
            rows = self.eyes.tower.merger(states[-1], places.tokens)
            vectors = self.eyes.readers[task](rows, (side // CELL, side // CELL))
            concept = self.helpers.concept_loss(states, places, batch.concepts)
        emoji = batch.concepts < self.pictures.emoji
        names = self.names(task)
        others = [str(one) for one in random.choice([*names][1:], OTHER_LANGUAGES, replace=False)]
        losses = []
        for language in ("en", *others):
            chosen = slice(None) if language == "en" else emoji
            scores = vectors[chosen] @ names[language].T / TEMPERATURE
            losses.append(functional.cross_entropy(scores, batch.concepts[chosen]))
        return torch.stack(losses).mean() + concept

    def cells(self, random: np.random.Generator) -> Tensor:
        """Letters, and merged tokens of crops of text against the embeddings of the text tokens drawn there."""
        images = self._drawn(CROPS, random)
        rows, letters = self._rows(images)
        return LETTERS * letters + SPELLED * self._spelled(rows.float(), images, random)

    def _rows(self, images: list[Drawn]) -> tuple[Tensor, Tensor]:
        """Rows of images of text, and the loss of their letters."""
        with torch.autocast("cpu", torch.bfloat16):
            states, places = self.eyes.tower.states(as_colour(images))
            rows: Tensor = self.eyes.tower.merger(states[-1], places.tokens)
            return rows, self.helpers.letter_loss(states, places, images)

    def strip(self, random: np.random.Generator) -> Tensor:
        """The same, and the strips' vectors against their texts' vectors."""
        return self._read("strip", self._drawn(STRIPS, random), random)

    def page(self, random: np.random.Generator) -> Tensor:
        """The same on pages."""
        return self._read("page", self._drawn(PAGES, random), random)

    def _drawn(self, sizes: tuple[tuple[int, tuple[int, int]], ...], random: np.random.Generator) -> list[Drawn]:
        count, size = sizes[random.integers(len(sizes))]
        return self.texts.batch(count, size, random)

    def _read(self, kind: str, images: list[Drawn], random: np.random.Generator) -> Tensor:
        task = _task(random)
        reader, (height, width) = self.eyes.readers[task], images[0].pixels.shape
        rows, letters = self._rows(images)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = reader(rows, (height // CELL, width // CELL))
        wanted = reader.texts([PREFIXES["text"] + one.text for one in images])
        others = self._earlier[kind, task]
        cosines = vectors @ torch.cat((wanted, *others)).T
        contrast = functional.cross_entropy(cosines / TEMPERATURE, torch.arange(len(images)))
        others.append(wanted)
        spelled = self._spelled(rows.float(), images, random)
        read = (1 - cosines.diagonal()).mean() + CONTRAST * contrast
        return read + LETTERS * letters + SPELLED * spelled

    def _spelled(self, rows: Tensor, images: list[Drawn], random: np.random.Generator) -> Tensor:
        """Each cell's row against the sum of the embeddings drawn in it: direction, length, by softmax; and their sum.

        Lengths apart from directions: a squared error would make rows short where they are in doubt, and the text
        tower knows embeddings of their own length only.
        """
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
        others = torch.from_numpy(random.integers(0, len(table), OTHER_TOKENS))
        known, place = torch.unique(torch.cat((ids, others)), return_inverse=True)
        scores = TOKEN_SCALE * functional.normalize(flat, dim=-1) @ functional.normalize(table[known], dim=-1).T
        likely = scores.log_softmax(-1)[cells, place[: len(ids)]]
        spelled = -(shares * likely).sum() / shares.sum()
        return spelled + _apart(flat, wanted) + _as_bags(rows, wanted.view_as(rows))


def _apart(rows: Tensor, wanted: Tensor) -> Tensor:
    """What is missing to the cosine where a row is wanted, and the squared error of the lengths, as parts of theirs."""
    lengths = wanted.norm(dim=-1)
    cosines = functional.cosine_similarity(rows, wanted, dim=-1)[lengths > 0]
    return 1 - cosines.mean() + ((rows.norm(dim=-1) - lengths) / lengths.max()).square().mean()


def _as_bags(rows: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of each image's sum of rows among the sums that the batch's images should have."""
    found, bags = (functional.normalize(side.sum(1), dim=-1) for side in (rows, wanted))
    return functional.cross_entropy(found @ bags.T / BAG_TEMPERATURE, torch.arange(len(rows)))


def _task(random: np.random.Generator) -> str:
    """Retrieval as often as the other tasks together."""
    return str(random.choice([TASKS[0], *TASKS]))
