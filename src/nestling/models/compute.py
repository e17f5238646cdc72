"""The way from items to answers through one engine: planned once, adapters chosen, states pooled or made into vectors.

A batch may mix tasks, and items of which one vector is wanted with items of which every token's state is. Knows no
prefixes, no normalising and no limits.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from nestling.engine import batching
from nestling.engine.protocol import Engine, Item, Resumable, pool_states
from nestling.models.vision import completed
from nestling.spec import Pooling, Task
from nestling.vectors import Floats

Make = Callable[[Floats], Floats]
"""What is made of an item's hidden states: (T, D) -> (rows, width)."""


def as_they_are(states: Floats) -> Floats:
    """A `Make` that gives the hidden states themselves."""
    return states


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """An item, the task whose adapter it takes, and what is made of its states: their pool, where `make` is None."""

    item: Item
    task: Task
    make: Make | None = None

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True, slots=True)
class Compute:
    """An engine with one way of pooling; `adapters` are the tasks of its LoRA adapters, in its order."""

    engine: Engine
    pooling: Pooling
    adapters: tuple[Task, ...] = ()

    def planned(self, works: Sequence[Work]) -> Iterator[tuple[list[int], list[Floats]]]:
        """All of it, in batches of like length, longest first: yields places and the answer for each."""
        for places in batching.plan([len(work) for work in works], self.engine.token_budget):
            yield places, self.batch([works[place] for place in places])

    def batch(self, works: Sequence[Work]) -> list[Floats]:
        """One batch: B items -> B answers. At most the engine's token budget, or one item alone."""
        items, adapters = completed([work.item for work in works]), self._chosen(works)
        if all(work.make is None for work in works):
            return list(self.engine.pool(items, adapters=adapters))
        states = self.engine.token_states(items, adapters=adapters)
        return [self._answer(work, rows) for work, rows in zip(works, states, strict=True)]

    def steps(self, work: Work) -> Generator[float, None, Floats]:
        """The answer for one item that is longer than a batch: yields the work done since, where the engine can pause.

        See `Resumable`.
        """
        if not isinstance(self.engine, Resumable):
            return self.batch([work])[0]
        [item] = completed([work.item])
        states = yield from self.engine.steps(item, adapters=self._chosen([work]))
        return self._answer(work, states)

    def _chosen(self, works: Sequence[Work]) -> list[int]:
        return [self.adapters.index(work.task) for work in works] if self.adapters else []

    def _answer(self, work: Work, states: Floats) -> Floats:
        if work.make is not None:
            return work.make(states)
        pooled: Floats = pool_states(self.pooling, states, [work.item])[0]
        return pooled
