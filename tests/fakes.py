"""Stand-ins for an engine, so that a test says what the engine answers."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nestling.engine.protocol import TokenIds
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

    def token_states(self, sequences: Sequence[TokenIds]) -> Iterator[tuple[int, Floats]]:
        """A state of each token that depends on the ids up to it: yields (place, (T, width)), the last text first."""
        self.asked += sequences
        for index, ids in reversed(list(enumerate(sequences))):
            yield index, np.stack([self._answer(ids[: end + 1], self._width) for end in range(len(ids))])

    def close(self) -> None:
        """Be closed."""
        self.closed = True
