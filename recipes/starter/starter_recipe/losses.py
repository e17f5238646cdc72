"""Training losses, each summed over Matryoshka prefixes of the vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from starter_recipe.model import Embedder

# weight of each prefix length
COSINE_DIMS = {32: 0.25, 64: 0.25, 128: 0.5, 256: 1.0}
RANKING_DIMS = {64: 0.3, 256: 0.7}
PAIR_DIMS = {32: 0.2, 64: 0.3, 128: 0.3, 256: 1.0}
_TEACHER_TEMPERATURE = 0.05
_MASKED = -2.0


def unit(vectors: Tensor, dims: int | None = None) -> Tensor:
    """Truncate vectors to their first `dims` dimensions and scale them to unit length."""
    return functional.normalize(vectors[:, :dims], dim=-1)


def distillation(vectors: Tensor, targets: Tensor, bank: Tensor | None = None) -> Tensor:
    """Cosine distance to the targets (B, 256), and KL divergence between similarity rows.

    A row holds a text's similarities to the batch's targets and to the `bank` of further ones, (N, 256).
    """
    loss = vectors.new_zeros(())
    for dims, weight in COSINE_DIMS.items():
        loss = loss + weight * (1 - (unit(vectors, dims) * unit(targets, dims)).sum(-1)).mean()
    others = targets if bank is None else torch.cat((targets, bank))
    wanted = functional.log_softmax(targets @ others.T / _TEACHER_TEMPERATURE, 1)
    for dims, weight in RANKING_DIMS.items():
        found = functional.log_softmax(unit(vectors, dims) @ unit(others, dims).T / _TEACHER_TEMPERATURE, 1)
        loss = loss + weight * functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return loss


@dataclass(frozen=True, slots=True)
class Negatives:
    """Target vectors (N, 256) that stand for the passages of others, and where they may not count (B, N).

    A text's vector is trained to be its target, so these need no forward pass.
    """

    vectors: Tensor
    masked: Tensor


def contrast(left: Tensor, right: Tensor, *, temperature: float, negatives: Negatives | None = None) -> Tensor:
    """InfoNCE in both directions over the batch's pairs, (B, 256) twice; left to right against negatives too."""
    loss = left.new_zeros(())
    for dims, weight in PAIR_DIMS.items():
        scores = unit(left, dims) @ unit(right, dims).T / temperature
        loss = loss + weight * _both_ways(scores)
        if negatives is not None and dims in RANKING_DIMS:
            hard = unit(left, dims) @ unit(negatives.vectors, dims).T / temperature
            hard = hard.masked_fill(negatives.masked, -torch.inf)
            labels = torch.arange(len(scores))
            loss = loss + 0.5 * weight * functional.cross_entropy(torch.cat((scores, hard), 1), labels)
    return loss


def late_interaction(model: Embedder, query: tuple[Tensor, Tensor], passage: tuple[Tensor, Tensor]) -> Tensor:
    """InfoNCE over MaxSim scores; each side is (token states (B, T, 256), mask (B, T))."""
    (query_states, query_mask), (passage_states, passage_mask) = query, passage
    left = functional.normalize(model.multi_vector_projector(query_states), dim=-1)
    right = functional.normalize(model.multi_vector_projector(passage_states), dim=-1)
    scores = torch.einsum("aid,bjd->abij", left, right).masked_fill(passage_mask[None, :, None] == 0, _MASKED).amax(-1)
    scores = (scores * query_mask[:, None]).sum(-1) / query_mask.sum(1)[:, None]
    return _both_ways(scores / 0.03)


def _both_ways(scores: Tensor) -> Tensor:
    """Cross-entropy of the diagonal along rows and along columns: (B, B)."""
    labels = torch.arange(len(scores))
    return (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2
