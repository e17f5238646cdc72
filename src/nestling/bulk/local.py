"""Shards on this machine: one worker in this process, or several in child processes.

No worker outlives this process. A worker that dies ends the run; finished shards stay.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TYPE_CHECKING, Any

from nestling.bulk.embedding import Ticked
from nestling.bulk.manifest import Finished
from nestling.bulk.plan import Shard
from nestling.bulk.worker import Setup, Worker, open_worker
from nestling.errors import EngineError

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

INTERRUPTED = 130


def run(setup: Setup, shards: Sequence[Shard], *, devices: Sequence[str | None], ticked: Ticked) -> Iterator[Finished]:
    """Make the shards with a worker on each device; yields each when it is finished.

    `ticked`: called for each batch, or each shard.
    """
    if len(devices) > 1:
        yield from _in_processes(setup, shards, devices=devices, ticked=ticked)
        return
    with closing(open_worker(setup)) as worker:
        for shard in shards:
            yield worker.make(shard, ticked)


def _in_processes(
    setup: Setup, shards: Sequence[Shard], *, devices: Sequence[str | None], ticked: Ticked
) -> Iterator[Finished]:
    context, workers = _Spawn(), len(devices)
    free: SimpleQueue[str | None] = context.SimpleQueue()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(setup, free))
    try:
        left = iter(shards)
        waiting = {_submit(pool, shard) for shard in islice(left, 2 * workers)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in _results(done):
                waiting |= {_submit(pool, shard) for shard in islice(left, 1)}
                ticked(one.rows + one.rejected, one.tokens)
                yield one
    except BrokenProcessPool:
        # The broken pool has ended its known workers; one that was just starting would wait for work for ever.
        for process in context.started:
            process.kill()
        raise EngineError("a worker process died; run the command again to resume") from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Spawn(SpawnContext):
    """The spawn start method, which also records the processes it made."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **more: Any) -> SpawnProcess:  # type: ignore[override] # noqa: ANN401 - the base's
        self.started.append(SpawnProcess(*args, **more))
        return self.started[-1]


def _submit(pool: ProcessPoolExecutor, shard: Shard) -> "Future[Finished]":
    """Submit a shard. This may start a process, in which Ctrl-C is blocked until it has a handler."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_make, shard)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _results(done: set["Future[Finished]"]) -> list[Finished]:
    return sorted((one.result() for one in done), key=lambda one: one.shard)


_setup: list[Setup] = []
_worker: list[Worker] = []


def _begin(setup: Setup, free: "SimpleQueue[str | None]") -> None:
    """In a worker process: take a free device, store the setup, exit silently at Ctrl-C and with the parent."""
    _setup.append(replace(setup, device=free.get()))
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _make(shard: Shard) -> Finished:
    if not _worker:
        _worker.append(open_worker(_setup[0]))
    return _worker[0].make(shard)
