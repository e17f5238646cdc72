"""From model references to files on this machine; the starter's files are built on first use.

A reference is a path to a GGUF file, `name[-task][:QUANT]` (`starter-retrieval:Q4_K_M`, `jina-v4-code`; `starter-base`
is the base model with the LoRA adapters of all tasks) or a hub repository `org/repo[:QUANT]`. Named models are in
`<cache>/models/<family>/`, where `nestling build` writes them; pulled models are in the hub's cache (`hub_models`).
Makes no network requests. Does not know engines.
"""

import errno
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from nestling._util.cpu import usable_threads
from nestling._util.data import data_folder
from nestling._util.files import CACHE_VARIABLE, cache_folder
from nestling._util.hashes import sha256_of
from nestling._util.progress import Steps, silent
from nestling._util.spelling import nearest
from nestling.errors import BuildError, FileFormatError, ModelNotFoundError, UsageError
from nestling.formats.card import Card
from nestling.formats.mmproj import tower_path
from nestling.formats.multivector_head import projector_path
from nestling.formats.quant_types import FILE_TYPES, parse_file_type
from nestling.models import hub_models
from nestling.models.families import FAMILIES
from nestling.pipeline import self_test
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, made_by, model_path
from nestling.pipeline.quantization import calibration
from nestling.spec import BASE_STEM, ModelSpec, Task, adapter_path, checked_family

STARTER = "starter"
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
DEFAULT_QUANT = hub_models.DEFAULT_QUANT
_REFERENCE = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*?)(?:-(retrieval|text-matching|matching|code|base))?(?::([A-Za-z0-9_]+))?"
)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A named model: a family, a task (None for all three) and a file type (None for the default).

    `base`: the base model with the LoRA adapters of all tasks.
    """

    family: str
    task: Task | None = None
    quant: str | None = None
    base: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `name[-task][:QUANT]`; UsageError for anything else."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise UsageError(f"model={text!r}: expected a path to a .gguf file or name[-task][:QUANT]", param="model")
        family, word, quant = found.groups()
        base = word == BASE_STEM
        task = Task.parse(word) if word and not base else None
        return cls(family, task, parse_file_type(quant) if quant else None, base)

    def __str__(self) -> str:
        """The form that `parse` reads."""
        word = BASE_STEM if self.base else self.task
        return self.family + (f"-{word}" if word else "") + (f":{self.quant}" if self.quant else "")


def starter_checkpoint() -> Path:
    """The checkpoint in nestling-data."""
    return data_folder("starter", wanted_for="the starter") / "checkpoint"


def family_folder(family: str) -> Path:
    """The folder of a family's files."""
    return cache_folder() / "models" / checked_family(family)


def projector_of(model: Path, spec: ModelSpec) -> Path:
    """The multi-vector head of a model file: in its folder or in its family's folder; UsageError if there is none."""
    places = [projector_path(model.parent, family=spec.family, task=spec.task)]
    if not places[0].is_file():
        places.append(projector_path(family_folder(spec.family), family=spec.family, task=spec.task))
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise UsageError(
            f"{model.name}: no multi-vector head ({places[0].name}); make one from the model's checkpoint with "
            f"`nestling multivector CHECKPOINT --task {spec.task} --family {spec.family}`",
            param="return_multivector",
        )
    return found


def looks_like_path(reference: str | Path) -> bool:
    """True for a reference that is a path rather than a name."""
    return isinstance(reference, Path) or reference.endswith(".gguf") or "/" in reference


def resolve(reference: str | Path, *, steps: Steps = silent) -> Path:
    """The file of a reference; the starter's is built if missing, others are a ModelNotFoundError."""
    if not isinstance(reference, str | Path):
        kind = type(reference).__name__
        raise UsageError(f"model: expected a model reference or a path, not {kind}", param="model")
    if looks_like_path(reference):
        path = Path(reference)
        return path if path.is_file() else _from_hub(str(reference))
    model = ModelReference.parse(str(reference))
    if model.task is None and not model.base:
        names = ", ".join([*(str(replace(model, task=task)) for task in Task), str(replace(model, base=True))])
        raise UsageError(
            f"model={reference!r} is a family of three models: expected one of {names}{_meant(model.family)}",
            param="model",
        )
    return _named(model.family, model.task, model.quant or DEFAULT_QUANT, steps)


def _from_hub(reference: str) -> Path:
    wanted = hub_models.reference_of(reference)
    if wanted is None:
        raise ModelNotFoundError(f"{reference}: no such file; `nestling list` shows all models")
    found = hub_models.find(wanted)
    if found is None:
        raise ModelNotFoundError(
            f"{reference}: no such file, and not in the hub's cache; download it with `nestling pull {wanted}`"
        )
    return found


def _named(family: str, task: Task | None, quant: str, steps: Steps) -> Path:
    path = model_path(family_folder(family), family=family, task=task, file_type=quant)
    if family == STARTER:
        return _starter(task, quant, steps)
    if path.exists():
        return path
    wanted = hub_models.published(family, task, quant) if task else None
    if wanted and (found := hub_models.find(wanted)):
        return found
    name = StoredModel(family, task, quant, None).reference
    raise ModelNotFoundError(f"{name}: not on this machine; {_hint(family, task, quant)}{_meant(family)}")


def _meant(family: str) -> str:
    """A suggestion for a misspelt family."""
    known = {STARTER, *(one.family for one in FAMILIES), *(one.family for one in available())}
    return "" if family in known else nearest(family, [*known, *(f"{one}-{task}" for one in known for task in Task)])


def _hint(family: str, task: Task | None, quant: str) -> str:
    have = [str(found.reference) for found in available() if found.family == family]
    if task is None:
        make = f"make it with `nestling build CHECKPOINT --family {family} --keep-adapters`"
        return (f"available: {', '.join(have)}; " if have else "") + make
    fetch = (
        f"download it with `nestling pull {family}-{task}:{quant}`" if hub_models.published(family, task, quant) else ""
    )
    if have:
        return f"available: {', '.join(have)}" + (f"; {fetch}" if fetch else "")
    return f"make it with `nestling build CHECKPOINT --family {family}`" + (f" or {fetch}" if fetch else "")


def _starter(task: Task | None, quant: str, steps: Steps) -> Path:
    """The starter's file: built if missing, damaged or of another starter; a right one is used without write access."""
    folder = family_folder(STARTER)
    path = model_path(folder, family=STARTER, task=task, file_type=quant)
    source = Checkpoint.open(starter_checkpoint()).source
    if all(is_whole(file, source) for file in [path, *_companions(folder, task)]):
        return path
    try:
        return _build_starter(task, quant, steps)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise BuildError(
            f"{path.name}: {'changed, or of an earlier starter' if path.is_file() else 'not built yet'}, and {folder} "
            f"cannot be written: {error.strerror}; build it as a user who can write there, or set {CACHE_VARIABLE} to "
            "another folder"
        ) from None


def _companions(folder: Path, task: Task | None) -> list[Path]:
    """The files that belong to a model: vision tower, multi-vector heads of its tasks, and a base's LoRA adapters."""
    heads = [projector_path(folder, family=STARTER, task=one) for one in ([task] if task else Task)]
    return [tower_path(folder, STARTER), *heads, *([] if task else [adapter_path(folder, one) for one in Task])]


def is_whole(path: Path, source: str) -> bool:
    """True for a file that this version made of these weights (`Checkpoint.source`), with the hash on its card."""
    try:
        card = Card.read(path) if path.is_file() else None
    except FileFormatError:
        return False
    if card is None or (card.made_by, card.source, card.size_bytes) != (made_by(), source, path.stat().st_size):
        return False
    return card.sha256 == sha256_of(path)


def _build_starter(task: Task | None, quant: str, steps: Steps) -> Path:
    checkpoint = Checkpoint.open(starter_checkpoint())
    threads = usable_threads()
    collect = calibration.for_pipeline(threads=threads)
    pipeline = Pipeline(checkpoint, family_folder(STARTER), STARTER, threads, steps, collect, prove=self_test.prove)
    if task:
        return pipeline.build([task], [quant])[-1].path
    return next(file.path for file in pipeline.build_base([quant]) if file.card.file_type == quant)


def with_task(reference: str, task: str | None, *, default: Task) -> str:
    """Add a task to a reference without one: `task`, or `default` if that is None.

    UsageError for a task that contradicts the reference. Paths and bases are returned unchanged.
    """
    if looks_like_path(reference) or (model := ModelReference.parse(reference)).base:
        return reference
    wanted = Task.parse(task) if task else model.task or default
    if model.task not in (None, wanted):
        raise UsageError(f"task={task!r}, but model={reference!r} is for {model.task}", param="task")
    return str(replace(model, task=wanted))


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A named model on this machine, or with `path` None one that is built on first use; a base has no task."""

    family: str
    task: Task | None
    quant: str
    path: Path | None

    @property
    def reference(self) -> ModelReference:
        """Its name."""
        return ModelReference(self.family, self.task, self.quant, base=self.task is None)


def available() -> list[StoredModel]:
    """All named models: files in the cache, pulled files of published families, the starter's default files."""
    found = [model for folder in sorted((cache_folder() / "models").glob("*/")) for model in _in_folder(folder)]
    built = {(model.family, model.task, model.quant) for model in found}
    found += [StoredModel(*name, path) for name, path in hub_models.published_models() if name not in built]
    have = {(model.family, model.task, model.quant) for model in found}
    missing = [StoredModel(STARTER, task, DEFAULT_QUANT, None) for task in Task]
    return found + [model for model in missing if (model.family, model.task, model.quant) not in have]


def _in_folder(folder: Path) -> list[StoredModel]:
    def path(task: Task | None, quant: str) -> Path:
        return model_path(folder, family=folder.name, task=task, file_type=quant)

    every = [StoredModel(folder.name, task, quant, path(task, quant)) for task in (*Task, None) for quant in FILE_TYPES]
    return [model for model in every if model.path and model.path.exists()]
