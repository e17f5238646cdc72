"""The queue from which the threads of all devices take batches: bounded in tokens, safe to use from any thread.

`fair_queue` decides which items go next. Choosing takes time, so it has a lock of its own: the event loop, which adds
and cancels jobs, never waits for it. Knows no engine.
"""

import threading
from collections.abc import Callable, Sequence

from nestling.errors import EngineError
from nestling.server.core.fair_queue import Batch, Job, Limits, Part, Queue
from nestling.server.core.replicas import Model


class Backlog:
    """Waiting jobs, the bound on their tokens, and which devices are at work."""

    def __init__(self, max_tokens: int) -> None:
        self._queue, self._choosing = Queue(), threading.Lock()  # the lock is for the queue, and taken first
        self._changed, self._most, self._tokens = threading.Condition(), max_tokens, 0
        self._arrived, self._returned = list[Job](), list[Part]()
        self._stopping = self._abandoned = self._more = False
        self._at_work = dict[str, Job | None]()  # devices that may put work back, and their long texts

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    @property
    def is_abandoned(self) -> bool:
        """True once nothing more is to be computed."""
        return self._abandoned

    def admit(self, job: Job) -> bool:
        """Add a job; False if the queue is full, EngineError after `abandon`."""
        with self._changed:
            if self._abandoned:
                raise EngineError("the server is stopping")
            if self._tokens and self._tokens + job.counted > self._most:
                return False
            self._tokens += job.counted
            self._arrived.append(job)
            self._changed.notify()
        return True

    def take(self, device: str, limits_of: Callable[[Model], Limits], *, running: Job | None = None) -> Batch | None:
        """The next batch for a device. `running`: the job whose long text is prefilled in chunks there.

        With `running`, None means that it is that job's turn. Otherwise this waits for a batch, and None means that the
        device's thread should end: the queue is empty, no other device may put work back, and none will be added.
        """
        self._rest(device, running)
        while not self._abandoned:
            batch = self._chosen(device, limits_of, running)
            if batch is not None or running is not None:
                return batch
            with self._changed:
                if self._arrived or self._returned or self._more or self._abandoned:
                    continue
                if self._stopping and not self._at_work:
                    return None
                self._changed.wait()
        return None

    def _chosen(self, device: str, limits_of: Callable[[Model], Limits], running: Job | None) -> Batch | None:
        with self._choosing:
            with self._changed:
                arrived, self._arrived = self._arrived, []
                returned, self._returned = self._returned, []
                long = self._long()
            for job in arrived:
                self._queue.add(job)
            for job, index in returned:
                self._queue.put_back(job, index)
            self._queue.drop_cancelled()
            batch = self._queue.take(limits_of, running=running, long=long)
            with self._changed:
                self._more = len(self._queue) > 0
                if batch is not None:
                    self._at_work[device] = running
                    for job, index in batch.parts:
                        self._uncount(job, job.items[index].work)
                    if self._more:
                        self._changed.notify()
        return batch

    def leave(self, device: str) -> None:
        """The device's thread ends."""
        self._rest(device, None)

    def charge(self, job: Job, work: float) -> None:
        """Charge a job for a chunk of its long text: `work` tokens."""
        with self._choosing:
            self._queue.charge(job, work, long=self._long())

    def put_back(self, parts: Sequence[Part]) -> bool:
        """Queue parts of batches again, for another device; False after `abandon`."""
        with self._changed:
            if self._abandoned:
                return False
            waited_for = [(job, index) for job, index in parts if not job.cancelled]
            for job, index in waited_for:
                job.counted += job.items[index].work
                self._tokens += job.items[index].work
            self._returned += waited_for
            self._changed.notify_all()
        return True

    def forget(self, job: Job) -> None:
        """Cancel a job: it leaves the count at once, the queue and the engine at the next turn."""
        with self._changed:
            job.cancelled = True
            self._uncount(job, job.counted)

    def close(self) -> None:
        """Nothing more will be added: threads end once everything is done."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def abandon(self) -> list[Job]:
        """Nothing more is to be computed: returns the jobs that waited."""
        with self._choosing, self._changed:
            self._stopping = self._abandoned = True
            jobs = [*self._queue.empty(), *self._arrived, *(job for job, _ in self._returned)]
            self._arrived, self._returned = [], []
            self._changed.notify_all()
        return list(dict.fromkeys(jobs))

    def _rest(self, device: str, running: Job | None) -> None:
        """Note that a device has nothing but its long text."""
        with self._changed:
            self._at_work.pop(device, None)
            if running is not None:
                self._at_work[device] = running
            elif self._stopping and not self._at_work:
                self._changed.notify_all()

    def _long(self) -> list[Job]:
        return [job for job in list(self._at_work.values()) if job is not None]

    def _uncount(self, job: Job, tokens: int) -> None:
        taken = min(tokens, job.counted)
        job.counted -= taken
        self._tokens -= taken
