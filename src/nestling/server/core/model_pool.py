"""The loaded models of one process: loaded on first use, kept while in use, unloaded when idle or short of memory.

A model's size is estimated from its weights, so that room is made before it is loaded. Models in use are never
unloaded; a model that does not fit next to them (and to those being loaded) is refused. A failed load is retried with
back-off, from one second to a minute.
Knows neither HTTP nor names: a model is identified by its reference and loaded by the `load` function.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import numpy as np

from nestling.errors import EngineError, NestlingError
from nestling.models.embedder import Embedder
from nestling.server.core.refusals import UnavailableError
from nestling.server.settings import MIB
from nestling.spec import Task
from nestling.vectors import paired_cosine

Load = Callable[[str], Embedder]
LOG = logging.getLogger("nestling.server")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
SELF_TEST = ("The quick brown fox jumps over the lazy dog.", "A beautiful sunset over the beach", "海滩上美丽的日落")
SELF_TEST_COSINE = 0.999
"""Least cosine of a text's vectors, embedded alone and in a batch; int8 engines reach 0.9999, broken ones far less."""


@dataclass(eq=False)
class Model:
    """One loaded model and its users."""

    reference: str
    embedder: Embedder
    size_bytes: int = 0
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    is_computing: bool = False
    """True while the engine's thread works with it, even if the client has left."""

    @property
    def is_in_use(self) -> bool:
        """True while it must not be unloaded."""
        return self.users > 0 or self.is_computing

    @contextmanager
    def computing(self) -> Iterator[None]:
        """For the engine's thread: marks the model as computing during the block."""
        self.is_computing = True
        try:
            yield
        finally:
            self.is_computing = False


@dataclass(frozen=True, slots=True)
class Use:
    """A loaded model in use for one of its tasks."""

    model: Model
    task: Task | None

    @property
    def embedder(self) -> Embedder:
        """The model for that task; a new object after a reset."""
        return self.model.embedder.for_task(self.task) if self.task else self.model.embedder


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed load: its error, and when to retry."""

    error: NestlingError
    pause_s: float
    again_at: float


class ModelPool:
    """Models by reference. All methods run on the event loop, except `reset`, which the engine's thread calls.

    Loading and closing run in order in one thread of the pool, so that room is made before a model is loaded.
    """

    def __init__(
        self,
        load: Load,
        *,
        budget_bytes: int,
        idle_s: float | None = None,
        cost_of: Callable[[str], int] = lambda _reference: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cost_of`: a model's bytes of memory, estimated before it is loaded."""
        self._load, self._budget, self._idle_s, self._cost_of, self._clock = load, budget_bytes, idle_s, cost_of, clock
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

    def reset(self, model: Model) -> None:
        """Reload a model in place, in the same engine, after the engine failed."""
        LOG.warning("engine reset", extra={"fields": {"model": model.reference}})
        before = model.embedder.engine.name
        model.embedder.close()
        fresh = self._load(model.reference)
        with closed_on_failure(fresh):
            if fresh.engine.name != before:
                raise EngineError(
                    f"{model.reference}: {before} cannot load it again, and it is not replaced by another"
                )
        model.embedder = fresh

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
            size_bytes = await run(self._thread, self._cost_of, reference)
            with self._reserved(reference, size_bytes):
                embedder = await run(self._thread, self._tested, reference)
        except UnavailableError:
            raise  # it may fit once other models are idle
        except NestlingError as error:
            self._note_failure(reference, error)
            raise
        self._failures.pop(reference, None)
        facts = {"model": reference, "seconds": round(self._clock() - start, 2), "mib": size_bytes // MIB}
        facts |= {"engine": embedder.engine.name, "reason": embedder.engine.reason}
        LOG.info("model loaded", extra={"fields": facts})
        return Model(reference, embedder, size_bytes, used_at=self._clock())

    def _note_failure(self, reference: str, error: NestlingError) -> None:
        before = self._failures.get(reference)
        pause_s = min(before.pause_s * 2, LONGEST_PAUSE_S) if before else FIRST_PAUSE_S
        self._failures[reference] = Failure(error, pause_s, self._clock() + pause_s)
        LOG.warning("model not loaded", extra={"fields": {"model": reference, "error": f"{error!s:.300}"}})

    def _tested(self, reference: str) -> Embedder:
        """Load a model and run the self-test; an engine's unexpected exceptions become an EngineError."""
        try:
            embedder = self._load(reference)
            with closed_on_failure(embedder):
                for task in embedder.tasks:
                    self_test(embedder.for_task(task))
        except NestlingError:
            raise
        except Exception as error:
            raise EngineError(f"{reference}: cannot be loaded: {type(error).__name__}: {error}") from error
        return embedder

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
        return asyncio.get_running_loop().run_in_executor(self._thread, model.embedder.close)


@contextmanager
def closed_on_failure(embedder: Embedder) -> Iterator[None]:
    """Close it if the block raises anything."""
    try:
        yield
    except BaseException:
        embedder.close()
        raise


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // MIB):,} MiB"


def _nothing() -> None:
    """A task that is done when all earlier ones of the thread are."""


def _is_ready(task: asyncio.Task[Model]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def self_test(embedder: Embedder) -> None:
    """Embed texts together and one alone; EngineError unless all vectors are valid and the two ways agree."""
    together = embedder.encode(SELF_TEST)
    alone = embedder.encode(SELF_TEST[:1])
    cosine = float(paired_cosine(together[:1], alone)[0])
    if not cosine >= SELF_TEST_COSINE:
        raise EngineError(f"self-test: a text alone and in a batch has cosine {cosine:.6f}, not {SELF_TEST_COSINE}")
    if len(np.unique(together.round(3), axis=0)) != len(SELF_TEST):
        raise EngineError("self-test: different texts have the same vector")
