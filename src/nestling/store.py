"""Model references to files on this machine; the starter's files are built when they are first asked for.

A reference is a path to a GGUF file, `name[-task][:QUANT]` (`starter-retrieval:Q4_K_M`, `jina-v4-code`) or a hub
repository `org/repo[:QUANT]`. Named models lie in `<cache>/models/<family>/` under their published names, where
`nestling build` puts them; those that were pulled lie in the hub's cache (`pulled`). Nothing here asks the network.
Knows nothing of engines.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from platformdirs import user_cache_path

from nestling import calibrating, hub, pulled
from nestling.build.checkpoint import Checkpoint
from nestling.build.pipeline import Pipeline, Steps, model_path, silent
from nestling.card import card_path, write_sums
from nestling.errors import ModelNotFoundError, UsageError
from nestling.files import lock
from nestling.quants import FILE_TYPES, parse_file_type
from nestling.spec import Task

STARTER = "starter"
DEFAULT_QUANT = pulled.DEFAULT_QUANT
CACHE_VARIABLE = "NESTLING_CACHE"
_REFERENCE = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*?)(?:-(retrieval|text-matching|matching|code))?(?::([A-Za-z0-9_]+))?"
)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A named model: a family, one of its tasks (None for all three) and a file type (None for the default)."""

    family: str
    task: Task | None = None
    quant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name[-task][:QUANT]`; anything else is a UsageError."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise UsageError(
                f"model={text!r}: a path to a .gguf file or name[-task][:QUANT] is expected", param="model"
            )
        family, task, quant = found.groups()
        return cls(family, Task.parse(task) if task else None, parse_file_type(quant) if quant else None)

    def __str__(self) -> str:
        """The reference as `parse` reads it."""
        return self.family + (f"-{self.task}" if self.task else "") + (f":{self.quant}" if self.quant else "")


def cache_folder() -> Path:
    """Where nestling keeps what it can make again: `$NESTLING_CACHE`, or the platform's cache folder."""
    return Path(os.environ[CACHE_VARIABLE]) if os.environ.get(CACHE_VARIABLE) else user_cache_path("nestling")


def starter_checkpoint() -> Path:
    """The checkpoint that comes with the package."""
    return Path(__file__).parent / "starter" / "checkpoint"


def family_folder(family: str) -> Path:
    """Where a family's files lie."""
    return cache_folder() / "models" / family


def looks_like_path(reference: str | Path) -> bool:
    """True for what is meant as a file rather than as a name."""
    return isinstance(reference, Path) or reference.endswith(".gguf") or "/" in reference


def resolve(reference: str | Path, *, steps: Steps = silent) -> Path:
    """The file that a reference means. The starter's is built if need be (`steps` is told); else ModelNotFoundError."""
    if looks_like_path(reference):
        path = Path(reference)
        return path if path.is_file() else _from_hub(str(reference))
    model = ModelReference.parse(str(reference))
    if model.task is None:
        names = ", ".join(str(replace(model, task=task)) for task in Task)
        raise UsageError(f"model={reference!r} is a family of three; name one: {names}", param="model")
    return _named(model.family, model.task, model.quant or DEFAULT_QUANT, steps)


def _from_hub(reference: str) -> Path:
    wanted = pulled.reference_of(reference)
    if wanted is None:
        raise ModelNotFoundError(f"{reference}: no such file; `nestling list` shows the models that are here")
    found = pulled.find(wanted)
    if found is None:
        raise ModelNotFoundError(
            f"{reference}: no such file, nor in the hub's cache; fetch it with `nestling pull {wanted}`"
        )
    return found


def _named(family: str, task: Task, quant: str, steps: Steps) -> Path:
    path = model_path(family_folder(family), family=family, task=task, file_type=quant)
    if family == STARTER:
        return _starter(task, quant, steps)
    if path.exists():
        return path
    wanted = pulled.published(family, task, quant)
    if wanted and (found := pulled.find(wanted)):
        return found
    raise ModelNotFoundError(f"{family}-{task}:{quant}: not on this machine; {_hint(family, task, quant)}")


def _hint(family: str, task: Task, quant: str) -> str:
    have = [f"{family}-{found.task}:{found.quant}" for found in available() if found.family == family]
    fetch = f"fetch it with `nestling pull {family}-{task}:{quant}`" if pulled.published(family, task, quant) else ""
    if have:
        return f"here are {', '.join(have)}" + (f"; {fetch}" if fetch else "")
    return f"make it with `nestling build CHECKPOINT --family {family}`" + (f" or {fetch}" if fetch else "")


def _starter(task: Task, quant: str, steps: Steps) -> Path:
    checkpoint = Checkpoint.open(starter_checkpoint())
    threads = os.cpu_count() or 1
    collect = calibrating.for_pipeline(threads=threads)
    pipeline = Pipeline(checkpoint, family_folder(STARTER), STARTER, threads, steps, collect)
    return pipeline.build([task], [quant])[-1].path


def with_task(reference: str, task: str | None, *, default: Task) -> str:
    """A reference that names a task: `task`, or `default` for a bare family.

    A task that contradicts the reference is a UsageError. A path stays as it is: its file says what it is for.
    """
    if looks_like_path(reference):
        return reference
    model = ModelReference.parse(reference)
    wanted = Task.parse(task) if task else model.task or default
    if model.task not in (None, wanted):
        raise UsageError(f"task={task!r}, but model={reference!r} is for {model.task}", param="task")
    return str(replace(model, task=wanted))


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A named model that is here, or (with `path` None) that would be built on first use."""

    family: str
    task: Task
    quant: str
    path: Path | None


def available() -> list[StoredModel]:
    """Every named model: files in the cache, pulled ones of published families, the starter's default files."""
    found = [model for folder in sorted((cache_folder() / "models").glob("*/")) for model in _in_folder(folder)]
    built = {(model.family, model.task, model.quant) for model in found}
    found += [StoredModel(*name, path) for name, path in pulled.published_models() if name not in built]
    have = {(model.family, model.task, model.quant) for model in found}
    missing = [StoredModel(STARTER, task, DEFAULT_QUANT, None) for task in Task]
    return found + [model for model in missing if (model.family, model.task, model.quant) not in have]


def _in_folder(folder: Path) -> list[StoredModel]:
    def path(task: Task, quant: str) -> Path:
        return model_path(folder, family=folder.name, task=task, file_type=quant)

    every = [StoredModel(folder.name, task, quant, path(task, quant)) for task in Task for quant in FILE_TYPES]
    return [model for model in every if model.path and model.path.exists()]


def remove(reference: str) -> tuple[list[str], int]:
    """Delete what a name or a hub reference means, with its cards: -> what went, and the bytes freed.

    Without a task or a file type, all of them go. Paths are refused: a file of one's own is not the store's.
    """
    if at_hub := pulled.reference_of(reference):
        return pulled.remove(at_hub)
    if looks_like_path(reference):
        raise UsageError(f"model={reference!r}: a name or a hub repository is expected, not a path", param="model")
    wanted = ModelReference.parse(reference)
    every = [model for model in available() if model.path and _means(wanted, model)]
    if not every:
        raise ModelNotFoundError(f"{reference}: not on this machine; `nestling list` shows what is")
    gone: list[str] = []
    freed = 0
    for model in every:
        assert model.path
        names, size = _remove_file(model.path) if hub.known_hash(model.path) is None else pulled.remove_file(model.path)
        gone, freed = gone + names, freed + size
    return gone, freed


def _means(wanted: ModelReference, model: StoredModel) -> bool:
    return wanted.family == model.family and wanted.task in (None, model.task) and wanted.quant in (None, model.quant)


def _remove_file(path: Path) -> tuple[list[str], int]:
    files = [one for one in (path, card_path(path)) if one.exists()]
    freed = sum(one.stat().st_size for one in files)
    with lock(path.parent / ".lock"):
        for one in files:
            one.unlink()
        write_sums(path.parent)
    return [str(one) for one in files], freed
