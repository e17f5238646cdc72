"""Items to vectors: plan batches, run, pool, project, normalise. `embedder` converts inputs to items.

A vector depends on the item and the model's file, never on the other items of the call. The multi-vector head and the
vision tower are files next to the model's file and are loaded on first use.
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
from nestling._util.extras import look_for
from nestling._util.numbers import whole_number
from nestling.engine.names import EngineName
from nestling.engine.protocol import POOLS, Engine, Item, TokenIds
from nestling.engine.towers import check_vision
from nestling.errors import TextError, TextLengthError, UsageError
from nestling.formats.multivector_head import Projector
from nestling.inputs.late_chunking import Indices
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import content, local
from nestling.models.compute import Compute, Make, Work
from nestling.models.towers import tower_of
from nestling.models.vision import ImageItem, TowerOptions, Vision
from nestling.spec import ModelSpec, Task
from nestling.vectors import Floats


class ItemEmbedder:
    """One loaded task model, for items. Safe to call from several threads; calls run one after another."""

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
        """`adapters`: the specifications of the engine's LoRA adapters, in its order; `spec` is one of them."""
        self.spec, self.tokenizer, self.engine, self.path = spec, tokenizer, engine, path
        self._images = images or TowerOptions()
        self._adapters = tuple(adapters)
        self.compute = Compute(engine, spec.pooling, tuple(one.task for one in adapters))
        self.identity = uuid4().bytes  # part of cache keys: a new one per load, since the file may have changed
        self._of_other_tasks: dict[Task, Self] = {}

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of this model: one, or all tasks of its LoRA adapters."""
        return self.compute.adapters or (self.spec.task,)

    def limited(self, max_tokens: int) -> Self:
        """Internal. The same model in memory with a lower `spec.max_tokens`."""
        most = whole_number(max_tokens, param="max_tokens")
        spec, *adapters = (replace(one, max_tokens=min(one.max_tokens, most)) for one in (self.spec, *self._adapters))
        return type(self)(spec, self.tokenizer, self.engine, path=self.path, adapters=adapters, images=self._images)

    def embed(self, items: Sequence[Item], *, dimension: int | None = None) -> Floats:
        """Embed items.

        Args:
            items: B items, as `items` makes them.
            dimension: one of the trained vector sizes; the full width by default.

        Returns:
            (B, dimension) float32, unit rows.

        Raises:
            UsageError: An untrained size.
            TextError: An item with no tokens, too many, or ids outside the vocabulary; `index` is its index.

        Example:
            vectors = model.embed(model.items(["a beach"], prompt_name="passage"))
        """
        size = self.spec.dimension(dimension)
        return self.finish(self.pool(items), size) if items else np.empty((0, size), np.float32)

    def embed_iter(self, items: Sequence[Item], *, dimension: int | None = None) -> Iterator[tuple[list[int], Floats]]:
        """`embed` batch by batch, longest items first, for progress or writing as one goes.

        Args:
            items: as in `embed`.
            dimension: as in `embed`.

        Yields:
            (indices of b items, (b, dimension) float32, unit rows).

        Raises:
            UsageError: As in `embed`.
            TextError: As in `embed`.

        Example:
            rows = {i: row for indices, batch in model.embed_iter(items) for i, row in zip(indices, batch)}
        """
        size = self.spec.dimension(dimension)
        for places, pooled in self.run(items):
            yield places, self.finish(np.stack(pooled), size)

    def pool(self, items: Sequence[Item]) -> Floats:
        """Internal. Pooled hidden states: B items -> (B, D), not normalised."""
        rows = np.empty((len(items), self.spec.dimensions[-1]), np.float32)
        for places, pooled in self.run(items):
            rows[places] = pooled
        return rows

    def finish(self, pooled: Floats, dimension: int | None = None, *, normalized: bool = True) -> Floats:
        """Internal. Pooled states to vectors: (B, D) -> (B, dimension); unit rows unless not `normalized`."""
        size = self.spec.dimension(dimension)
        return vectors.finish(pooled, size) if normalized else pooled[:, :size]

    def run(self, items: Sequence[Item], make: Make | None = None) -> Iterator[tuple[list[int], list[Floats]]]:
        """Internal. Pool items, or convert their hidden states by `make`: yields (indices, results) of each batch.

        TextError for no ids, more than `spec.max_tokens`, or ids outside the vocabulary.
        """
        for index, item in enumerate(items):
            self._check_ids(item.ids, index)
        return self.compute.planned([Work(item, self.spec.task, make) for item in items])

    def pool_chunks(self, ids: TokenIds, chunks: Sequence[Indices]) -> Floats:
        """Internal. Pool a text's states by chunk: (T,) ids, C arrays of token indices -> (C, D), not normalised."""
        [(_, [rows])] = self.run([Item(ids)], self.chunk_pool(chunks))
        return rows

    def chunk_pool(self, chunks: Sequence[Indices]) -> Make:
        """Internal. A `Make` that pools by chunk: C arrays of token indices; (T, D) -> (C, D)."""
        pool = POOLS[self.spec.pooling]
        return lambda states: np.concatenate([pool(states[mine], np.array([len(mine)])) for mine in chunks])

    @cached_property
    def projector(self) -> Projector:
        """Internal. The multi-vector head, loaded on first use from its file next to the model's.

        UsageError when there is none, FileFormatError when it is damaged or another model's.
        """
        if self.path is None:
            raise UsageError("no multi-vector head: this model was not loaded from a file", param="return_multivector")
        path = local.projector_of(self.path, self.spec)
        projector = Projector.open(content.check(path))
        projector.check_fits(path, self.spec)
        return projector

    def multivectors(self, items: Sequence[Item]) -> list[Floats]:
        """Internal. Multi-vectors of items: -> B arrays of (T, width) float32, unit rows."""
        found: dict[int, Floats] = {}
        for places, rows in self.run(items, self.projector.project):
            found.update(zip(places, rows, strict=True))
        return [found[index] for index in range(len(items))]

    @property
    def images_refused(self) -> str | None:
        """Why the model takes no images, or None if it does; loads neither the vision tower nor Pillow."""
        try:
            tower_of(self._own_path, self.spec)
            check_vision(EngineName.parse(self.engine.name))
            look_for("PIL", wanted_for="an image", extra="images")
        except UsageError as error:
            return str(error)
        return None

    @cached_property
    def vision(self) -> Vision:
        """Internal. The vision tower, loaded on first use from its file next to the model's.

        UsageError when there is none, FileFormatError when it is damaged or another checkpoint's.
        """
        return Vision.load(self._own_path, self.spec, self.tokenizer, engine=self.engine.name, options=self._images)

    def own(self, item: Item) -> Item:
        """Internal. An item whose vision tower, if it needs one, is this model's: on this model's device."""
        return replace(item, vision=self.vision) if isinstance(item, ImageItem) else item

    @property
    def _own_path(self) -> Path:
        if self.path is None:
            raise UsageError("no vision tower: this model was not loaded from a file", param="images")
        return self.path

    def close(self) -> None:
        """Free the engine's memory. The model cannot be used afterwards.

        Example:
            model.close()
        """
        self.engine.close()

    def _check_ids(self, ids: NDArray[Any], index: int) -> None:
        if not 1 <= len(ids) <= self.spec.max_tokens:
            raise TextError(f"{len(ids)} tokens: expected 1 to {self.spec.max_tokens}", index=index)
        if ids.min() < 0 or ids.max() >= self.tokenizer.size:
            raise TextError(f"expected token ids from 0 to {self.tokenizer.size - 1}", index=index)

    def _fitted(self, ids: TokenIds, index: int, *, truncate: bool) -> TokenIds:
        """Ids within the model's limit: truncated if that is allowed, else a TextLengthError."""
        limit = self.spec.max_tokens
        if len(ids) > limit and not truncate:
            message = f"{len(ids)} tokens, this model takes {limit}; truncate=True truncates the text"
            raise TextLengthError(message, index=index)
        return self.tokenizer.cut(ids, limit)
