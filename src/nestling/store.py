"""Model references to files on this machine; the starter's files are built when they are first asked for.

A reference is a path to a GGUF file, or `name[-task][:QUANT]` (`starter-retrieval:Q4_K_M`, `jina-v4-code`). Named
models lie in `<cache>/models/<family>/` under their published names, where `nestling build` puts them. Knows nothing
of engines.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from platformdirs import user_cache_path

from nestling.build.checkpoint import Checkpoint
from nestling.build.pipeline import Pipeline, Steps, model_path, silent
from nestling.errors import ModelNotFoundError, UsageError
from nestling.quants import FILE_TYPES, parse_file_type
from nestling.spec import Task

STARTER = "starter"
DEFAULT_QUANT = "Q8_0"
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
        if not path.is_file():
            raise ModelNotFoundError(f"{path}: no such file; `nestling list` shows the models that are here")
        return path
    model = ModelReference.parse(str(reference))
    if model.task is None:
        names = ", ".join(str(replace(model, task=task)) for task in Task)
        raise UsageError(f"model={reference!r} is a family of three; name one: {names}", param="model")
    return _named(model.family, model.task, model.quant or DEFAULT_QUANT, steps)


def _named(family: str, task: Task, quant: str, steps: Steps) -> Path:
    path = model_path(family_folder(family), family=family, task=task, file_type=quant)
    if family == STARTER:
        return _starter(task, quant, steps)
    if not path.exists():
        have = [f"{family}-{found.task}:{found.quant}" for found in available() if found.family == family]
        hint = f"here are {', '.join(have)}" if have else f"make it with `nestling build CHECKPOINT --family {family}`"
        raise ModelNotFoundError(f"{family}-{task}:{quant}: not on this machine; {hint}")
    return path


def _starter(task: Task, quant: str, steps: Steps) -> Path:
    checkpoint = Checkpoint.open(starter_checkpoint())
    pipeline = Pipeline(checkpoint, family_folder(STARTER), STARTER, threads=os.cpu_count() or 1, steps=steps)
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
    """Every named model: the files in the cache, and the starter's default files whether built or not."""
    found = [model for folder in sorted((cache_folder() / "models").glob("*/")) for model in _in_folder(folder)]
    have = {(model.family, model.task, model.quant) for model in found}
    missing = [StoredModel(STARTER, task, DEFAULT_QUANT, None) for task in Task]
    return found + [model for model in missing if (model.family, model.task, model.quant) not in have]


def _in_folder(folder: Path) -> list[StoredModel]:
    def path(task: Task, quant: str) -> Path:
        return model_path(folder, family=folder.name, task=task, file_type=quant)

    every = [StoredModel(folder.name, task, quant, path(task, quant)) for task in Task for quant in FILE_TYPES]
    return [model for model in every if model.path and model.path.exists()]
