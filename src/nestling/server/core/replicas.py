"""A loaded model: a replica on each device, and what the replicas must pass before they answer."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from nestling.errors import EngineError, NestlingError
from nestling.models.embedder import Embedder
from nestling.spec import Task
from nestling.vectors import paired_cosine

ONE_DEVICE = "default"
"""The name of the only device of a server to which none was named."""
SELF_TEST = ("The quick brown fox jumps over the lazy dog.", "A beautiful sunset over the beach", "海滩上美丽的日落")
SELF_TEST_COSINE = 0.999
"""Least cosine of a text's vectors, embedded alone and in a batch; int8 engines reach 0.9999, broken ones far less."""


@dataclass(eq=False)
class Model:
    """One loaded model and its users. `replicas`: by device, never empty; replaced as a whole, for other threads."""

    reference: str
    replicas: Mapping[str, Embedder]
    size_bytes: int = 0
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    computing_on: set[str] = field(default_factory=set)
    """The devices whose threads work with it, even if the client has left."""

    @property
    def embedder(self) -> Embedder:
        """The replica for everything but computing."""
        return next(iter(self.replicas.values()))

    @property
    def is_in_use(self) -> bool:
        """True while it must not be unloaded."""
        return self.users > 0 or bool(self.computing_on)

    @contextmanager
    def computing(self, device: str) -> Iterator[None]:
        """For a device's thread: marks the model as computing there during the block."""
        self.computing_on.add(device)
        try:
            yield
        finally:
            self.computing_on.discard(device)

    def close(self) -> None:
        """Free the memory of all replicas."""
        for one in self.replicas.values():
            one.close()


@dataclass(frozen=True, slots=True)
class Use:
    """A loaded model in use for one of its tasks."""

    model: Model
    task: Task | None

    @property
    def embedder(self) -> Embedder:
        """The model for that task; a new object after a reset."""
        return self.model.embedder.for_task(self.task) if self.task else self.model.embedder


def self_test(embedder: Embedder) -> None:
    """Embed texts together and one alone; EngineError unless all vectors are valid and the two ways agree."""
    together = embedder.encode(SELF_TEST)
    alone = embedder.encode(SELF_TEST[:1])
    cosine = float(paired_cosine(together[:1], alone)[0])
    if not cosine >= SELF_TEST_COSINE:
        raise EngineError(f"self-test: a text alone and in a batch has cosine {cosine:.6f}, not {SELF_TEST_COSINE}")
    if len(np.unique(together.round(3), axis=0)) != len(SELF_TEST):
        raise EngineError("self-test: different texts have the same vector")


def check_alike(reference: str, replicas: Mapping[str, Embedder]) -> None:
    """EngineError unless all replicas compute in the same engine and arithmetic, so that their vectors are equal."""
    found = {device: f"{one.engine.name} {getattr(one.engine, 'arithmetic', '')}" for device, one in replicas.items()}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{how.strip()} on {device}" for device, how in found.items())
        raise EngineError(f"{reference}: {listed}: their vectors would differ; --arithmetic names one for all")


def is_the_devices(error: Exception) -> bool:
    """Whether a device may be at fault that an engine cannot be reloaded; not for a missing or damaged file."""
    return isinstance(error, EngineError) or not isinstance(error, (NestlingError, OSError))


@contextmanager
def closed_on_failure(embedder: Embedder) -> Iterator[Embedder]:
    """Close it if the block raises anything."""
    try:
        yield embedder
    except BaseException:
        embedder.close()
        raise
