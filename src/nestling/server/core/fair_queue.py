"""Which waiting texts the engine gets next: fair between requests by tokens of work, of like length within a batch.

Requests share the engine as if it served them all at once, each at the same speed (weighted fair queueing, Demers,
Keshav and Shenker 1989), in quanta of `QUANTUM` tokens: the next batch is the request's whose next quantum would be
done first. So a short query overtakes a bulk request, and neither starves the other. The request's longest text brings
others of like length along, from requests that would be done about as soon. For use from one thread.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from nestling.engine import batching
from nestling.engine.protocol import Item
from nestling.models.compute import Make, Work
from nestling.server.core.model_pool import Model
from nestling.spec import Task
from nestling.vectors import Floats

QUANTUM = 512
"""Tokens of a request that count when its turn is decided: about what the engine does before it looks again."""
WINDOW = 8
"""Batches' worth of waiting texts among which those of like length are sought."""


@dataclass(eq=False)
class Job:
    """One request's items on their way through the engine.

    `task` is the one of the model's that it is for, None for the model's own; `make` what is made of each item's hidden
    states, None for the pooled one. `share` is the virtual time up to which it has had its share. `counted`: its tokens
    in the bound of the queue, which are the scheduler's to keep.
    """

    model: Model
    items: Sequence[Item]
    future: asyncio.Future[list[Floats]]
    task: Task | None = None
    make: Make | None = None
    share: float = 0.0
    cancelled: bool = False
    started: bool = False
    counted: int = 0
    queued_at: float = field(default_factory=time.perf_counter)
    waiting: list[int] = field(default_factory=list)
    left: int = 0
    rows: dict[int, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = sorted(range(len(self.items)), key=lambda index: -len(self.items[index]))
        self.left = self.counted = sum(item.work for item in self.items)

    @property
    def turn(self) -> float:
        """Virtual finish time of its next quantum: the lower, the sooner it is its turn."""
        return self.share + min(self.left, QUANTUM)

    @property
    def finish(self) -> float:
        """Virtual finish time of all of it."""
        return self.share + self.left

    def longest_of(self, most: float) -> int | None:
        """Its longest waiting text of at most so many tokens, by its place among the items."""
        return next((index for index in self.waiting if len(self.items[index]) <= most), None)

    def results(self) -> list[Floats]:
        """The answer for each item, in their order."""
        return [self.rows[index] for index in range(len(self.items))]


Part = tuple[Job, int]
"""A job and the place of one of its items."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A model's: tokens of a batch now, and those from beyond which a text goes alone, in pieces."""

    budget: int
    whole: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the engine at once: items of one model."""

    model: Model
    limits: Limits
    parts: Sequence[Part]

    @property
    def tokens(self) -> int:
        """Tokens in it."""
        return sum(len(job.items[index]) for job, index in self.parts)

    @property
    def in_pieces(self) -> bool:
        """True for one text that is too long to go through at once."""
        return len(self.parts) == 1 and self.tokens > self.limits.whole

    def live(self) -> list[Job]:
        """The jobs in it that somebody still waits for."""
        return list(dict.fromkeys(job for job, _ in self.parts if not job.cancelled))

    def works(self, parts: Sequence[Part] | None = None) -> list[Work]:
        """What the model is asked for, by some of its parts or all."""
        own = self.model.embedder.spec.task
        chosen = self.parts if parts is None else parts
        return [Work(job.items[index], job.task or own, job.make) for job, index in chosen]


class Queue:
    """The waiting jobs, and their virtual time."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Let a job in; its share begins now."""
        job.share = self._clock
        self._jobs.append(job)

    def drop_cancelled(self) -> None:
        """Forget jobs that nobody waits for."""
        self._jobs = [job for job in self._jobs if not job.cancelled]

    def empty(self) -> list[Job]:
        """Take all jobs out."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def take(self, limits_of: Callable[[Model], Limits], *, running: Job | None = None) -> Batch | None:
        """The next batch, or None when nobody waits.

        `running` is the job whose long text is being computed in pieces: None also where it is that job's turn, and no
        second text that is computed in pieces is taken.
        """
        found = [(job, limits_of(job.model)) for job in self._jobs]
        open_to = {job: math.inf if running is None else limits.whole for job, limits in found}
        able = [job for job in self._jobs if job.longest_of(open_to[job]) is not None]
        if not able:
            return None
        first = min(able, key=lambda job: job.turn)
        if running is not None and running.share + QUANTUM < first.turn:
            return None
        limits = limits_of(first.model)
        batch = Batch(first.model, limits, self._alike(first, able, limits, open_to[first]))
        for job, index in batch.parts:
            job.waiting.remove(index)
            job.left -= job.items[index].work
            if not batch.in_pieces:
                job.share += job.items[index].work
        if not batch.in_pieces:
            self._pass(sum(job.items[index].work for job, index in batch.parts), running)
        self._jobs = [job for job in self._jobs if job.waiting]
        return batch

    def charge(self, job: Job, work: float) -> None:
        """Count a piece of a job's long text: so many tokens of work."""
        job.share += work
        self._pass(work, job)

    def _pass(self, work: float, running: Job | None) -> None:
        """Virtual time goes on by each one's share of the work."""
        active = len(self._jobs) + (running is not None and running not in self._jobs)
        self._clock += work / max(active, 1)

    def _alike(self, first: Job, able: Sequence[Job], limits: Limits, most: float) -> list[Part]:
        """The job's longest text and others of about its length, within the budget and what padding may cost."""
        index = first.longest_of(most)
        assert index is not None
        length = len(first.items[index])
        chosen, tokens = [(first, index)], length
        if length > limits.budget:
            return chosen
        longest, squares = length, length**2
        seed = chosen[0]
        others = [part for part in self._window(first, able, limits) if part != seed]
        for job, place in sorted(others, key=lambda part: abs(len(part[0].items[part[1]]) - length)):
            own = len(job.items[place])
            most_long, sum_squares = max(longest, own), squares + own**2
            padding = (len(chosen) + 1) * most_long**2 - sum_squares
            if tokens + own <= limits.budget and padding <= batching.SPARE_PAIRS:
                chosen.append((job, place))
                tokens, longest, squares = tokens + own, most_long, sum_squares
        return chosen

    def _window(self, first: Job, able: Sequence[Job], limits: Limits) -> Iterator[Part]:
        """What may share the batch: `WINDOW` budgets of texts, of jobs that would be done at most a budget later.

        So a short query goes without texts of a bulk request, which would only make its batch slower.
        """
        tokens, latest = WINDOW * limits.budget, first.finish + limits.budget
        near = [job for job in able if job.model is first.model and job.finish <= latest]
        for job in sorted(near, key=lambda one: (one is not first, one.finish)):
            for index in job.waiting:
                if len(job.items[index]) <= limits.budget:
                    yield job, index
                    tokens -= len(job.items[index])
                if tokens <= 0:
                    return
