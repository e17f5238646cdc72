"""Which waiting texts the engine gets next: fair between requests, of like length within a batch.

Of all waiting requests, the one that would be done first had they shared the engine evenly goes first (weighted fair
queueing, Demers, Keshav and Shenker 1989). So a short query overtakes a bulk request and cannot starve it. Its longest
text fetches others of like length, from requests near the front, to fill the batch. Not thread-safe by itself.
"""

import asyncio
import time
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from nestling.engine import batching
from nestling.engine.protocol import Item
from nestling.models.embedder import Embedder
from nestling.server.core.model_pool import Model
from nestling.spec import Task
from nestling.vectors import Floats

WINDOW = 32
"""Batches' worth of waiting texts among which those of like length are sought."""


Work = Callable[[Embedder, Sequence[Item]], Sequence[Floats]]
"""What is done with token sequences: B -> B arrays, none of them dependent on the others. Equal works share batches."""


@dataclass(eq=False)
class Job:
    """One request's texts on their way through the engine. `finish` is its place in line, in virtual time.

    `task` is the one of the model's that it is for; a job that `mixes` may share a batch with those of other tasks.
    """

    model: Model
    sequences: Sequence[Item]
    future: asyncio.Future[list[Floats]]
    work: Work
    task: Task | None = None
    mixes: bool = False
    finish: float = 0.0
    cancelled: bool = False
    started: bool = False
    queued_at: float = field(default_factory=time.perf_counter)
    waiting: list[int] = field(default_factory=list)
    rows: dict[int, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = sorted(range(len(self.sequences)), key=lambda index: -len(self.sequences[index]))

    def tokens(self, indices: Sequence[int] | None = None) -> int:
        """Tokens of some of its texts, of those that wait by default."""
        return sum(len(self.sequences[index]) for index in (self.waiting if indices is None else indices))

    def results(self) -> list[Floats]:
        """What the work gave for each sequence, in their order."""
        return [self.rows[index] for index in range(len(self.sequences))]


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the engine at once: (job, index of its text) pairs of one model and one work."""

    model: Model
    work: Work
    budget: int
    parts: Sequence[tuple[Job, int]]

    @property
    def tokens(self) -> int:
        """Tokens in it."""
        return sum(len(job.sequences[index]) for job, index in self.parts)

    def live(self) -> list[Job]:
        """The jobs in it that somebody still waits for."""
        return list(dict.fromkeys(job for job, _ in self.parts if not job.cancelled))


class Queue:
    """The waiting jobs in fair order."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._clock = 0.0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Let a job in: were the engine shared evenly from now on, it would be done at clock + its tokens."""
        tokens = job.tokens()
        job.finish = self._clock + tokens
        self.tokens += tokens
        insort(self._jobs, job, key=lambda one: one.finish)

    def take(self, budget_of: Callable[[Model], int]) -> Batch | None:
        """The next batch, or None when nobody waits."""
        self._drop_cancelled()
        if not self._jobs:
            return None
        model, work = self._jobs[0].model, self._jobs[0].work
        budget = budget_of(model)
        window = list(self._window(budget))
        plan = batching.plan([len(job.sequences[index]) for job, index in window], budget)
        first = next(group for group in plan if 0 in group)
        batch = Batch(model, work, budget, [window[place] for place in first])
        self._remove(batch)
        return batch

    def _window(self, budget: int) -> Iterator[tuple[Job, int]]:
        """What may share the next batch: `WINDOW` budgets of tokens, of jobs that are done at most a budget later.

        So a short query goes without texts of a bulk request, which would only make its batch slower.
        """
        first, tokens = self._jobs[0], WINDOW * budget
        latest = first.finish + budget
        for job in self._jobs:
            if job.finish > latest:
                return
            if job.model is not first.model or job.work is not first.work:
                continue
            if job.task is not first.task and not first.mixes:
                continue
            for index in job.waiting:
                yield job, index
                tokens -= len(job.sequences[index])
                if tokens <= 0:
                    return

    def _remove(self, batch: Batch) -> None:
        tokens = batch.tokens
        self.tokens -= tokens
        self._clock += tokens / len(self._jobs)
        for job in dict.fromkeys(job for job, _ in batch.parts):
            taken = {index for one, index in batch.parts if one is job}
            job.waiting = [index for index in job.waiting if index not in taken]
        self._jobs = [job for job in self._jobs if job.waiting]

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.cancelled]:
            self.tokens -= job.tokens()
            self._jobs.remove(job)
