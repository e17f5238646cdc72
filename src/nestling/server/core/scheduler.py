"""One thread in which engines run, fed from the fair queue.

A batch is sized to take about `BATCH_S` at the engine's measured speed. A text longer than a batch is prefilled in
chunks; between two of them other batches may run, its client may leave, and the thread may end. So a query waits for at
most a batch or a chunk. At most one such text is in progress; it holds its states and a few layers' KV cache.

The queue is bounded; a failed engine is reloaded. Knows items and vectors only.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.engine.protocol import Item
from nestling.errors import EngineError
from nestling.models.compute import Make
from nestling.server.core.delivery import check, computed, deliver, fail, log_failure
from nestling.server.core.fair_queue import Batch, Job, Limits, Queue
from nestling.server.core.metrics import Metrics
from nestling.server.core.model_pool import Model
from nestling.server.core.refusals import BusyError
from nestling.spec import Task
from nestling.vectors import Floats

LOG = logging.getLogger("nestling.server")
BATCH_S = 0.25
SMALLEST_BATCH = 512
TELLING = 256
"""Tokens from which a batch counts in measuring the engine's speed."""
UNKNOWN_SPEED = 4096
"""Tokens per second assumed of a model that has not been measured yet."""


@dataclass(frozen=True, slots=True)
class _InPieces:
    """A long text in progress: its batch of one, its remaining chunks, when it began, whether this is its retry."""

    batch: Batch
    steps: Generator[float, None, Floats]
    began: float
    again: bool = False

    @property
    def job(self) -> Job:
        return self.batch.parts[0][0]


class Scheduler:
    """The queue, its bound, and the thread in which engines run."""

    def __init__(
        self, *, reset: Callable[[Model], None], metrics: Metrics, max_tokens: int, largest_batch: int | None = None
    ) -> None:
        """`max_tokens`: bound of the queue. `largest_batch`: bound of a batch below the engine's own budget."""
        self._reset_engine, self._metrics = reset, metrics
        self._max_tokens, self._largest = max_tokens, largest_batch
        self._ready, self._arrived, self._tokens = threading.Condition(), list[Job](), 0
        self._stopping = self._abandoned = False
        self._queue = Queue()  # used by the thread only, as are the next two
        self._long: _InPieces | None = None
        self._speeds: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False if the thread has died, which takes a bug: the process must be restarted."""
        return self._thread.is_alive()

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._tokens

    async def pool(self, model: Model, items: Sequence[Item], *, task: Task | None = None) -> Floats:
        """Pooled hidden states: B items -> (B, D), not normalised; see `run`."""
        return np.stack(await self.run(model, items, task=task))

    async def run(
        self, model: Model, items: Sequence[Item], *, task: Task | None = None, make: Make | None = None
    ) -> list[Floats]:
        """The pooled state of each of B items, or what `make` makes of its states: rows are finite and never zero.

        `task`: the LoRA task of the model to run. BusyError when the queue is full, EngineError when the engine fails
        twice or the server stops first. Cancelling drops what has not run; a long text stops after its present chunk.
        """
        loop = asyncio.get_running_loop()
        job = Job(model, items, loop.create_future(), task, make)
        self._admit(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._metrics.dropped.inc(len(items) - len(job.rows))
            self._forget(job)
            raise

    def stop(self, within_s: float | None = None) -> bool:
        """Finish the queue, or what `abandon` leaves of it, then end the thread: True if it ended in time."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """After the present batch or chunk, fail all jobs, waiting or in progress, and end the thread."""
        with self._ready:
            self._stopping = self._abandoned = True
            self._ready.notify()

    def _admit(self, job: Job) -> None:
        with self._ready:
            if self._tokens and self._tokens + job.counted > self._max_tokens:
                self._metrics.rejected.labels("queue").inc()
                raise BusyError("the queue is full", retry_after_s=self._drain_time_s(job.model))
            self._tokens += job.counted
            self._arrived.append(job)
            self._ready.notify()

    def _drain_time_s(self, model: Model) -> int:
        """Estimated seconds until half of the queue is done, clamped to 1 to 60."""
        speed = self._speeds.get(model.reference, UNKNOWN_SPEED)
        return min(max(math.ceil(self._tokens / 2 / speed), 1), 60)

    def _forget(self, job: Job) -> None:
        """Cancel a job: it leaves the count at once, the queue and the engine at the next turn."""
        job.cancelled = True
        self._uncount(job, job.counted)

    def _uncount(self, job: Job, tokens: int) -> None:
        with self._ready:
            taken = min(tokens, job.counted)
            job.counted -= taken
            self._tokens -= taken

    def _work(self) -> None:
        while self._wait():
            if self._long and self._long.job.cancelled:
                self._long = None
            batch = self._queue.take(self._limits, running=self._long.job if self._long else None)
            if batch is not None:
                for job, index in batch.parts:
                    self._uncount(job, job.items[index].work)
                with batch.model.computing():
                    self._begin(batch)
            elif self._long is not None:
                with self._long.batch.model.computing():
                    self._step(self._long)
        self._fail_all()

    def _wait(self) -> bool:
        """Wait for work: True when there is some, False when the thread should end."""
        with self._ready:
            while not self._abandoned:
                for job in self._arrived:
                    self._queue.add(job)
                self._arrived.clear()
                self._queue.drop_cancelled()
                if len(self._queue) or self._long is not None:
                    return True
                if self._stopping:
                    return False
                self._ready.wait()
        return False

    def _limits(self, model: Model) -> Limits:
        whole, speed = model.embedder.engine.token_budget, self._speeds.get(model.reference)
        largest = min(whole, self._largest or whole)
        wanted = largest if speed is None else int(speed * BATCH_S)
        return Limits(min(max(wanted, SMALLEST_BATCH), largest), whole)

    def _begin(self, batch: Batch) -> None:
        start = time.perf_counter()
        for job in batch.live():
            if not job.started:
                self._metrics.stage.labels("queue").observe(start - job.queued_at)
                job.started = True
        if batch.in_pieces:
            self._long = self._opened(batch)
        else:
            self._run(batch, start)

    def _run(self, batch: Batch, start: float) -> None:
        try:
            rows = computed(batch, batch.parts)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the next request must be served
            log_failure(batch, error)
            self._rescue(batch)
            return
        self._observe(batch, time.perf_counter() - start)
        deliver(batch.parts, rows)

    @staticmethod
    def _opened(batch: Batch, *, again: bool = False) -> _InPieces:
        [work] = batch.works()
        return _InPieces(batch, batch.model.embedder.compute.steps(work), time.perf_counter(), again)

    def _step(self, long: _InPieces) -> None:
        """Run one chunk of the long text."""
        try:
            self._queue.charge(long.job, next(long.steps))
        except StopIteration as done:
            self._long = None
            self._ended(long, done.value)
        except Exception as error:  # noqa: BLE001 - as in _run
            self._long = None
            self._failed(long, error)

    def _ended(self, long: _InPieces, rows: Floats) -> None:
        try:
            check([rows])
        except EngineError as error:
            self._failed(long, error)
            return
        self._observe(long.batch, time.perf_counter() - long.began)
        deliver(long.batch.parts, [rows])

    def _failed(self, long: _InPieces, error: Exception) -> None:
        """Reload the engine and restart the long text, once."""
        log_failure(long.batch, error)
        if not self._reset_quietly(long.batch.model) or long.again:
            self._forget(long.job)
            fail(long.job, error)
        elif not long.job.cancelled:
            self._long = self._opened(long.batch, again=True)

    def _observe(self, batch: Batch, seconds: float) -> None:
        self._metrics.stage.labels("inference").observe(seconds)
        self._metrics.batch_tokens.observe(batch.tokens)
        self._metrics.batch_fill.observe(min(batch.tokens / batch.limits.budget, 1))
        if batch.tokens >= TELLING and not batch.in_pieces:
            now, name = batch.tokens / seconds, batch.model.reference
            self._speeds[name] = 0.8 * self._speeds.get(name, now) + 0.2 * now

    def _rescue(self, batch: Batch) -> None:
        """Reload the engine and retry each request alone, so that only the one at fault fails."""
        broken = True
        for job in batch.live():
            parts = [(one, index) for one, index in batch.parts if one is job]
            try:
                if broken:
                    self._reset(batch.model)
                rows, broken = computed(batch, parts), False
            except Exception as error:  # noqa: BLE001 - as in _run
                broken = True
                self._forget(job)
                fail(job, error)
            else:
                deliver(parts, rows)
        if broken and batch.live():
            self._reset_quietly(batch.model)

    def _reset(self, model: Model) -> None:
        """Reload an engine; a long text in progress in the old one restarts."""
        self._metrics.resets.inc()
        self._reset_engine(model)
        if self._long and self._long.batch.model is model:
            self._long = self._opened(self._long.batch, again=self._long.again)

    def _reset_quietly(self, model: Model) -> bool:
        try:
            self._reset(model)
        except Exception:  # noqa: BLE001 - the next request tries again
            LOG.warning("engine reset failed", extra={"fields": {"model": model.reference}})
            return False
        return True

    def _fail_all(self) -> None:
        """Fail all jobs after `abandon`."""
        with self._ready:
            jobs = [*self._queue.empty(), *self._arrived, *([self._long.job] if self._long else [])]
            self._arrived.clear()
            self._long = None
        for job in dict.fromkeys(jobs):
            self._forget(job)
            fail(job, EngineError("the server is stopping"))
