"""One training batch of each kind, as a loss: teacher distillation, question-passage pairs, translations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from starter_recipe.batches import Pairs, Rows, group_weights, length_batches
from starter_recipe.losses import contrast, distillation, late_interaction
from starter_recipe.model import Embedder, pool
from starter_recipe.records import PairKind
from starter_recipe.tokens import Collator

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

DISTIL_TOKENS = 2048
PAIR_TOKENS = 4096
MOST_ROWS = 256
MOST_PAIRS = 128
MOST_LATE = 32
PASSAGE_CAP = 110
Batch = tuple[Tensor, Tensor]
Step = Callable[[], Tensor]


class BatchLosses:
    """Draws batches from the tokenized data and returns their losses; shares the model with the trainer."""

    def __init__(self, work: Path, tokenizer: Tokenizer, model: Embedder, *, seed: int, late: bool = False) -> None:
        self.model = model
        self.rows = Rows.load(work)
        self.pairs = {kind: Pairs.load(work, kind) for kind in PairKind}
        self.late = late
        self._collate = Collator(tokenizer)
        self._generator = np.random.default_rng(seed)

    def distil(self, targets: Tensor, usable: NDArray[np.bool_], roles: tuple[str, ...] = ("query", "passage")) -> Step:
        """Return a step that pulls texts to the targets of their anchors; every text gets one of the roles."""
        weights = group_weights(self.rows.group, usable[self.rows.anchors])
        stream = self._stream(self.rows.tokens.lengths, weights, tokens=DISTIL_TOKENS, most=MOST_ROWS)

        def step() -> Tensor:
            members = next(stream)
            chosen = self._generator.choice(roles, len(members)).tolist()
            vectors = self._pooled(self._rows(members, chosen))
            return distillation(vectors, targets[torch.from_numpy(self.rows.anchors[members])])

        return step

    def answer(self, kind: PairKind, *, temperature: float = 0.05) -> Step:
        """Return a step that tells each query's passage from the batch's other passages."""
        pairs = self.pairs[kind]
        lengths = np.minimum(pairs.passages.lengths, PASSAGE_CAP) + pairs.queries.lengths
        weights = group_weights(pairs.group, np.ones(len(lengths), bool))
        stream = self._stream(lengths, weights, tokens=PAIR_TOKENS, most=MOST_PAIRS)

        def step() -> Tensor:
            members = next(stream)
            queries = self._collate([pairs.queries[index] for index in members], ["query"] * len(members))
            passages = self._collate(
                [pairs.passages[index] for index in members], ["passage"] * len(members), PASSAGE_CAP
            )
            return self._pair_loss(queries, passages, temperature)

        return step

    def translate(self, *, temperature: float = 0.05) -> Step:
        """Return a step that tells each text's English original from the batch's other originals."""
        rows = self.rows
        weights = group_weights(rows.group, rows.translated)
        stream = self._stream(2 * rows.tokens.lengths, weights, tokens=PAIR_TOKENS, most=MOST_PAIRS)

        def step() -> Tensor:
            members = next(stream)
            members = members[np.unique(rows.anchors[members], return_index=True)[1]]
            roles = ["query"] * len(members)
            return self._pair_loss(self._rows(rows.english[members], roles), self._rows(members, roles), temperature)

        return step

    def _pair_loss(self, left: Batch, right: Batch, temperature: float) -> Tensor:
        """Contrast pooled vectors; with `late`, contrast MaxSim scores of the projected tokens instead."""
        if self.late:
            few = [(self.model.hidden(ids[:MOST_LATE]).detach(), mask[:MOST_LATE]) for ids, mask in (left, right)]
            return late_interaction(self.model, few[0], few[1])
        return contrast(self._pooled(left), self._pooled(right), temperature=temperature)

    def _stream(
        self, lengths: NDArray[np.int64], weights: NDArray[np.float64], *, tokens: int, most: int
    ) -> Iterator[NDArray[np.int64]]:
        return length_batches(lengths, weights, tokens=tokens, most=most, generator=self._generator)

    def _rows(self, members: NDArray[np.int64], roles: list[str]) -> Batch:
        return self._collate([self.rows.tokens[index] for index in members], roles)

    def _pooled(self, batch: Batch) -> Tensor:
        ids, mask = batch
        return pool(self.model.hidden(ids), mask)
