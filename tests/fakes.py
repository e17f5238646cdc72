"""Stand-ins for an engine, so that a test says what the engine answers."""

from collections.abc import Callable, Sequence

import numpy as np

from nestling.engine.base import TokenIds
from nestling.vectors import Floats


def distinct(ids: TokenIds, width: int) -> Floats:
    """A vector that depends on the ids and their order alone: (T,) -> (width,)."""
    seed = np.frombuffer(ids.astype("<i4").tobytes(), np.uint32)
    return np.random.default_rng(seed).standard_normal(width, np.float32)


class FakeEngine:
    """Answers with `answer` of each text's ids, and remembers what it was asked."""

    name = "fake"

    def __init__(self, width: int, answer: Callable[[TokenIds, int], Floats] = distinct) -> None:
        self._width, self._answer = width, answer
        self.asked: list[TokenIds] = []
        self.closed = False

    def pool(self, sequences: Sequence[TokenIds]) -> Floats:
        """The answers: B sequences -> (B, width)."""
        self.asked += sequences
        return np.stack([self._answer(ids, self._width) for ids in sequences])

    def close(self) -> None:
        """Be closed."""
        self.closed = True
