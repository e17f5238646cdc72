"""Items to vectors: batches planned, run, pooled, projected, finished. What callers hand over becomes items above.

A vector depends on the item and the model's file, never on the other items of the call. Companions of the file (the
multi-vector head, the vision tower) are found beside it when they are first wanted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from nestling import vectors
from nestling._util.numbers import whole_number
from nestling.engine.protocol import POOLS, Engine, Item, TokenIds
from nestling.errors import TextError, TextLengthError, UsageError
from nestling.formats.multivector_head import Projector
from nestling.inputs.late_chunking import Places
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import content, local
from nestling.models.compute import Compute, Make, Work
from nestling.models.towers import tower_of
from nestling.models.vision import TowerOptions, Vision
from nestling.spec import ModelSpec, Task
from nestling.vectors import Floats


class ItemEmbedder:
    """One task model in memory, for items. Safe to call from several threads; calls are served one after another."""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        engine: Engine,
        *,
        path: Path | None = None,
        adapters: Sequence[ModelSpec] = (),
        images: TowerOptions | None = None,
    ) -> None:
        """`adapters`: what each of the engine's LoRA adapters is for, in the engine's order; `spec` is one of them."""
        self.spec, self.tokenizer, self.engine, self.path = spec, tokenizer, engine, path
        self._images = images or TowerOptions()
        self._adapters = tuple(adapters)
        self.compute = Compute(engine, spec.pooling, tuple(one.task for one in adapters))
        self.identity = uuid4().bytes  # what results are cached by: another for every load, as its file may be another
        self._of_other_tasks: dict[Task, Self] = {}

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that this model in memory is for: one, or with adapters all."""
        return self.compute.adapters or (self.spec.task,)

    def limited(self, max_tokens: int) -> Self:
        """The same model in memory for texts of at most so many tokens, where it takes more."""
        most = whole_number(max_tokens, param="max_tokens")
        spec, *adapters = (replace(one, max_tokens=min(one.max_tokens, most)) for one in (self.spec, *self._adapters))
        return type(self)(spec, self.tokenizer, self.engine, path=self.path, adapters=adapters, images=self._images)

    def embed(self, items: Sequence[Item], *, dimension: int | None = None) -> Floats:
        """Embed items: -> (B, dimension) float32, unit rows. Errors: as `embed_ids`."""
        size = self.spec.dimension(dimension)
        return self.finish(self.pool(items), size) if items else np.empty((0, size), np.float32)

    def embed_iter(self, items: Sequence[Item], *, dimension: int | None = None) -> Iterator[tuple[list[int], Floats]]:
        """The same a batch at a time, longest items first: yields (places of b items, (b, dimension) unit rows)."""
        size = self.spec.dimension(dimension)
        for places, pooled in self.run(items):
            yield places, self.finish(np.stack(pooled), size)

    def pool(self, items: Sequence[Item]) -> Floats:
        """Pooled hidden states: B items -> (B, D), not normalised."""
        rows = np.empty((len(items), self.spec.dimensions[-1]), np.float32)
        for places, pooled in self.run(items):
            rows[places] = pooled
        return rows

    def finish(self, pooled: Floats, dimension: int | None = None, *, normalized: bool = True) -> Floats:
        """Pooled states to vectors: (B, D) -> (B, dimension); unit rows, or merely cut if not `normalized`."""
        size = self.spec.dimension(dimension)
        return vectors.finish(pooled, size) if normalized else pooled[:, :size]

    def run(self, items: Sequence[Item], make: Make | None = None) -> Iterator[tuple[list[int], list[Floats]]]:
        """The pooled state of each item, or what `make` makes of its states, a batch at a time: yields places and they.

        No ids, more than `spec.max_tokens` or ids outside the vocabulary are a TextError.
        """
        for index, item in enumerate(items):
            self._check_ids(item.ids, index)
        return self.compute.planned([Work(item, self.spec.task, make) for item in items])

    def pool_chunks(self, ids: TokenIds, places: Sequence[Places]) -> Floats:
        """Pool one text's states chunk by chunk: (T,) ids, C arrays of places -> (C, D), lengths not normalised."""
        [(_, [rows])] = self.run([Item(ids)], self.chunk_pool(places))
        return rows

    def chunk_pool(self, places: Sequence[Places]) -> Make:
        """What pools the hidden states of a document chunk by chunk: C arrays of places; (T, D) -> (C, D)."""
        pool = POOLS[self.spec.pooling]
        return lambda states: np.concatenate([pool(states[mine], np.array([len(mine)])) for mine in places])

    @cached_property
    def projector(self) -> Projector:
        """The multi-vector head, read from the file beside the model's when it is first wanted.

        UsageError when there is none, FileFormatError when it is unsound or of another model.
        """
        if self.path is None:
            raise UsageError("no multi-vector head: this model was not loaded from a file", param="return_multivector")
        path = local.projector_of(self.path, self.spec)
        projector = Projector.open(content.check(path))
        projector.check_fits(path, self.spec)
        return projector

    def multivectors(self, items: Sequence[Item]) -> list[Floats]:
        """Multi-vectors of items: -> B arrays of (T, width) float32, unit rows."""
        found: dict[int, Floats] = {}
        for places, rows in self.run(items, self.projector.project):
            found.update(zip(places, rows, strict=True))
        return [found[index] for index in range(len(items))]

    @property
    def has_vision(self) -> bool:
        """True where a vision tower lies beside the model's file; it is not loaded."""
        try:
            return self.path is not None and tower_of(self.path, self.spec).is_file()
        except UsageError:
            return False

    @cached_property
    def vision(self) -> Vision:
        """The vision tower, found beside the model's file and loaded when it is first wanted.

        UsageError when there is none, FileFormatError when it is unsound or of another checkpoint.
        """
        if self.path is None:
            raise UsageError("no vision tower: this model was not loaded from a file", param="images")
        return Vision.beside(self.path, self.spec, self.tokenizer, engine=self.engine.name, options=self._images)

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()

    def _check_ids(self, ids: NDArray[Any], index: int) -> None:
        if not 1 <= len(ids) <= self.spec.max_tokens:
            raise TextError(f"{len(ids)} tokens, this model takes 1 to {self.spec.max_tokens}", index=index)
        if ids.min() < 0 or ids.max() >= self.tokenizer.size:
            raise TextError(f"token ids go from 0 to {self.tokenizer.size - 1}", index=index)

    def _fitted(self, ids: TokenIds, index: int, *, truncate: bool) -> TokenIds:
        """Ids within the model's limit, cut if that is allowed; TextLengthError otherwise."""
        limit = self.spec.max_tokens
        if len(ids) > limit and not truncate:
            said = f"{len(ids)} tokens, this model takes {limit}; truncate=True cuts the text"
            raise TextLengthError(said, index=index)
        return self.tokenizer.cut(ids, limit)
