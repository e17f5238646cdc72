"""Find rows that repeat an earlier row's id, in constant memory: hashes go to buckets on disk, sorted one at a time.

Ids are compared by 128 bits of BLAKE2b of their text, so 1 and "1" are one id. A row is named by its index in the
whole source. Equal sources give equal results on every machine.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PREFIX = ".ids-"
BUCKETS = 64
DIGEST_BYTES = 16
_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
Pairs = NDArray[np.int64]
"""(N, 2): a row that repeats an id, and the first row with that id; sorted by the first column."""


class Ids:
    """Collects the ids of a source's rows, in order. A context manager, which removes its files on exit."""

    def __init__(self, folder: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder)
        self._files = [(Path(self._folder.name) / str(place)).open("w+b") for place in range(BUCKETS)]
        self.rows = 0

    def add(self, ids: Sequence[object]) -> None:
        """Add the ids of the next rows; None means no id and is never a duplicate."""
        places = [place for place, one in enumerate(ids) if one is not None]
        digests = b"".join([_digest(ids[place]) for place in places])
        entries = np.empty(len(places), _ENTRY)
        halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
        entries["high"], entries["low"], entries["row"] = (
            halves[:, 0],
            halves[:, 1],
            np.array(places, np.int64) + self.rows,
        )
        buckets = entries["low"] % BUCKETS
        order = np.argsort(buckets, kind="stable")
        ends = np.searchsorted(buckets[order], np.arange(BUCKETS), side="right")
        for file, part in zip(self._files, np.split(entries[order], ends[:-1]), strict=True):
            file.write(part.tobytes())
        self.rows += len(ids)

    def mark(self) -> tuple[int, list[int]]:
        """The present state, for `back_to`."""
        return self.rows, [file.tell() for file in self._files]

    def back_to(self, mark: tuple[int, list[int]]) -> None:
        """Drop the ids added after `mark`: those of a file that turned out to be broken."""
        self.rows, ends = mark
        for file, end in zip(self._files, ends, strict=True):
            file.seek(end)
            file.truncate()

    def duplicates(self) -> Pairs:
        """Every row that repeats an earlier row's id."""
        found = np.concatenate([self._in_bucket(place) for place in range(BUCKETS)])
        return found[np.argsort(found[:, 0])]

    def close(self) -> None:
        """Remove the files."""
        for file in self._files:
            file.close()
        self._folder.cleanup()

    def _in_bucket(self, place: int) -> Pairs:
        file = self._files[place]
        file.flush()
        entries = np.fromfile(file.name, _ENTRY)
        entries = entries[np.lexsort((entries["row"], entries["low"], entries["high"]))]
        same = np.ones(len(entries), bool)
        same[:1] = False
        for half in ("high", "low"):
            same[1:] &= entries[half][1:] == entries[half][:-1]
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(entries))))
        return np.stack([entries["row"][same], entries["row"][first[same]]], axis=1)


def _digest(value: object) -> bytes:
    return hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
