"""Items to vectors: batches planned, run, pooled, projected, finished. What callers hand over becomes items above.

A vector depends on the item and the model's file, never on the other items of the call. Companions of the file (the
multi-vector head, the vision tower) are found beside it when they are first wanted.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nestling import vectors
from nestling.engine import batching
from nestling.engine.protocol import Engine, Item
from nestling.errors import TextError, UsageError
from nestling.formats.multivector_head import Projector
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import local
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
        self._of_other_tasks: dict[Task, Self] = {}

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that this model in memory is for: one, or with adapters all."""
        return tuple(one.task for one in self._adapters) or (self.spec.task,)

    def embed(self, items: Sequence[Item], *, dimension: int | None = None) -> Floats:
        """Embed items: -> (B, dimension) float32, unit rows. Errors: as `embed_ids`."""
        size = self.spec.dimension(dimension)
        return vectors.finish(self.pool(items), size) if items else np.empty((0, size), np.float32)

    def embed_iter(self, items: Sequence[Item], *, dimension: int | None = None) -> Iterator[tuple[list[int], Floats]]:
        """The same a batch at a time, longest items first: yields (places of b items, (b, dimension) unit rows)."""
        size = self.spec.dimension(dimension)
        for places, pooled in self._pooled(items, ()):
            yield places, vectors.finish(pooled, size)

    def pool(self, items: Sequence[Item], *, tasks: Sequence[Task] = ()) -> Floats:
        """Pooled hidden states: B items (of this task, or each of its own of `tasks`) -> (B, D), not normalised."""
        rows = np.empty((len(items), self.spec.dimensions[-1]), np.float32)
        for places, pooled in self._pooled(items, tasks):
            rows[places] = pooled
        return rows

    def _pooled(self, items: Sequence[Item], tasks: Sequence[Task]) -> Iterator[tuple[list[int], Floats]]:
        for places, batch, adapters in self._batches(items, tasks):
            yield places, self.engine.pool(batch, adapters=adapters)

    def token_states(self, items: Sequence[Item], *, tasks: Sequence[Task] = ()) -> Iterator[tuple[int, Floats]]:
        """Every token's hidden state, a batch computed at a time: yields (place of the item, (T, D)), longest first."""
        for places, batch, adapters in self._batches(items, tasks):
            yield from zip(places, self.engine.token_states(batch, adapters=adapters), strict=True)

    def _batches(
        self, items: Sequence[Item], tasks: Sequence[Task]
    ) -> Iterator[tuple[list[int], list[Item], list[int]]]:
        """Plan, once, which items go through the engine together: yields their places, they, the adapter of each."""
        for index, item in enumerate(items):
            self._check_ids(item.ids, index)
        order = {one.task: place for place, one in enumerate(self._adapters)}
        wanted = tasks or [self.spec.task] * len(items)
        for places in batching.plan([len(item) for item in items], self.engine.token_budget):
            adapters = [order[wanted[place]] for place in places] if order else []
            yield places, [items[place] for place in places], adapters

    @cached_property
    def projector(self) -> Projector:
        """The multi-vector head, read from the file beside the model's when it is first wanted.

        UsageError when there is none, FileFormatError when it is unsound or of another model.
        """
        if self.path is None:
            raise UsageError("no multi-vector head: this model was not loaded from a file", param="return_multivector")
        path = local.projector_of(self.path, self.spec)
        projector = Projector.open(path)
        projector.check_fits(path, self.spec)
        return projector

    def multivectors(self, items: Sequence[Item]) -> list[Floats]:
        """Multi-vectors of items: -> B arrays of (T, width) float32, unit rows."""
        project = self.projector.project
        found = {index: project(states) for index, states in self.token_states(items)}
        return [found[index] for index in range(len(items))]

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
