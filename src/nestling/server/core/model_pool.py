"""The loaded models of one process: loaded on first use, kept while in use, unloaded when idle or short of memory.

A model's size is estimated from its weights, so that room is made before it is loaded. Models in use are never
unloaded; a model that does not fit next to them (and to those being loaded) is refused. A failed load is retried with
back-off, from one second to a minute. With several devices a model has a replica on each, of equal arithmetic; a device
that cannot be used any more is lost until the server is restarted.
Knows neither HTTP nor names: a model is identified by its reference and loaded by the `load` function.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from nestling.errors import EngineError, NestlingError
from nestling.models.embedder import Embedder
from nestling.server.core.refusals import UnavailableError
from nestling.server.core.replicas import Model, check_alike, closed_on_failure, is_the_devices, self_test
from nestling.server.settings import MIB

Load = Callable[[str], Embedder]
LOG = logging.getLogger("nestling.server")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed load: its error, and when to retry."""

    error: NestlingError
    pause_s: float
    again_at: float


class ModelPool:
    """Models by reference. All methods run on the event loop, except `reset` and `lose`, which devices' threads call.

    Loading and closing run in order in one thread of the pool, so that room is made before a model is loaded.
    """

    def __init__(
        self,
        loads: Mapping[str, Load],
        *,
        budget_bytes: int,
        idle_s: float | None = None,
        cost_of: Callable[[str], int] = lambda _reference: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`loads`: how a model is loaded on each device. `cost_of`: a replica's bytes of memory, as estimated."""
        self._loads, self._budget, self._idle_s, self._cost_of, self._clock = (
            loads,
            budget_bytes,
            idle_s,
            cost_of,
            clock,
        )
        self._lost, self._replacing = list[str](), threading.Lock()
        self._models: dict[str, asyncio.Task[Model]] = {}
        self._failures: dict[str, Failure] = {}
        self._coming: dict[str, int] = {}  # bytes of the models that are being loaded
        self._thread = ThreadPoolExecutor(1, "load")

    @asynccontextmanager
    async def use(self, reference: str) -> AsyncIterator[Model]:
        """A model, loaded if necessary; it stays loaded while the block runs.

        UnavailableError when it does not fit into the budget next to those in use; other errors are those of loading.
        """
        model = await self._get(reference)
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1
            model.used_at = self._clock()

    @property
    def loaded(self) -> list[Model]:
        """The models that are ready."""
        return [task.result() for task in self._models.values() if _is_ready(task)]

    def unloaded_in_s(self, model: Model) -> float | None:
        """Seconds until a model is unloaded if nobody uses it; None for never."""
        if self._idle_s is None:
            return None
        unused_s = 0.0 if model.is_in_use else self._clock() - model.used_at
        return max(self._idle_s - unused_s, 0.0)

    @property
    def lost(self) -> Sequence[str]:
        """The devices that were lost."""
        return self._lost

    @property
    def serving(self) -> list[str]:
        """The other devices; at least one."""
        return [one for one in self._loads if one not in self._lost]

    def reset(self, model: Model, device: str) -> None:
        """Reload a model on a device in place, in the same engine, after the engine failed."""
        LOG.warning("engine reset", extra={"fields": {"model": model.reference, "device": device}})
        before = model.replicas[device].engine.name
        model.replicas[device].close()
        fresh = self._loads[device](model.reference)
        with closed_on_failure(fresh):
            if fresh.engine.name != before:
                raise EngineError(
                    f"{model.reference}: {before} cannot load it again, and it is not replaced by another"
                )
            with self._replacing:
                replicas = {**model.replicas, device: fresh}
                check_alike(model.reference, replicas)
                model.replicas = replicas

    def lose(self, device: str, error: Exception) -> bool:
        """Give up a device on which a model cannot be reloaded.

        False, so that the next request tries again, if it is the last device, or if the model's file is at fault.
        """
        with self._replacing:
            if self.serving == [device] or not is_the_devices(error):
                return False
            self._lost.append(device)
        facts = {"device": device, "error": f"{type(error).__name__}: {error!s:.300}", "serving": self.serving}
        LOG.error("device lost until the server is restarted", extra={"fields": facts})
        for model in self.loaded:
            self._drop(model, device)
        return True

    def _drop(self, model: Model, device: str) -> None:
        """Close a model's replica on a lost device."""
        with self._replacing:
            if device not in model.replicas:
                return
            gone, size_bytes = model.replicas[device], model.size_bytes
            model.size_bytes -= size_bytes // len(model.replicas)
            model.replicas = {name: one for name, one in model.replicas.items() if name != device}
        with suppress(Exception):  # a device that is gone cannot free anything
            gone.close()

    def unload_idle(self) -> None:
        """Unload models that have been idle for `idle_s`."""
        if self._idle_s is None:
            return
        for model in self.loaded:
            if not model.is_in_use and self._clock() - model.used_at > self._idle_s:
                self._unload(model)

    async def close(self, *, within_s: float) -> bool:
        """Unload all models; True if that was done in time."""
        for model in self.loaded:
            self._unload(model)
        for task in self._models.values():
            task.cancel()
        behind_all = asyncio.get_running_loop().run_in_executor(self._thread, _nothing)
        self._thread.shutdown(wait=False)
        _, late = await asyncio.wait([behind_all], timeout=within_s)
        return not late

    async def _get(self, reference: str) -> Model:
        while True:
            task = self._models.get(reference)
            if task is None or (task.done() and not _is_ready(task)):
                self._check_failure(reference)
                task = self._models[reference] = asyncio.create_task(self._loaded(reference))
            model = await asyncio.shield(task)
            if self._models.get(reference) is task:  # it may have been unloaded since it was loaded
                return model

    def _check_failure(self, reference: str) -> None:
        failure = self._failures.get(reference)
        if failure and self._clock() < failure.again_at:
            raise failure.error

    async def _loaded(self, reference: str) -> Model:
        start, run = self._clock(), asyncio.get_running_loop().run_in_executor
        try:
            size_bytes = await run(self._thread, self._cost_of, reference) * len(self.serving)
            with self._reserved(reference, size_bytes):
                replicas = await run(self._thread, self._tested, reference)
        except UnavailableError:
            raise  # it may fit once other models are idle
        except NestlingError as error:
            self._note_failure(reference, error)
            raise
        self._failures.pop(reference, None)
        facts = {"model": reference, "seconds": round(self._clock() - start, 2), "mib": size_bytes // MIB}
        model = Model(reference, replicas, size_bytes, used_at=self._clock())
        facts |= {"engine": model.embedder.engine.name, "reason": model.embedder.engine.reason}
        facts |= {"devices": list(replicas)} if len(replicas) > 1 else {}
        LOG.info("model loaded", extra={"fields": facts})
        for device in replicas.keys() & self._lost:  # meanwhile
            self._drop(model, device)
        return model

    def _note_failure(self, reference: str, error: NestlingError) -> None:
        before = self._failures.get(reference)
        pause_s = min(before.pause_s * 2, LONGEST_PAUSE_S) if before else FIRST_PAUSE_S
        self._failures[reference] = Failure(error, pause_s, self._clock() + pause_s)
        LOG.warning("model not loaded", extra={"fields": {"model": reference, "error": f"{error!s:.300}"}})

    def _tested(self, reference: str) -> dict[str, Embedder]:
        """Load a model on every device and run the self-test; an engine's exceptions become an EngineError."""
        found = dict[str, Embedder]()
        try:
            with ExitStack() as stack:
                for device in self.serving:
                    found[device] = stack.enter_context(closed_on_failure(self._loads[device](reference)))
                    for task in found[device].tasks:
                        self_test(found[device].for_task(task))
                check_alike(reference, found)
        except NestlingError:
            raise
        except Exception as error:
            raise EngineError(f"{reference}: cannot be loaded: {type(error).__name__}: {error}") from error
        return found

    @contextmanager
    def _reserved(self, reference: str, size_bytes: int) -> Iterator[None]:
        """Reserve memory for a model while it loads, by unloading the least recently used models."""
        idle = [one for one in self.loaded if not one.is_in_use]
        staying = {one.reference: one.size_bytes for one in self.loaded if one.is_in_use} | self._coming
        if sum(staying.values()) + size_bytes > self._budget:
            raise UnavailableError(self._why_not(reference, size_bytes, staying))
        total = size_bytes + sum(staying.values()) + sum(one.size_bytes for one in idle)
        for model in sorted(idle, key=lambda one: one.used_at):
            if total > self._budget:
                total -= model.size_bytes
                self._unload(model)
        self._coming[reference] = size_bytes
        try:
            yield
        finally:
            del self._coming[reference]

    def _why_not(self, reference: str, size_bytes: int, staying: Mapping[str, int]) -> str:
        """The message of a model that does not fit: what it needs, and what is in use."""
        in_use = f" beside {', '.join(sorted(staying))} in use ({_mib(sum(staying.values()))})" if staying else ""
        budget = f"the memory budget is {_mib(self._budget)} (--memory-budget-mb)"
        text = f"{reference}: needs {_mib(size_bytes)}{in_use}; {budget}"
        LOG.warning("over the memory budget", extra={"fields": {"error": text}})
        return text

    def _unload(self, model: Model) -> asyncio.Future[None]:
        """Remove it, and close it in the pool's thread, since closing waits for a running batch."""
        del self._models[model.reference]
        LOG.info("model unloaded", extra={"fields": {"model": model.reference}})
        return asyncio.get_running_loop().run_in_executor(self._thread, model.close)


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // MIB):,} MiB"


def _nothing() -> None:
    """A task that is done when all earlier ones of the thread are."""


def _is_ready(task: asyncio.Task[Model]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
