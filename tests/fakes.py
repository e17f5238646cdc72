"""Stand-ins for an engine, so that a test says what the engine answers."""

from collections.abc import Callable, Sequence

import numpy as np

from nestling.engine import batching
from nestling.engine.protocol import Engine, Item, TokenIds, plain
from nestling.vectors import Floats


def distinct(ids: TokenIds, width: int) -> Floats:
    """A vector that depends on the ids and their order alone: (T,) -> (width,)."""
    seed = np.frombuffer(ids.astype("<i4").tobytes(), np.uint32)
    return np.random.default_rng(seed).standard_normal(width, np.float32)


class FakeEngine:
    """Answers with `answer` of each text's ids, and remembers what it was asked."""

    name = "fake"
    token_budget = batching.TOKEN_BUDGET
    spare_pairs: float = batching.SPARE_PAIRS
    reason = "a test's"

    def __init__(self, width: int, answer: Callable[[TokenIds, int], Floats] = distinct) -> None:
        self._width, self._answer = width, answer
        self.asked: list[TokenIds] = []
        self.closed = False

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        """The answers: B items -> (B, width)."""
        assert not adapters
        self.asked += [item.ids for item in items]
        return np.stack([self._answer(item.ids, self._width) for item in items])

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        """A state of each token that depends on the ids up to it: B items -> B arrays of (T, width)."""
        assert not adapters
        self.asked += [item.ids for item in items]
        return [
            np.stack([self._answer(item.ids[: end + 1], self._width) for end in range(len(item))]) for item in items
        ]

    def close(self) -> None:
        """Be closed."""
        self.closed = True


def token_states(engine: Engine, texts: Sequence[TokenIds]) -> list[Floats]:
    """Every token's state of texts that need several batches: B -> B arrays of (T, D)."""
    return [engine.token_states(plain([ids]))[0] for ids in texts]


def pool(engine: Engine, texts: Sequence[TokenIds]) -> Floats:
    """Pooled states of texts that need several batches, as an embedder asks for them: B -> (B, D)."""
    found: dict[int, Floats] = {}
    for places in batching.plan([len(ids) for ids in texts], engine.token_budget, spare_pairs=engine.spare_pairs):
        found.update(zip(places, engine.pool(plain([texts[place] for place in places])), strict=True))
    return np.stack([found[place] for place in range(len(texts))])
