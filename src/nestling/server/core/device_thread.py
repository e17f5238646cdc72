"""The thread in which one device's engines run, fed from the backlog.

A batch is sized to take about `BATCH_S` at the engine's measured speed. A text longer than a batch is prefilled in
chunks; between two of them other batches may run, its client may leave, and the thread may end. At most one such text
is in progress on a device; it holds its states and a few layers' KV cache.

A failed engine is reloaded and each request retried alone. If it cannot be reloaded and other devices serve on, the
device is lost: its thread ends, and what it was computing goes back to the backlog.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from nestling.errors import EngineError
from nestling.server.core.backlog import Backlog
from nestling.server.core.delivery import check, computed, deliver, fail, log_failure
from nestling.server.core.fair_queue import Batch, Job, Limits, Part
from nestling.server.core.metrics import Metrics
from nestling.server.core.replicas import Model
from nestling.vectors import Floats

LOG = logging.getLogger("nestling.server")
BATCH_S = 0.25
SMALLEST_BATCH = 512
TELLING = 256
"""Tokens from which a batch counts in measuring the engine's speed."""
UNKNOWN_SPEED = 4096
"""Tokens per second assumed of a model that has not been measured yet."""


class _LostError(Exception):
    """The device cannot be used any more; others go on."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """`reset` reloads a model on a device; `lose` gives a device up for an error, or says False, if it is the last."""

    reset: Callable[[Model, str], None]
    lose: Callable[[str, Exception], bool]


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


class DeviceThread:
    """One device's thread. `is_lost`: whether it ended because its device cannot be used any more."""

    def __init__(
        self, device: str, backlog: Backlog, *, recovery: Recovery, metrics: Metrics, largest: int | None
    ) -> None:
        """`largest`: bound of a batch below the engine's own budget."""
        self._device, self._backlog, self._recovery = device, backlog, recovery
        self._metrics, self._largest = metrics, largest
        self._long: _InPieces | None = None
        self._speeds: dict[str, float] = {}
        self.is_lost = False
        self._thread = threading.Thread(target=self._work, name=f"engine on {device}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False if the thread has ended."""
        return self._thread.is_alive()

    def speed(self, model: Model) -> float:
        """Tokens per second, as measured or assumed; zero on a lost device."""
        return 0 if self.is_lost else self._speeds.get(model.reference, UNKNOWN_SPEED)

    def join(self, within_s: float | None = None) -> None:
        """Wait until the thread has ended."""
        self._thread.join(within_s)

    def _work(self) -> None:
        while not self.is_lost:
            if self._long and self._long.job.cancelled:
                self._long = None
            running = self._long.job if self._long else None
            batch = self._backlog.take(self._device, self._limits, running=running)
            if batch is not None:
                with batch.model.computing(self._device):
                    self._begin(batch)
            elif self._long is not None and not self._backlog.is_abandoned:
                with self._long.batch.model.computing(self._device):
                    self._step(self._long)
            else:
                break
        if self._long is not None:
            self._hand_over(self._long.batch.parts)
        self._backlog.leave(self._device)

    def _hand_over(self, parts: Sequence[Part]) -> None:
        """Leave parts to other devices, or fail them when the server stops."""
        if not self._backlog.put_back(parts):
            for job in dict.fromkeys(job for job, _ in parts):
                self._fail(job, EngineError("the server is stopping"))

    def _limits(self, model: Model) -> Limits:
        engine, speed = model.replicas[self._device].engine, self._speeds.get(model.reference)
        whole = engine.token_budget
        largest = min(whole, self._largest or whole)
        wanted = largest if speed is None else int(speed * BATCH_S)
        return Limits(min(max(wanted, SMALLEST_BATCH), largest), whole, engine.spare_pairs)

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
            rows = computed(batch, batch.parts, self._device)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the next request must be served
            log_failure(batch, error)
            self._rescue(batch)
            return
        self._observe(batch, time.perf_counter() - start)
        deliver(batch.parts, rows)

    def _opened(self, batch: Batch, *, again: bool = False) -> _InPieces:
        [work] = batch.works(self._device)
        steps = batch.model.replicas[self._device].compute.steps(work)
        return _InPieces(batch, steps, time.perf_counter(), again)

    def _step(self, long: _InPieces) -> None:
        """Run one chunk of the long text."""
        try:
            self._backlog.charge(long.job, next(long.steps))
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
        """Reload the engine and restart the long text, once; on a lost device another one does."""
        log_failure(long.batch, error)
        is_sound = self._reset_quietly(long.batch.model)
        if self.is_lost:
            self._hand_over(long.batch.parts)
        elif not is_sound or long.again:
            self._fail(long.job, error)
        elif not long.job.cancelled:
            self._long = self._opened(long.batch, again=True)

    def _observe(self, batch: Batch, seconds: float) -> None:
        self._metrics.stage.labels("inference").observe(seconds)
        self._metrics.batch_tokens.labels(self._device).observe(batch.tokens)
        self._metrics.batch_fill.labels(self._device).observe(min(batch.tokens / batch.limits.budget, 1))
        if batch.tokens >= TELLING and not batch.in_pieces:
            now, name = batch.tokens / seconds, batch.model.reference
            self._speeds[name] = 0.8 * self._speeds.get(name, now) + 0.2 * now

    def _rescue(self, batch: Batch) -> None:
        """Reload the engine and retry each request alone, so that only the one at fault fails."""
        broken, jobs = True, batch.live()
        for place, job in enumerate(jobs):
            try:
                if broken:
                    self._reset(batch.model)
                parts = _parts_of(batch, [job])
                rows, broken = computed(batch, parts, self._device), False
            except _LostError:
                self._hand_over(_parts_of(batch, jobs[place:]))
                return
            except Exception as error:  # noqa: BLE001 - as in _run
                broken = True
                self._fail(job, error)
            else:
                deliver(parts, rows)
        if broken and batch.live():
            self._reset_quietly(batch.model)

    def _fail(self, job: Job, error: Exception) -> None:
        self._backlog.forget(job)
        fail(job, error)

    def _reset(self, model: Model) -> None:
        """Reload an engine; a long text in progress in the old one restarts. _LostError when the device is lost."""
        self._metrics.resets.labels(self._device).inc()
        try:
            self._recovery.reset(model, self._device)
        except Exception as error:
            self.is_lost = self._recovery.lose(self._device, error)
            if self.is_lost:
                raise _LostError from error
            raise
        if self._long and self._long.batch.model is model:
            self._long = self._opened(self._long.batch, again=self._long.again)

    def _reset_quietly(self, model: Model) -> bool:
        try:
            self._reset(model)
        except Exception:  # noqa: BLE001 - the next request tries again, or another device does
            facts = {"model": model.reference, "device": self._device}
            LOG.warning("engine reset failed", extra={"fields": facts})
            return False
        return True


def _parts_of(batch: Batch, jobs: Sequence[Job]) -> list[Part]:
    return [(job, index) for job, index in batch.parts if job in jobs]
