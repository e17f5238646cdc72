"""Rows to vectors: texts in batches of similar length, then images in groups; the next is decoded during the last.

Which rows share a batch depends on the rows alone. A row that cannot be embedded is reported with its reason, and does
not stop the others. Does not know the result's files.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestling._util.ahead import ahead
from nestling.bulk.image_files import contents, is_empty
from nestling.bulk.rows import Rows
from nestling.bulk.settings import JobSpec
from nestling.bulk.sources import Found
from nestling.engine.protocol import Item, TokenIds, plain
from nestling.errors import ImageError, TextError
from nestling.models.embedder import Embedder
from nestling.vectors import Floats

GROUP_WORK = 1 << 14
"""Work of the images in a group, in tokens of text: the pixels of about ten of the largest are held in memory."""

Ticked = Callable[[int, int], None]
"""Called with the numbers of (rows, tokens) just done."""
Bad = dict[int, str]
"""Why rows cannot be embedded, by index."""
_Group = tuple[list[int], list[Item]]


def tick_nobody(_rows: int, _tokens: int) -> None:
    """A `Ticked` that does nothing."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The indices of the rows that have a vector, the vectors (B, D), and their work, in tokens of text."""

    places: list[int]
    rows: Floats
    tokens: int


@dataclass(frozen=True, slots=True)
class RowEmbedder:
    """Embeds rows with a job's settings, in vectors of `dimensions` numbers."""

    embedder: Embedder
    what: JobSpec
    dimensions: int

    def embed(self, rows: Rows, table: Found, bad: Bad, ticked: Ticked) -> Embedded:
        """The vectors of the rows not in `bad`; rows that cannot be embedded are added to it. `table`: their file."""
        size, before = len(rows.texts), len(bad)
        found, tokens = np.empty((size, self.dimensions), np.float32), 0
        ticked(before, 0)
        for places, items in self._groups(rows, table, bad):
            for some, vectors in self.embedder.embed_iter(items, dimension=self.dimensions):
                found[[places[one] for one in some]] = vectors
                work = sum(items[one].work for one in some)
                ticked(len(some), work)
                tokens += work
        ticked(len(bad) - before, 0)
        good = [place for place in range(size) if place not in bad]
        return Embedded(good, found[good], tokens)

    def _groups(self, rows: Rows, table: Found, bad: Bad) -> Iterator[_Group]:
        images = {
            place: value for place, value in enumerate(rows.images or ()) if place not in bad and not is_empty(value)
        }
        places = [place for place in range(len(rows.texts)) if place not in bad and place not in images]
        ids = self._tokenize(rows, places, bad)
        yield [place for place in places if place not in bad], plain(ids)
        if images:
            yield from ahead(self._decoded(images, table, bad))

    def _decoded(self, images: dict[int, object], table: Found, bad: Bad) -> Iterator[_Group]:
        vision, group = self.embedder.vision, dict[int, Item]()
        for place, value in images.items():
            try:
                [group[place]] = vision.items(list(vision.read([contents(value, table)])))
            except ImageError as error:
                bad[place] = error.reason
            if sum(item.work for item in group.values()) >= GROUP_WORK:
                yield list(group), list(group.values())
                group = {}
        yield list(group), list(group.values())

    def _tokenize(self, rows: Rows, places: Sequence[int], bad: Bad) -> list[TokenIds]:
        """Token ids of the texts of these rows; rows that cannot be tokenized are added to `bad`."""
        texts: list[Any] = [rows.texts[place] for place in places]
        try:
            return self._ids(texts)
        except TextError:
            found = list[TokenIds]()
        for place, text in zip(places, texts, strict=True):
            try:
                found += self._ids([text])
            except TextError as error:
                bad[place] = error.reason
        return found

    def _ids(self, texts: Sequence[str]) -> list[TokenIds]:
        return self.embedder.tokenize(texts, prompt_name=self.what.prompt, truncate=self.what.truncate)
