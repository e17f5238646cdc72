"""What training asks of the tower's states besides its rows; the heads are thrown away afterwards.

The letters at four places across a patch, after the last block but one: we typeset the text, so we know them, and a
tower that can tell them learns tokens soon. And a picture's concept, from the mean of the last block's states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from starter_recipe.eyes.tower import MERGE, Places, TowerShape
from starter_recipe.eyes.typeset import CLASSES, SLOTS, UNKNOWN, Drawn

if TYPE_CHECKING:
    from collections.abc import Sequence

LETTER_BLOCK = -2


class Helpers(nn.Module):
    """Linear heads over normalised states."""

    def __init__(self, shape: TowerShape, concepts: int) -> None:
        super().__init__()
        self.letters = nn.Linear(shape.hidden, SLOTS * CLASSES)
        self.concepts = nn.Linear(shape.hidden, concepts)

    def letter_scores(self, states: list[Tensor], places: Places, images: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
        """Scores (N, CLASSES) and classes (N,) of all places across patches that are on a line."""
        wanted = in_window_order(torch.from_numpy(np.stack([one.letters() for one in images])), places)
        known = (wanted != UNKNOWN).any(-1)
        scores = self.letters(_normed(states[LETTER_BLOCK][known])).float()
        return scores.view(-1, CLASSES), wanted[known].flatten()

    def letter_loss(self, states: list[Tensor], places: Places, images: Sequence[Drawn]) -> Tensor:
        """Cross-entropy of the letters."""
        return functional.cross_entropy(*self.letter_scores(states, places, images), ignore_index=UNKNOWN)

    def concept_loss(self, states: list[Tensor], places: Places, concepts: Tensor) -> Tensor:
        """Cross-entropy of the concepts (B,)."""
        real = states[-1] if places.real is None else states[-1][:, places.real.flatten()]
        return functional.cross_entropy(self.concepts(_normed(real).mean(1)).float(), concepts)


def in_window_order(values: Tensor, places: Places) -> Tensor:
    """Reorder what belongs to patches, (B, R, C, K), as the tower orders their states: (B, P, K), padding UNKNOWN."""
    batch, rows, columns, size = values.shape
    groups = values.view(batch, rows // MERGE, MERGE, columns // MERGE, MERGE, size).transpose(2, 3)
    found = groups.reshape(batch, rows * columns, size)[:, places.patches]
    if places.real is not None:
        found[:, ~places.real.flatten()] = UNKNOWN
    return found


def _normed(states: Tensor) -> Tensor:
    return functional.rms_norm(states.float(), (states.shape[-1],))
