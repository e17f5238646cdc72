"""Run items through an engine: plan batches once, select LoRA adapters, pool or convert the hidden states.

A batch may mix tasks, and items that are pooled with items whose token states are all needed. Does not know prefixes,
normalising or limits.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from nestling.engine import batching
from nestling.engine.protocol import Engine, Item, Resumable, pool_states
from nestling.models.vision import completed
from nestling.spec import Pooling, Task
from nestling.vectors import Floats

Make = Callable[[Floats], Floats]
"""Converts an item's hidden states: (T, D) -> (rows, width)."""


def as_they_are(states: Floats) -> Floats:
    """A `Make` that returns the hidden states unchanged."""
    return states


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """An item, the task of its LoRA adapter, and what converts its hidden states; they are pooled if `make` is None."""

    item: Item
    task: Task
    make: Make | None = None

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True, slots=True)
class Compute:
    """An engine and its pooling; `adapters` are the tasks of its LoRA adapters, in the engine's order."""

    engine: Engine
    pooling: Pooling
    adapters: tuple[Task, ...] = ()

    def planned(self, works: Sequence[Work]) -> Iterator[tuple[list[int], list[Floats]]]:
        """Run all works in batches of similar length, longest first: yields their indices and results."""
        lengths, engine = [len(work) for work in works], self.engine
        for places in batching.plan(lengths, engine.token_budget, spare_pairs=engine.spare_pairs):
            yield places, list(self.batch([works[place] for place in places]))

    def batch(self, works: Sequence[Work]) -> Sequence[Floats] | Floats:
        """Run one batch of at most the engine's token budget, or a single item: B works -> B results.

        Where all are pooled, they are the engine's own (B, D).
        """
        items, adapters = completed([work.item for work in works]), self._chosen(works)
        if all(work.make is None for work in works):
            return self.engine.pool(items, adapters=adapters)
        states = self.engine.token_states(items, adapters=adapters)
        return [self._answer(work, rows) for work, rows in zip(works, states, strict=True)]

    def steps(self, work: Work) -> Generator[float, None, Floats]:
        """Run one item longer than a batch in resumable steps: yields the work done by each, returns the result.

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
