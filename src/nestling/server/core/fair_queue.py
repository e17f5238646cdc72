"""Which waiting texts the engine gets next: fair between requests by tokens, similar in length within a batch.

Weighted fair queueing (Demers, Keshav and Shenker 1989) in quanta of `QUANTUM` tokens: the next batch starts with the
request whose next quantum has the lowest virtual finish time. So a short query overtakes a bulk request, and neither
starves the other. The request's longest text is batched with texts of similar length, also from requests with a similar
virtual finish time. For use from one thread at a time.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from nestling.engine.protocol import Item
from nestling.models.compute import Make, Work
from nestling.server.core.replicas import Model
from nestling.spec import Task
from nestling.vectors import Floats

QUANTUM = 512
"""Most tokens of a request that count in its next virtual finish time: about the work between two decisions."""
WINDOW = 8
"""Batches' worth of waiting texts that are searched for texts of similar length."""


@dataclass(eq=False)
class Job:
    """One request's items on their way through the engine.

    `task`: the LoRA task of the model to run, None for the model's own. `make`: the function of each item's hidden
    states that is the result, None for pooling. `share`: the virtual time up to which it has been served. `counted`:
    its tokens in the queue's bound, kept by the scheduler.
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
        """Virtual finish time of its next quantum; the lowest goes first."""
        return self.share + min(self.left, QUANTUM)

    @property
    def finish(self) -> float:
        """Virtual finish time of its last item."""
        return self.share + self.left

    def longest_of(self, most: float) -> int | None:
        """The index of its longest waiting text of at most `most` tokens."""
        return next((index for index in self.waiting if len(self.items[index]) <= most), None)

    def results(self) -> list[Floats]:
        """The result of each item, in order."""
        return [self.rows[index] for index in range(len(self.items))]


Part = tuple[Job, int]
"""A job and the index of one of its items."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A model's limits, in tokens: `budget` of a batch now, `whole` of the longest text that is not run in chunks.

    `spare_pairs`: see `Engine`.
    """

    budget: int
    whole: int
    spare_pairs: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of one model that run through the engine together."""

    model: Model
    limits: Limits
    parts: Sequence[Part]

    @property
    def tokens(self) -> int:
        """Its number of tokens."""
        return sum(len(job.items[index]) for job, index in self.parts)

    @property
    def in_pieces(self) -> bool:
        """True for one text that is too long to run at once, and is prefilled in chunks."""
        return len(self.parts) == 1 and self.tokens > self.limits.whole

    def live(self) -> list[Job]:
        """Its jobs whose clients still wait."""
        return list(dict.fromkeys(job for job, _ in self.parts if not job.cancelled))

    def works(self, device: str, parts: Sequence[Part] | None = None) -> list[Work]:
        """The work of the model's replica on a device for some of its parts, or for all."""
        replica, chosen = self.model.replicas[device], self.parts if parts is None else parts
        own = replica.spec.task
        return [Work(replica.own(job.items[index]), job.task or own, job.make) for job, index in chosen]


class Queue:
    """The waiting jobs, and their virtual time."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Add a job; its share begins at the present virtual time."""
        job.share = self._clock
        self._jobs.append(job)

    def drop_cancelled(self) -> None:
        """Remove cancelled jobs."""
        self._jobs = [job for job in self._jobs if not job.cancelled]

    def empty(self) -> list[Job]:
        """Remove and return all jobs."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def put_back(self, job: Job, index: int) -> None:
        """Undo that an item was taken."""
        work = job.items[index].work
        job.waiting = sorted([*job.waiting, index], key=lambda one: -len(job.items[one]))
        job.left, job.share = job.left + work, job.share - work
        if job not in self._jobs:
            self._jobs.append(job)

    def take(
        self, limits_of: Callable[[Model], Limits], *, running: Job | None = None, long: Collection[Job] = ()
    ) -> Batch | None:
        """The next batch, or None when nobody waits.

        `running`: the job whose long text is being prefilled in chunks on this device. Then None also means that it is
        that job's turn, and no second long text is taken. `long`: the jobs with a long text in progress on any device.
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
            active = {*long, *([running] if running else [])}
            self._pass(sum(job.items[index].work for job, index in batch.parts), active)
        self._jobs = [job for job in self._jobs if job.waiting]
        return batch

    def charge(self, job: Job, work: float, *, long: Collection[Job] = ()) -> None:
        """Charge a job for a chunk of its long text: `work` tokens. `long`: as in `take`."""
        job.share += work
        self._pass(work, {job, *long})

    def _pass(self, work: float, long: Collection[Job]) -> None:
        """Advance virtual time by each active job's share of the work."""
        active = len(self._jobs) + sum(one not in self._jobs for one in long)
        self._clock += work / max(active, 1)

    def _alike(self, first: Job, able: Sequence[Job], limits: Limits, most: float) -> list[Part]:
        """The job's longest text and others of similar length, within the token budget and the padding allowed."""
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
            if tokens == limits.budget:
                break
            own = len(job.items[place])
            most_long, sum_squares = max(longest, own), squares + own**2
            padding = (len(chosen) + 1) * most_long**2 - sum_squares
            if tokens + own <= limits.budget and padding <= limits.spare_pairs:
                chosen.append((job, place))
                tokens, longest, squares = tokens + own, most_long, sum_squares
        return chosen

    def _window(self, first: Job, able: Sequence[Job], limits: Limits) -> Iterator[Part]:
        """Candidates to share the batch: `WINDOW` budgets of texts, from jobs that finish at most one budget later.

        So a short query is not batched with texts of a bulk request, which would only delay it.
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
