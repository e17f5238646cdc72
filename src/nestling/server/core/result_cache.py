"""Cache of pooled states of items, bounded in bytes; the least recently used are evicted first.

The key is the item's identity and that of the loaded model, not its name, whose file may have been replaced: a hit
equals the engine's result. For use from one thread.
"""

from collections import OrderedDict

from nestling.engine.protocol import Item
from nestling.vectors import Floats

OVERHEAD_BYTES = 300
"""Overhead of an entry, without its key and numbers: two objects and a dictionary slot."""


class ResultCache:
    """(`Embedder.identity`, item) -> (D,) pooled state. A bound of 0 disables it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[tuple[bytes, bytes], Floats] = OrderedDict()
        self.size_bytes = 0

    @property
    def is_used(self) -> bool:
        """False for a cache that holds nothing."""
        return self._max_bytes > 0

    def get(self, model: bytes, item: Item) -> Floats | None:
        """The state, or None."""
        key = (model, item.identity)
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, model: bytes, item: Item, row: Floats) -> None:
        """Store a state, and evict the least recently used until all fit."""
        key = (model, item.identity)
        if _cost(key, row) > self._max_bytes or key in self._rows:
            return
        self._rows[key] = row.copy()  # a view would keep its whole batch
        self.size_bytes += _cost(key, row)
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= _cost(*self._rows.popitem(last=False))


def _cost(key: tuple[bytes, bytes], row: Floats) -> int:
    return len(key[1]) + row.nbytes + OVERHEAD_BYTES
