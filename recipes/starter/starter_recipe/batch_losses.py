"""One training batch of each kind, as a loss: teacher distillation, question-passage pairs, translations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from starter_recipe.batches import Pairs, Rows, group_weights, length_batches
from starter_recipe.losses import Negatives, contrast, distillation, late_interaction, unit
from starter_recipe.model import Embedder, pool
from starter_recipe.records import PairKind
from starter_recipe.tokens import Collator

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

DISTIL_TOKENS = 2048
PAIR_TOKENS = 4096
MOST_ROWS = 384
MOST_PAIRS = 128
MOST_LATE = 32
PASSAGE_CAP = 160
BANK_RANDOM = 1024
BANK_NEAR = 6
NEGATIVES = 4
# pairs whose sides the teacher finds unrelated are left out
PAIR_COSINE = 0.2
MARGIN = 0.95
Batch = tuple[Tensor, Tensor]
Step = Callable[[], Tensor]


class BatchLosses:
    """Draws batches from the tokenized data and returns their losses; shares the model with the trainer."""

    def __init__(self, work: Path, tokenizer: Tokenizer, model: Embedder, *, seed: int, late: bool = False) -> None:
        self.model = model
        self.bf16 = False
        self.hidden = model.hidden
        with np.load(work / "targets.npz") as archive:
            self.targets = torch.from_numpy(archive["targets"])
            self.usable: NDArray[np.bool_] = archive["usable"]
            self._near: NDArray[np.int32] = archive["near"]
        self.rows = Rows.load(work / "rows.npz")
        self.everyday = self._load_everyday(work / "everyday.npz")
        self._available = np.flatnonzero(self.usable)
        self.pairs = {kind: Pairs.load(work, kind) for kind in PairKind}
        # a function's passable target is its docstring's vector and the other way round
        self.pairs[PairKind.CODE] = self.pairs[PairKind.CODE].with_stand_ins(self.usable)
        self.late = late
        self._collate = Collator(tokenizer)
        self._generator = np.random.default_rng(seed)

    def _load_everyday(self, path: Path) -> Rows:
        """Read everyday texts, their anchors' targets put behind the others."""
        rows, offset = Rows.load(path), len(self.targets)
        with np.load(path) as archive:
            self.targets = torch.cat((self.targets, torch.from_numpy(archive["targets"])))
            near = archive["near"]
        self.usable = np.concatenate((self.usable, np.ones(len(near), bool)))
        self._near = np.concatenate((self._near, np.where(near >= 0, near + offset, -1).astype(np.int32)))
        return replace(rows, anchors=rows.anchors + offset)

    def distil(self, roles: tuple[str, ...] = ("query", "passage"), rows: Rows | None = None) -> Step:
        """Return a step that pulls texts to the targets of their anchors; every text gets one of the roles."""
        rows = rows or self.rows
        weights = group_weights(rows.group, self.usable[rows.anchors])
        stream = self._stream(rows.tokens.lengths, weights, tokens=DISTIL_TOKENS, most=MOST_ROWS)

        def step() -> Tensor:
            members = next(stream)
            chosen = self._generator.choice(roles, len(members)).tolist()
            vectors = self._pooled(self._collate([rows.tokens[index] for index in members], chosen))
            anchors = rows.anchors[members]
            return distillation(vectors, self._target(anchors), self._bank(anchors, BANK_NEAR, BANK_RANDOM))

        return step

    def keep(self, first: Embedder) -> Step:
        """Return a step that keeps the vectors of translations near those of an earlier model."""
        rows = self.rows
        weights = group_weights(rows.group, rows.foreign)
        stream = self._stream(rows.tokens.lengths, weights, tokens=DISTIL_TOKENS, most=MOST_ROWS)

        def step() -> Tensor:
            members = next(stream)
            batch = self._rows(members, self._generator.choice(("query", "passage"), len(members)).tolist())
            with torch.no_grad():
                wanted = unit(pool(first.hidden(batch[0]), batch[1]))
            return distillation(self._pooled(batch), wanted)

        return step

    def _target(self, anchors: NDArray[np.int64]) -> Tensor:
        return self.targets[torch.from_numpy(anchors)]

    def _bank(self, anchors: NDArray[np.int64], near: int, random: int) -> Tensor:
        """Return targets of the anchors' neighbours and of random texts, none of them an anchor of the batch."""
        chosen = self._near[anchors][:, self._generator.permutation(self._near.shape[1])[:near]]
        chosen = np.union1d(chosen, self._generator.choice(self._available, random))
        return self._target(np.setdiff1d(chosen[chosen >= 0], anchors).astype(np.int64))

    def _negatives(self, asked: NDArray[np.int64], told: NDArray[np.int64]) -> Negatives:
        """Return the passages' neighbours; one as near to a query as its passage, by the teacher, does not count."""
        bank = self._bank(np.concatenate((asked, told)), NEGATIVES, 256)
        queries = self._target(asked)
        right = (queries * self._target(told)).sum(1, keepdim=True)
        return Negatives(bank, queries @ bank.T > MARGIN * right)

    def _good_pairs(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Tell which pairs have teacher vectors on both sides that are not far apart."""
        left, right = pairs.query_anchors, pairs.passage_anchors
        good: NDArray[np.bool_] = self.usable[left] & self.usable[right]
        found = np.flatnonzero(good)
        cosines = torch.cat(
            [(self._target(left[part]) * self._target(right[part])).sum(1) for part in np.array_split(found, 64)]
        )
        good[found[cosines.numpy() < PAIR_COSINE]] = False
        return good

    def answer(self, kind: PairKind, *, temperature: float = 0.05) -> Step:
        """Return a step that tells each query's passage from the batch's other passages."""
        pairs = self.pairs[kind]
        lengths = np.minimum(pairs.passages.lengths, PASSAGE_CAP) + pairs.queries.lengths
        weights = group_weights(pairs.group, self._good_pairs(pairs))
        stream = self._stream(lengths, weights, tokens=PAIR_TOKENS, most=MOST_PAIRS)

        def step() -> Tensor:
            members = next(stream)
            members = members[np.unique(pairs.passage_anchors[members], return_index=True)[1]]
            queries = self._collate([pairs.queries[index] for index in members], ["query"] * len(members))
            passages = self._collate(
                [pairs.passages[index] for index in members], ["passage"] * len(members), PASSAGE_CAP
            )
            if self.late:
                return self._late_loss(queries, passages)
            left, right = self._pooled(queries), self._pooled(passages)
            asked, told = pairs.query_anchors[members], pairs.passage_anchors[members]
            bank = self._bank(np.concatenate((asked, told)), NEGATIVES, 0)
            fixed = distillation(left, self._target(asked), bank) + distillation(right, self._target(told), bank)
            hard = self._negatives(asked, told)
            return fixed / 2 + contrast(left, right, temperature=temperature, negatives=hard)

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
            left, right = self._rows(rows.english[members], roles), self._rows(members, roles)
            if self.late:
                return self._late_loss(left, right)
            return contrast(self._pooled(left), self._pooled(right), temperature=temperature)

        return step

    def _late_loss(self, left: Batch, right: Batch) -> Tensor:
        """Contrast MaxSim scores of the projected tokens, the tower's states being fixed."""
        few = [(self.model.hidden(ids[:MOST_LATE]).detach(), mask[:MOST_LATE]) for ids, mask in (left, right)]
        return late_interaction(self.model, few[0], few[1])

    def _stream(
        self, lengths: NDArray[np.int64], weights: NDArray[np.float64], *, tokens: int, most: int
    ) -> Iterator[NDArray[np.int64]]:
        return length_batches(lengths, weights, tokens=tokens, most=most, generator=self._generator)

    def _rows(self, members: NDArray[np.int64], roles: list[str]) -> Batch:
        return self._collate([self.rows.tokens[index] for index in members], roles)

    def _pooled(self, batch: Batch) -> Tensor:
        ids, mask = batch
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            states = self.hidden(ids)
        return pool(states.float(), mask)
