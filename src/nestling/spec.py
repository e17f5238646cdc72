"""What a model is for, said once: tasks, roles, prefixes, dimensions.

Knows nothing of files or engines. The prefixes are those of the jina-embeddings-v4 model card: `Query: ` and
`Passage: `, except that text-matching is symmetric and puts `Query: ` in front of both sides.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from numbers import Real
from pathlib import Path
from typing import Self, TypeVar

from nestling.errors import FileFormatError, UsageError

MAX_SPEC_LENGTH = 1 << 16
DEFAULT_DIMENSIONS = (128, 256, 512, 1024, 2048)
"""The Matryoshka sizes that jina-embeddings-v4 was trained for."""
MAX_TOKENS = 32768
"""The longest text that jina-embeddings-v4 was made for; its context field says more."""
MAX_DIMENSION, MAX_CONTEXT, MAX_TEXT = 1 << 16, 1 << 20, 1000
FAMILY_RULE = "1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit, no two dots in a row"
_FAMILY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BASE_FIELD = "nestling.base"
"""GGUF key that marks a base model; its value names the checkpoint that its LoRA adapters belong to."""
BASE_STEM = "base"
"""The word in file names of a base model (no adapter merged), where task models have their task."""
_T = TypeVar("_T")


class Task(StrEnum):
    """What the vectors are compared for; each task has its own adapter."""

    RETRIEVAL = "retrieval"
    TEXT_MATCHING = "text-matching"
    CODE = "code"

    @property
    def stem(self) -> str:
        """The task's word in published file names: text-matching is written `matching` there."""
        return "matching" if self is Task.TEXT_MATCHING else self.value

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a task's name; `matching`, `retrieval.query` and the like are not tasks but `matching` is an alias."""
        try:
            return cls("text-matching" if text == "matching" else text)
        except ValueError:
            raise UsageError(f"task={text!r}: expected one of {', '.join(cls)}", param="task") from None


def stem_of(task: Task | None) -> str:
    """A task's word in file names, and that of the base of all three for None."""
    return task.stem if task else BASE_STEM


def adapter_path(folder: Path, task: Task) -> Path:
    """The published name of a task's adapter: `adapter-{task}.gguf`."""
    return folder / f"adapter-{task.stem}.gguf"


class Role(StrEnum):
    """Which side of a comparison a text is on; `raw` adds no prefix."""

    QUERY = "query"
    PASSAGE = "passage"
    RAW = "raw"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a role's name; `document` is read as `passage`."""
        try:
            return cls("passage" if text == "document" else text)
        except ValueError:
            raise UsageError(f"prompt_name={text!r}: expected one of {', '.join(cls)}", param="prompt_name") from None


class Pooling(StrEnum):
    """How the hidden states of a text become one vector; the values of llama.cpp's `pooling_type`."""

    MEAN = "mean"
    LAST = "last"

    @property
    def gguf_value(self) -> int:
        """llama.cpp's number for it (`enum llama_pooling_type`)."""
        return {Pooling.MEAN: 1, Pooling.LAST: 3}[self]


def is_family(name: str) -> bool:
    """True for a name that is safe in file names, references and URLs."""
    return bool(_FAMILY.fullmatch(name)) and ".." not in name


def checked_family(name: str) -> str:
    """The name of a family as it is; UsageError for one that is not safe."""
    if not is_family(name):
        raise UsageError(f"family={name!r:.80}: expected {FAMILY_RULE}", param="family")
    return name


def prefixes_for(task: Task) -> dict[str, str]:
    """The published prefix of each role of a task."""
    passage = "Query: " if task is Task.TEXT_MATCHING else "Passage: "
    return {Role.QUERY.value: "Query: ", Role.PASSAGE.value: passage}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One task model: everything about it that its weights do not say.

    `dimensions` are the trained Matryoshka sizes in ascending order, the last one the full width.
    `source` names the checkpoint and its revision or content hash.
    """

    family: str
    task: Task
    dimensions: tuple[int, ...]
    max_tokens: int
    prefixes: dict[str, str] = field(default_factory=dict)
    pooling: Pooling = Pooling.MEAN
    source: str = ""

    @property
    def name(self) -> str:
        """`family-task`, the reference under which the store knows the model."""
        return f"{self.family}-{self.task}"

    def prefix(self, role: Role) -> str:
        """The text that goes in front of a text of this role, before tokenizing."""
        return "" if role is Role.RAW else self.prefixes[role]

    def dimension(self, wanted: int | None) -> int:
        """The vector size to answer with: `wanted` if it was trained, the full width for None; else UsageError."""
        if wanted is None:
            return self.dimensions[-1]
        if not isinstance(wanted, Real) or isinstance(wanted, bool) or wanted not in self.dimensions:
            sizes = ", ".join(map(str, self.dimensions))
            raise UsageError(f"dimensions={wanted!r}: this model is trained for {sizes}", param="dimensions")
        return int(wanted)

    def to_json(self) -> str:
        """Compact JSON with sorted keys: equal specs give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; anything else is a FileFormatError."""
        if len(text) > MAX_SPEC_LENGTH:
            raise FileFormatError(f"nestling.spec: longer than {MAX_SPEC_LENGTH} characters")
        try:
            raw = json.loads(text)
            spec = cls(
                family=_typed(raw["family"], str),
                task=Task(raw["task"]),
                dimensions=tuple(_typed(size, int) for size in _typed(raw["dimensions"], list)),
                max_tokens=_typed(raw["max_tokens"], int),
                prefixes={Role(role).value: _typed(prefix, str) for role, prefix in raw["prefixes"].items()},
                pooling=Pooling(raw["pooling"]),
                source=_typed(raw["source"], str),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"nestling.spec: not a model specification ({error})") from None
        if fault := spec.fault():
            raise FileFormatError(f"nestling.spec: {fault}")
        return spec

    def fault(self) -> str:
        """What no model can be: the first field that is wrong and what is right; empty for a sound specification."""
        sizes, texts = self.dimensions, [*self.prefixes.values(), self.source]
        rules = {
            f"family={self.family!r:.80}: expected {FAMILY_RULE}": is_family(self.family),
            f"dimensions={list(sizes)!r:.80}: expected different sizes from 1 to {MAX_DIMENSION}, ascending": (
                bool(sizes) and sizes[0] >= 1 and sizes[-1] <= MAX_DIMENSION and list(sizes) == sorted(set(sizes))
            ),
            f"max_tokens={self.max_tokens!r:.40}: expected 1 to {MAX_CONTEXT}": 1 <= self.max_tokens <= MAX_CONTEXT,
            "prefixes: expected one for query and one for passage": {"query", "passage"} <= self.prefixes.keys(),
            f"prefixes, source: expected Unicode text of at most {MAX_TEXT} characters": all(map(_is_text, texts)),
        }
        return next((fault for fault, holds in rules.items() if not holds), "")


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} where {kind.__name__} was expected")
    return value


def _is_text(text: str) -> bool:
    return len(text) <= MAX_TEXT and not any("\ud800" <= char <= "\udfff" for char in text)
