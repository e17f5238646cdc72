"""One adapter of an engine that has several, as an engine of its own. Knows no task: adapters go by their place."""

from collections.abc import Iterator, Sequence

from nestling.engine.protocol import AdaptedEngine, Profiled, TokenIds
from nestling.errors import EngineError
from nestling.vectors import Floats


class OneAdapter:
    """What `shared` answers when every text takes the adapter at `place`."""

    def __init__(self, shared: AdaptedEngine, place: int) -> None:
        self.shared, self.place, self.name = shared, place, shared.name

    def pool(self, sequences: Sequence[TokenIds]) -> Floats:
        """The final hidden states of each sequence, pooled: B sequences -> (B, D)."""
        return self.shared.pool(sequences, adapters=[self.place] * len(sequences))

    def token_states(self, sequences: Sequence[TokenIds]) -> Iterator[tuple[int, Floats]]:
        """The final hidden states of each sequence: yields (its place, (T, D))."""
        return self.shared.token_states(sequences, adapters=[self.place] * len(sequences))

    def profile(self) -> dict[str, float]:
        """Where the shared engine's time went, the other adapters' texts included."""
        if not isinstance(self.shared, Profiled):
            raise EngineError(f"no profile: the {self.name} engine keeps none")
        return self.shared.profile()

    def close(self) -> None:
        """Give the shared engine's memory back: the others' too."""
        self.shared.close()
