"""A bound for the vectors of all answers together, from before they are computed until their last byte has left."""

from collections.abc import Iterator
from contextlib import contextmanager

from nestling.server.core.metrics import Metrics
from nestling.server.core.refusals import BusyError

SMALL = 1 << 18
"""Answers up to this size are not counted, so that a query is answered while many clients do not read theirs."""


class AnswerBudget:
    """Bytes of vectors that are held. For use from one thread."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes, self._metrics = max_bytes, metrics
        self.held_bytes = 0

    @contextmanager
    def held(self, size_bytes: int) -> Iterator[None]:
        """Hold so many bytes while the block lasts; BusyError when others hold too many. One alone may be larger."""
        if size_bytes <= SMALL:
            yield
            return
        if self.held_bytes and self.held_bytes + size_bytes > self._max_bytes:
            self._metrics.rejected.labels("answers").inc()
            raise BusyError("too many vectors are waiting to be computed or sent")
        self.held_bytes += size_bytes
        try:
            yield
        finally:
            self.held_bytes -= size_bytes
