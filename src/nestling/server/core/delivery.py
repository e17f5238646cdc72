"""Checks the engine's results and delivers them to the waiting requests in their event loops."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from nestling.errors import EngineError
from nestling.server.core.fair_queue import Batch, Job, Part
from nestling.vectors import Floats

LOG = logging.getLogger("nestling.server")


def computed(batch: Batch, parts: Sequence[Part], device: str) -> Sequence[Floats] | Floats:
    """The rows of some of a batch's items, computed on a device; EngineError when they are invalid."""
    found = batch.model.replicas[device].compute.batch(batch.works(device, parts))
    check(found)
    return found


def check(answers: Sequence[Floats] | Floats) -> None:
    """EngineError unless every row is finite and none is zero."""
    blocks = [answers] if isinstance(answers, np.ndarray) else answers
    if not all(np.isfinite(rows).all() and rows.any(axis=-1).all() for rows in blocks):
        raise EngineError("the engine returned NaN, infinity or a zero vector")


def log_failure(batch: Batch, error: Exception) -> None:
    """Log that a batch failed, and why."""
    facts = {"model": batch.model.reference, "error": f"{type(error).__name__}: {error!s:.200}"}
    LOG.warning("batch failed", extra={"fields": facts})


def deliver(parts: Sequence[Part], rows: Sequence[Floats] | Floats) -> None:
    """Give each job its rows, and answer the jobs that are complete."""
    for (job, index), row in zip(parts, rows, strict=True):
        job.rows[index] = row
    for job in dict.fromkeys(job for job, _ in parts):
        if len(job.rows) == len(job.items):
            _tell(job.future, partial(job.future.set_result, job.results()))


def fail(job: Job, error: Exception) -> None:
    """Answer a job with an EngineError."""
    wrapped = error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__} in the engine")
    _tell(job.future, partial(job.future.set_exception, wrapped))


def _tell(future: asyncio.Future[list[Floats]], act: Callable[[], None]) -> None:
    def run() -> None:
        if not future.done():
            act()

    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(run)
