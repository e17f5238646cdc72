"""The queue in front of the engines, and a thread for each device that takes its batches from it.

One queue for all devices: whichever is free takes the next batch. A query waits for at most a batch or a chunk of a
long text (`device_thread`). The queue is bounded. Knows items and vectors only.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from nestling.engine.protocol import Item
from nestling.errors import EngineError
from nestling.models.compute import Make
from nestling.server.core.backlog import Backlog
from nestling.server.core.delivery import fail
from nestling.server.core.device_thread import DeviceThread, Recovery
from nestling.server.core.fair_queue import Job
from nestling.server.core.metrics import Metrics
from nestling.server.core.refusals import BusyError
from nestling.server.core.replicas import ONE_DEVICE, Model
from nestling.spec import Task
from nestling.vectors import Floats


def never_lost(_device: str, _error: Exception) -> bool:
    """A `Recovery.lose` for a single device."""
    return False


class Scheduler:
    """The queue, its bound, and the threads in which engines run."""

    def __init__(
        self,
        *,
        reset: Callable[[Model, str], None],
        lose: Callable[[str, Exception], bool] = never_lost,
        metrics: Metrics,
        max_tokens: int,
        largest_batch: int | None = None,
        devices: Sequence[str] = (ONE_DEVICE,),
    ) -> None:
        """`reset`, `lose`: see `Recovery`. `max_tokens`: bound of the queue. `largest_batch`: see `DeviceThread`."""
        self._metrics, self._backlog = metrics, Backlog(max_tokens)
        recovery = Recovery(reset, lose)
        self._threads = [
            DeviceThread(device, self._backlog, recovery=recovery, metrics=metrics, largest=largest_batch)
            for device in devices
        ]

    @property
    def is_alive(self) -> bool:
        """False if a device's thread has died, which takes a bug: the process must be restarted."""
        return all(one.is_alive or one.is_lost for one in self._threads)

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._backlog.tokens

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
        if not self._backlog.admit(job):
            self._metrics.rejected.labels("queue").inc()
            raise BusyError("the queue is full", retry_after_s=self._drain_time_s(model))
        try:
            return await job.future
        except asyncio.CancelledError:
            self._metrics.dropped.inc(len(items) - len(job.rows))
            self._backlog.forget(job)
            raise

    def stop(self, within_s: float | None = None) -> bool:
        """Finish the queue, or what `abandon` leaves of it, then end the threads: True if they ended in time."""
        self._backlog.close()
        end = None if within_s is None else time.monotonic() + within_s
        for one in self._threads:
            one.join(None if end is None else max(end - time.monotonic(), 0))
        return not any(one.is_alive for one in self._threads)

    def abandon(self) -> None:
        """Fail all jobs that wait; those in progress fail after the present batch or chunk, which ends the threads."""
        for job in self._backlog.abandon():
            self._backlog.forget(job)
            fail(job, EngineError("the server is stopping"))

    def _drain_time_s(self, model: Model) -> int:
        """Estimated seconds until half of the queue is done, clamped to 1 to 60."""
        speed = sum(one.speed(model) for one in self._threads)
        return min(max(math.ceil(self.waiting_tokens / 2 / max(speed, 1)), 1), 60)
