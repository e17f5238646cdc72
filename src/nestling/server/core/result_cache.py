"""Pooled states of texts that were embedded before, bounded in bytes, the least recently used going first.

The key is the model and the exact token ids, so a hit is what the engine would answer. For use from one thread.
"""

from collections import OrderedDict

from nestling.engine.protocol import TokenIds
from nestling.vectors import Floats

OVERHEAD_BYTES = 300
"""What an entry costs beside its key and its numbers: two objects, a dictionary slot."""


class ResultCache:
    """(model, ids) -> (D,) pooled state. A bound of 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[tuple[str, bytes], Floats] = OrderedDict()
        self.size_bytes = 0

    def get(self, model: str, ids: TokenIds) -> Floats | None:
        """The state, or None."""
        if not self._max_bytes:
            return None
        key = (model, ids.tobytes())
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, model: str, ids: TokenIds, row: Floats) -> None:
        """Keep a state, and let the oldest go until everything fits."""
        key = (model, ids.tobytes())
        if _cost(key, row) > self._max_bytes or key in self._rows:
            return
        self._rows[key] = row.copy()  # a view would keep its whole batch
        self.size_bytes += _cost(key, row)
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= _cost(*self._rows.popitem(last=False))


def _cost(key: tuple[str, bytes], row: Floats) -> int:
    return len(key[1]) + row.nbytes + OVERHEAD_BYTES
