"""One thread in which engines run, fed from the fair queue.

A batch takes about `BATCH_S` of the engine's measured speed: what a query that comes while one runs has to wait for.
The queue is bounded; a failing engine is loaded anew. Knows token ids and vectors only.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from nestling.engine.batching import TOKEN_BUDGET
from nestling.engine.protocol import Item
from nestling.errors import EngineError
from nestling.models.embedder import Embedder
from nestling.server.core.fair_queue import Batch, Job, Queue, Work
from nestling.server.core.metrics import Metrics
from nestling.server.core.model_pool import Model
from nestling.server.core.refusals import BusyError
from nestling.spec import Task
from nestling.vectors import Floats

LOG = logging.getLogger("nestling.server")
BATCH_S = 0.25
SMALLEST_BATCH = 512
TELLING = 256
"""Tokens from which on a batch tells the engine's speed."""


class Scheduler:
    """The queue, its bound, and the thread in which engines run."""

    def __init__(
        self, *, reset: Callable[[Model], None], metrics: Metrics, max_tokens: int, largest_batch: int
    ) -> None:
        self._reset, self._metrics, self._max_tokens, self._largest = reset, metrics, max_tokens, largest_batch
        self._queue, self._ready, self._stopping = Queue(), threading.Condition(), False
        self._speeds: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False if the thread has died, which only a bug can do: the process must be started anew."""
        return self._thread.is_alive()

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._queue.tokens

    async def pool(self, model: Model, sequences: Sequence[Item], *, task: Task | None = None) -> Floats:
        """Pooled hidden states of B items: B -> (B, D), not normalised; see `run`."""
        return np.stack(await self.run(model, sequences, pooled, task=task))

    async def run(
        self, model: Model, sequences: Sequence[Item], work: Work, *, task: Task | None = None
    ) -> list[Floats]:
        """What a work gives for each of B token sequences: arrays whose rows are finite and never zero.

        `task` is the one of the model's that they are for; pooled texts of several tasks share batches.
        BusyError when the queue is full, EngineError when the engine fails twice. Cancelling drops what has not run.
        """
        loop = asyncio.get_running_loop()
        job = Job(model, sequences, loop.create_future(), work, task, mixes=work is pooled)
        self._admit(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            job.cancelled = True
            self._metrics.dropped.inc(len(job.waiting))
            raise

    def stop(self) -> None:
        """Finish what waits, then end the thread."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        self._thread.join()

    def _admit(self, job: Job) -> None:
        tokens = job.tokens()
        with self._ready:
            if self._queue.tokens and self._queue.tokens + tokens > self._max_tokens:
                self._metrics.rejected.labels("queue").inc()
                raise BusyError("the queue is full", retry_after_s=self._drain_time_s(job.model))
            self._queue.add(job)
            self._ready.notify()

    def _drain_time_s(self, model: Model) -> int:
        """Seconds until half of the queue is done, from 1 to 60."""
        speed = self._speeds.get(model.reference, TOKEN_BUDGET / BATCH_S)
        return min(max(math.ceil(self._queue.tokens / 2 / speed), 1), 60)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._run(batch)

    def _next(self) -> Batch | None:
        with self._ready:
            while True:
                if batch := self._queue.take(self._budget):
                    return batch
                if self._stopping:
                    return None
                self._ready.wait()

    def _budget(self, model: Model) -> int:
        speed = self._speeds.get(model.reference)
        wanted = TOKEN_BUDGET if speed is None else int(speed * BATCH_S)
        if wanted > TOKEN_BUDGET:
            wanted -= wanted % TOKEN_BUDGET  # a pass for the rest would be slow for what it holds
        return min(max(wanted, SMALLEST_BATCH), self._largest)

    def _run(self, batch: Batch) -> None:
        start = time.perf_counter()
        for job in batch.live():
            if not job.started:
                self._metrics.stage.labels("queue").observe(start - job.queued_at)
                job.started = True
        try:
            rows = _checked(batch, batch.parts)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the next request must be served
            facts = {"model": batch.model.reference, "error": f"{type(error).__name__}: {error!s:.200}"}
            LOG.warning("batch failed", extra={"fields": facts})
            self._rescue(batch)
            return
        seconds = time.perf_counter() - start
        self._learn(batch, seconds)
        _deliver(batch.parts, rows)

    def _learn(self, batch: Batch, seconds: float) -> None:
        self._metrics.stage.labels("inference").observe(seconds)
        self._metrics.batch_tokens.observe(batch.tokens)
        self._metrics.batch_fill.observe(batch.tokens / batch.budget)
        if batch.tokens >= TELLING:
            now, name = batch.tokens / seconds, batch.model.reference
            self._speeds[name] = 0.8 * self._speeds.get(name, now) + 0.2 * now

    def _rescue(self, batch: Batch) -> None:
        """Load the engine anew and try each request by itself, so that only the guilty one fails."""
        broken = True
        for job in batch.live():
            parts = [(one, index) for one, index in batch.parts if one is job]
            try:
                if broken:
                    self._metrics.resets.inc()
                    self._reset(batch.model)
                rows, broken = _checked(batch, parts), False
            except Exception as error:  # noqa: BLE001 - as in _run
                broken = True
                _fail(job, error)
            else:
                _deliver(parts, rows)
        if broken and batch.live():
            self._reset_quietly(batch.model)

    def _reset_quietly(self, model: Model) -> None:
        try:
            self._metrics.resets.inc()
            self._reset(model)
        except Exception:  # noqa: BLE001 - the next request tries again
            LOG.warning("engine reset failed", extra={"fields": {"model": model.reference}})


def pooled(embedder: Embedder, sequences: Sequence[Item]) -> Sequence[Floats]:
    """The work that makes one vector a text: B -> (B, D), not normalised."""
    return list(embedder.pool(sequences))


def token_vectors(embedder: Embedder, sequences: Sequence[Item]) -> Sequence[Floats]:
    """The work that makes a vector a token: B -> B arrays of (T, P), unit rows."""
    return embedder.embed_tokens([item.ids for item in sequences])


def _checked(batch: Batch, parts: Sequence[tuple[Job, int]]) -> Sequence[Floats]:
    embedder, sequences = batch.model.embedder, [job.sequences[index] for job, index in parts]
    tasks = [job.task or embedder.spec.task for job, _ in parts]
    if len(set(tasks)) > 1:
        found: Sequence[Floats] = list(embedder.pool(sequences, tasks=tasks))
    else:
        found = batch.work(embedder.for_task(tasks[0]), sequences)
    if not all(np.isfinite(rows).all() and rows.any(axis=-1).all() for rows in found):
        raise EngineError("the engine answered with something that is not a vector")
    return found


def _deliver(parts: Sequence[tuple[Job, int]], rows: Sequence[Floats]) -> None:
    for (job, index), row in zip(parts, rows, strict=True):
        job.rows[index] = row
    for job in dict.fromkeys(job for job, _ in parts):
        if len(job.rows) == len(job.sequences):
            _tell(job.future, partial(job.future.set_result, job.results()))


def _fail(job: Job, error: Exception) -> None:
    wrapped = error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__} in the engine")
    job.cancelled = True  # what it still has in the queue is of no use
    _tell(job.future, partial(job.future.set_exception, wrapped))


def _tell(future: asyncio.Future[list[Floats]], act: Callable[[], None]) -> None:
    def run() -> None:
        if not future.done():
            act()

    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(run)
