"""Where training starts: the patch embedding as whitened principal components of the patches that it will see.

Patches of text are nearly all paper, and a random embedding mostly tells how bright a patch is. Whitened, every
component has a mean square near one, so a stroke counts as much as the paper it is on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from starter_recipe.eyes.samples import Pictures, Texts, as_colour
from starter_recipe.eyes.tower import PATCH, SIDE, VisionTower, to_patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LEAST = 0.003
"""Added to each component's mean square, as a part of their mean: faint components are not blown up."""
SEED, CROPS = 3, 24


def start(tower: VisionTower, pictures: Pictures, texts: Texts) -> None:
    """Prepare a new tower, with text as three quarters of what the patch embedding is made for."""
    random = np.random.default_rng(SEED)
    crops = as_colour(texts.batch(CROPS, (SIDE * PATCH, SIDE * PATCH), random))
    whiten(tower, [crops, crops, crops, pictures.batch(random).pixels])


@torch.no_grad()
def whiten(tower: VisionTower, images: Sequence[Tensor]) -> None:
    """Set the patch embedding from batches of images, (B, H, W, 3) uint8; each batch counts the same."""
    size, count = 3 * PATCH**2, tower.shape.hidden
    moments = torch.zeros(size, size, dtype=torch.float64)
    for batch in images:
        patches = to_patches(batch).flatten(0, 1).double()
        moments += patches.T @ patches / len(patches) / len(images)
    values, vectors = torch.linalg.eigh(moments)
    scales = (values[-count:] + LEAST * moments.trace() / size).rsqrt()
    mixed = _rotation(count) @ (vectors[:, -count:] * scales).T.float()
    tower.patch_embed.proj.weight.copy_(mixed.view(count, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1) / 2)


def _rotation(size: int) -> Tensor:
    """A random rotation, so that no channel is the brightness alone."""
    rotation: Tensor = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(SEED)))[0]
    return rotation
