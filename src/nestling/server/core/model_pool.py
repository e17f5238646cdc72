"""The loaded models of one process: loaded on first use, kept while used, given back when idle or short of memory.

A model's size is the resident memory that its loading added, measured; where that cannot be read, it counts as nothing.
Knows neither HTTP nor names: a model is asked for by a reference and made by the `load` that it was given.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nestling.errors import EngineError, NestlingError
from nestling.models.embedder import Embedder
from nestling.server.settings import MIB
from nestling.spec import Task
from nestling.vectors import paired_cosine

Load = Callable[[str], Embedder]
LOG = logging.getLogger("nestling.server")
SELF_TEST = ("The quick brown fox jumps over the lazy dog.", "A beautiful sunset over the beach", "海滩上美丽的日落")
SELF_TEST_COSINE = 0.999
"""What a text's vector alone and among others must agree to; int8 engines reach 0.9999, a broken one far less."""


@dataclass(eq=False)
class Model:
    """One loaded model and who uses it."""

    reference: str
    embedder: Embedder
    size_bytes: int = 0
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Use:
    """A loaded model in use for one of its tasks."""

    model: Model
    task: Task | None

    @property
    def embedder(self) -> Embedder:
        """The model for that task; another one after a reset."""
        return self.model.embedder.for_task(self.task) if self.task else self.model.embedder


class ModelPool:
    """Models by reference. All methods run on the event loop, but `reset`, which the engine's thread calls."""

    def __init__(self, load: Load, *, budget_bytes: int, idle_s: float | None = None) -> None:
        self._load, self._budget, self._idle_s = load, budget_bytes, idle_s
        self._models: dict[str, asyncio.Task[Model]] = {}
        self._thread = ThreadPoolExecutor(1, "load")

    @asynccontextmanager
    async def use(self, reference: str) -> AsyncIterator[Model]:
        """A model, loaded if it is not yet; it stays loaded for as long as the block lasts."""
        model = await self._get(reference)
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1
            model.used_at = time.monotonic()

    @property
    def loaded(self) -> list[Model]:
        """The models that are ready."""
        return [task.result() for task in self._models.values() if _is_ready(task)]

    def reset(self, model: Model) -> None:
        """Load a model anew in place, after its engine failed."""
        LOG.warning("engine reset", extra={"fields": {"model": model.reference}})
        model.embedder.close()
        model.embedder = self._load(model.reference)

    def unload_idle(self) -> None:
        """Give back what nobody has used for the idle time."""
        if self._idle_s is None:
            return
        for model in self.loaded:
            if not model.users and time.monotonic() - model.used_at > self._idle_s:
                self._unload(model)

    def close(self) -> None:
        """Give everything back."""
        for model in self.loaded:
            self._unload(model)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _get(self, reference: str) -> Model:
        while True:
            task = self._models.get(reference)
            if task is None or (task.done() and not _is_ready(task)):
                task = self._models[reference] = asyncio.create_task(self._loaded(reference))
            model = await asyncio.shield(task)
            if self._models.get(reference) is task:  # it may have been unloaded between its loading and this turn
                return model

    async def _loaded(self, reference: str) -> Model:
        start = time.monotonic()
        model = await asyncio.get_running_loop().run_in_executor(self._thread, self._measured, reference)
        facts = {"model": reference, "seconds": round(time.monotonic() - start, 2), "mib": model.size_bytes // MIB}
        engine = model.embedder.engine
        LOG.info("model loaded", extra={"fields": facts | {"engine": engine.name, "reason": engine.reason}})
        self._make_room(model)
        return model

    def _measured(self, reference: str) -> Model:
        before = resident_bytes()
        try:
            embedder = self._load(reference)
        except NestlingError:
            raise
        except Exception as error:
            raise EngineError(f"{reference}: cannot be loaded: {type(error).__name__}: {error}") from error
        for task in embedder.tasks:
            self_test(embedder.for_task(task))
        return Model(reference, embedder, max(resident_bytes() - before, 0))

    def _make_room(self, newest: Model) -> None:
        others = sorted((one for one in self.loaded if one is not newest), key=lambda one: one.used_at)
        total = newest.size_bytes + sum(one.size_bytes for one in others)
        for model in others:
            if total > self._budget and not model.users:
                total -= model.size_bytes
                self._unload(model)
        if total > self._budget:
            LOG.warning(
                "over the memory budget", extra={"fields": {"mib": total // MIB, "budget": self._budget // MIB}}
            )

    def _unload(self, model: Model) -> None:
        del self._models[model.reference]
        model.embedder.close()
        LOG.info("model unloaded", extra={"fields": {"model": model.reference}})


def _is_ready(task: asyncio.Task[Model]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def self_test(embedder: Embedder) -> None:
    """Embed texts together and one alone; EngineError unless all are vectors and the two ways agree."""
    together = embedder.encode(SELF_TEST)
    alone = embedder.encode(SELF_TEST[:1])
    cosine = float(paired_cosine(together[:1], alone)[0])
    if not cosine >= SELF_TEST_COSINE:
        raise EngineError(f"self-test: a text alone and in a batch has cosine {cosine:.6f}, not {SELF_TEST_COSINE}")
    if len(np.unique(together.round(3), axis=0)) != len(SELF_TEST):
        raise EngineError("self-test: different texts have the same vector")


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
