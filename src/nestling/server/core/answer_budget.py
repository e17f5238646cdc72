"""Bounds the memory of all answers' vectors, from before they are computed until their last byte has been sent."""

from collections.abc import Iterator
from contextlib import contextmanager

from nestling.server.core.metrics import Metrics
from nestling.server.core.refusals import BusyError

SMALL = 1 << 18
"""Bytes up to which an answer is not counted, so that a query is answered while slow clients hold the budget."""


class AnswerBudget:
    """The bytes of vectors held at present. For use from one thread."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes, self._metrics = max_bytes, metrics
        self.held_bytes = 0

    @contextmanager
    def held(self, size_bytes: int) -> Iterator[None]:
        """Hold bytes while the block runs; BusyError when the budget is used up. A single holder may exceed it."""
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
