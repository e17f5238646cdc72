"""Specifications of GGUF files without nestling metadata: published files, recognised by architecture, shape and name.

The files of the published jina-embeddings-v4 collection have neither a pooling type nor `nestling.spec`. The names and
sizes below are those of the publisher's model cards. An unrecognised file is refused with the reason; a specification
in a JSON file makes other causal decoders of Qwen2's architecture with mean or last-token pooling usable. Does not know
the hub or engines.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from nestling._util.spelling import one_of
from nestling._util.text import read_text
from nestling.errors import FileFormatError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import FILE_TYPES
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.spec import (
    DEFAULT_DIMENSIONS,
    MAX_SPEC_LENGTH,
    MAX_TOKENS,
    ModelSpec,
    Pooling,
    Task,
    checked_family,
    is_family,
    prefixes_for,
)

ARCHITECTURES = ("qwen2vl", "qwen2")
_NAME_FIELDS = ("general.name", "general.basename", "general.finetune")
_TASKS = {task.stem: task for task in Task} | {task.value: task for task in Task}


@dataclass(frozen=True, slots=True)
class KnownFamily:
    """A family of models that others have published as GGUF files.

    `published` is the beginning of their file names; `shape` maps hyperparameter keys (without the architecture in
    front) to values; `repository` is the hub repository of a task's files, with `{stem}` for the task's name.
    """

    family: str
    published: str
    shape: Mapping[str, int]
    dimensions: tuple[int, ...]
    repository: str
    checkpoint: str

    def repository_of(self, task: Task) -> str:
        """The hub repository of a task's files."""
        return self.repository.format(stem=task.stem)

    def task_in(self, name: str) -> Task | None:
        """The task in a name that belongs to this family, in any case and with any separators; else None."""
        words = re.sub(r"[^a-z0-9]+", "-", name.lower())
        tasks = "|".join(sorted(_TASKS, key=len, reverse=True))
        found = re.search(rf"(?:^|-){re.escape(self.published)}-(?:text-)?({tasks})(?:-|$)", words)
        return _TASKS[found[1]] if found else None


JINA_V4 = KnownFamily(
    family="jina-v4",
    published="jina-embeddings-v4",
    shape={
        "block_count": 36, "embedding_length": 2048, "feed_forward_length": 11008,
        "attention.head_count": 16, "attention.head_count_kv": 2,
    },
    dimensions=DEFAULT_DIMENSIONS,
    repository="jinaai/jina-embeddings-v4-text-{stem}-GGUF",
    checkpoint="jinaai/jina-embeddings-v4",
)  # fmt: skip
FAMILIES = (JINA_V4,)


def recognise(file: GGUFFile) -> ModelSpec:
    """The specification of a published file; FileFormatError with the reasons when it belongs to no known family."""
    reasons = [_refusal(file, family) for family in FAMILIES]
    for family, reason in zip(FAMILIES, reasons, strict=True):
        if not reason:
            return _spec(file, family)
    raise FileFormatError(
        f"{file.path}: no nestling.spec in it, and not a known published embedding model "
        f"({'; '.join(reasons)}); describe it in a JSON file and give --spec FILE"
    )


def with_spec(file: GGUFFile, spec: ModelSpec) -> ModelSpec:
    """The given specification, checked against its file.

    UsageError when the file has a specification itself, FileFormatError when the two contradict each other or the
    architecture is not supported.
    """
    if "nestling.spec" in file.metadata:
        raise UsageError(f"{file.path}: --spec: this file has a nestling.spec, which cannot be replaced", param="spec")
    return checked(file, spec)


def checked(file: GGUFFile, spec: ModelSpec) -> ModelSpec:
    """The given specification; FileFormatError when it does not fit the file."""
    if fault := _unfit(file, spec):
        raise FileFormatError(f"{file.path}: {fault}")
    return spec


def family_of(checkpoint: Checkpoint, given: str | None) -> str:
    """The family name of a checkpoint's files: `given`, else the known family of its repository, else the repository.

    A fine-tune has the same shape as its base, so only the repository tells them apart. UsageError for a plain folder
    without `given`.
    """
    if given is not None:
        return checked_family(given)
    repository = checkpoint.folder.repository
    if known := next((family.family for family in FAMILIES if family.checkpoint == repository), None):
        return known
    name = repository.rpartition("/")[2]
    if is_family(name) and known_family(name) is None:
        return name
    raise UsageError(
        f"{checkpoint.folder.path}: give the name of its files with --family NAME "
        f"({', '.join(f'{family.family} for {family.checkpoint} itself' for family in FAMILIES)})",
        param="family",
    )


def read_spec(path: Path) -> ModelSpec:
    """Read the specification of a GGUF file without nestling metadata from a JSON file, for `Embedder.load`.

    Args:
        path: a JSON object with the fields of `ModelSpec`; `source` is optional.

    Returns:
        The checked specification.

    Raises:
        UsageError: The file cannot be read.
        FileFormatError: Not JSON, or a field is missing, unknown or invalid.

    Example:
        model = nestling.Embedder.load("other.gguf", spec=nestling.read_spec(Path("spec.json")))
    """
    known = [field.name for field in fields(ModelSpec)]
    try:
        if path.stat().st_size > MAX_SPEC_LENGTH:
            raise FileFormatError(f"{path}: larger than {MAX_SPEC_LENGTH} bytes: expected a few lines of JSON")
        raw = json.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}", param="spec") from None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise FileFormatError(f"{path}: expected an object with the fields {', '.join(known)}")
    for wrong in raw.keys() - set(known):
        raise FileFormatError(f"{path}: no such field {wrong!r:.80}: {one_of(known, wrong)}")
    try:
        return ModelSpec.from_json(json.dumps({"source": ""} | raw))
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None


def published_name(family: KnownFamily, task: Task, quant: str) -> str:
    """The name of a file in the repositories of a known family."""
    return f"{family.published}-text-{task.stem}-{quant}.gguf"


def by_file_name(name: str) -> tuple[str, Task, str] | None:
    """Family, task and file type of `{family}-text-{task}-{QUANT}.gguf`; published names map to the family's name."""
    stems = "|".join(task.stem for task in Task)
    found = re.fullmatch(rf"(.+)-text-({stems})-([A-Z0-9_]+)\.gguf", name)
    if found is None or found[3] not in FILE_TYPES:
        return None
    family = next((known.family for known in FAMILIES if known.published == found[1]), found[1])
    return family, _TASKS[found[2]], found[3]


def known_family(name: str) -> KnownFamily | None:
    """The known family of a name (`jina-v4`); None for others."""
    return next((family for family in FAMILIES if family.family == name), None)


def _refusal(file: GGUFFile, family: KnownFamily) -> str:
    """Why a file does not belong to a family; empty if it does."""
    architecture = _architecture(file)
    if architecture not in ARCHITECTURES:
        return f"architecture {architecture!r}, {family.family} has {' or '.join(ARCHITECTURES)}"
    for key, wanted in family.shape.items():
        if (found := _value(file, f"{architecture}.{key}")) != wanted:
            return f"{key} {found!r}, {family.family} has {wanted}"
    tasks = {name: task for name in _names(file) if (task := family.task_in(name))}
    if not tasks:
        return f"the shape of {family.family}, but no name in it says {family.published} and a task"
    if len(set(tasks.values())) > 1:
        return "its names contradict each other: " + ", ".join(f"{name!r} is {task}" for name, task in tasks.items())
    return _unfit(file, _spec(file, family))


def _spec(file: GGUFFile, family: KnownFamily) -> ModelSpec:
    task = next(task for name in _names(file) if (task := family.task_in(name)))
    context = _value(file, f"{_architecture(file)}.context_length")
    return ModelSpec(
        family=family.family,
        task=task,
        dimensions=family.dimensions,
        max_tokens=min(context, MAX_TOKENS) if isinstance(context, int) and context > 0 else MAX_TOKENS,
        prefixes=prefixes_for(task),
        pooling=Pooling.MEAN,
        source=family.checkpoint,
    )


def _unfit(file: GGUFFile, spec: ModelSpec) -> str:
    """Why a file does not fit its specification; empty if it does."""
    architecture = _architecture(file)
    if architecture not in ARCHITECTURES:
        return f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURES)}"
    if _value(file, f"{architecture}.attention.causal") is False:
        return f"{architecture}.attention.causal=False: expected a causal decoder"
    width, context = (_value(file, f"{architecture}.{key}") for key in ("embedding_length", "context_length"))
    if spec.dimensions[-1] != width:
        return f"the specification says {spec.dimensions[-1]} dimensions, the weights {width}"
    if not isinstance(context, int) or spec.max_tokens > context:
        return f"the specification says max_tokens={spec.max_tokens}, the file's context is {context}"
    pooling = _value(file, f"{architecture}.pooling_type")
    if pooling not in (None, spec.pooling.gguf_value):
        return f"{architecture}.pooling_type={pooling}, but the specification says {spec.pooling.value}"
    return ""


def _architecture(file: GGUFFile) -> object:
    return _value(file, "general.architecture")


def _value(file: GGUFFile, key: str) -> object:
    field = file.metadata.get(key)
    return field.value if field else None


def _names(file: GGUFFile) -> list[str]:
    """The names of a file: those in its metadata, its file name and, in the hub's cache, its repository."""
    inside = [str(value) for key in _NAME_FIELDS if (value := _value(file, key))]
    folders = [part.removeprefix("models--") for part in file.path.parts if part.startswith("models--")]
    return [file.path.name, *inside, *folders[-1:]]
