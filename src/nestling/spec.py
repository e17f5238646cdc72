"""What a model is for: tasks, roles, prefixes, dimensions.

Does not know files or engines. The prefixes are those of the jina-embeddings-v4 model card: `Query: ` and
`Passage: `, except that text-matching is symmetric and puts `Query: ` in front of both sides.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from numbers import Real
from pathlib import Path
from typing import Final, Self, TypeVar

from nestling._util.spelling import member
from nestling.errors import FileFormatError, UsageError

MAX_SPEC_LENGTH = 1 << 16
DEFAULT_DIMENSIONS = (128, 256, 512, 1024, 2048)
"""The Matryoshka sizes that jina-embeddings-v4 was trained for."""
MAX_TOKENS = 32768
"""The longest text that jina-embeddings-v4 supports; the context length in its configuration is larger."""
MAX_DIMENSION, MAX_CONTEXT, MAX_TEXT = 1 << 16, 1 << 20, 1000
FAMILY_RULE = "1 to 64 characters of A-Z a-z 0-9 . _ - that begin with a letter or digit, without '..'"
_FAMILY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BASE_FIELD = "nestling.base"
"""GGUF key that marks a base model; its value names the checkpoint that its LoRA adapters belong to."""
BASE_STEM = "base"
"""The word in file names of a base model (no adapter merged), where task models have their task."""
_T = TypeVar("_T")


class Task(StrEnum):
    """What the vectors are compared for; each task has its own LoRA adapter."""

    RETRIEVAL = "retrieval"
    TEXT_MATCHING = "text-matching"
    CODE = "code"

    @property
    def stem(self) -> str:
        """The task's name in published file names, where `text-matching` is `matching`."""
        return "matching" if self is Task.TEXT_MATCHING else self.value

    @classmethod
    def parse(cls, text: str) -> Self:
        """The task of a name; `matching` is an alias of `text-matching`. UsageError for other names."""
        return member(cls, cls.TEXT_MATCHING if text == "matching" else text, param="task")


def stem_of(task: Task | None) -> str:
    """A task's name in file names; `base` for None, the model without a merged adapter."""
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
        """The role of a name; `document` is an alias of `passage`. UsageError for other names."""
        return member(cls, cls.PASSAGE if text == "document" else text, param="prompt_name")


DEFAULT_ROLE: Final = Role.QUERY
"""The role of a text where none is given."""


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
    """The name unchanged; UsageError for one that is not safe in file names."""
    if not is_family(name):
        raise UsageError(f"family={name!r:.80}: expected {FAMILY_RULE}", param="family")
    return name


def prefixes_for(task: Task) -> dict[str, str]:
    """The published prefix of each role of a task."""
    passage = "Query: " if task is Task.TEXT_MATCHING else "Passage: "
    return {Role.QUERY.value: "Query: ", Role.PASSAGE.value: passage}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What one task model is for: everything that its weights do not tell.

    Args:
        family: the first part of its name, such as `jina-v4`.
        task: what its vectors are compared for.
        dimensions: the trained Matryoshka sizes, ascending; the last one is the full width.
        max_tokens: the longest text, in tokens with its prefix.
        prefixes: the text in front of an input, by role (`query`, `passage`).
        pooling: how hidden states become one vector.
        source: the checkpoint, with its revision or content hash.
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
        """`family-task`: the model reference without a file type."""
        return f"{self.family}-{self.task}"

    def prefix(self, role: Role) -> str:
        """The prefix of a role's texts; empty for `raw`."""
        return "" if role is Role.RAW else self.prefixes[role]

    def dimension(self, wanted: int | None) -> int:
        """The vector size: `wanted` if it was trained, the full width for None; UsageError for other values."""
        if wanted is None:
            return self.dimensions[-1]
        if not isinstance(wanted, Real) or isinstance(wanted, bool) or wanted not in self.dimensions:
            sizes = ", ".join(map(str, self.dimensions))
            raise UsageError(
                f"dimensions={wanted!r}: expected one of {sizes}, for which this model was trained", param="dimensions"
            )
        return int(wanted)

    def to_json(self) -> str:
        """Compact JSON with sorted keys: equal specs give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read JSON that `to_json` wrote; FileFormatError for anything else."""
        if len(text) > MAX_SPEC_LENGTH:
            raise FileFormatError(f"nestling.spec: longer than {MAX_SPEC_LENGTH} characters")
        try:
            raw = json.loads(text)
            spec = cls(
                family=_typed(raw["family"], str),
                task=member(Task, raw["task"], param="task"),
                dimensions=tuple(_typed(size, int) for size in _typed(raw["dimensions"], list)),
                max_tokens=_typed(raw["max_tokens"], int),
                prefixes={
                    member(Role, role, param="prefixes").value: _typed(prefix, str)
                    for role, prefix in raw["prefixes"].items()
                },
                pooling=member(Pooling, raw["pooling"], param="pooling"),
                source=_typed(raw["source"], str),
            )
        except UsageError as error:
            raise FileFormatError(f"nestling.spec: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"nestling.spec: not a model specification ({error})") from None
        if fault := spec.fault():
            raise FileFormatError(f"nestling.spec: {fault}")
        return spec

    def fault(self) -> str:
        """The first invalid field and what is expected of it; empty for a valid specification."""
        sizes, texts = self.dimensions, [*self.prefixes.values(), self.source]
        rules = {
            f"family={self.family!r:.80}: expected {FAMILY_RULE}": is_family(self.family),
            f"dimensions={list(sizes)!r:.80}: expected ascending sizes from 1 to {MAX_DIMENSION}": (
                bool(sizes) and sizes[0] >= 1 and sizes[-1] <= MAX_DIMENSION and list(sizes) == sorted(set(sizes))
            ),
            f"max_tokens={self.max_tokens!r:.40}: expected 1 to {MAX_CONTEXT}": 1 <= self.max_tokens <= MAX_CONTEXT,
            "prefixes: expected one for query and one for passage": {"query", "passage"} <= self.prefixes.keys(),
            f"prefixes, source: expected Unicode text of at most {MAX_TEXT} characters": all(map(_is_text, texts)),
        }
        return next((fault for fault, holds in rules.items() if not holds), "")


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value


def _is_text(text: str) -> bool:
    return len(text) <= MAX_TEXT and not any("\ud800" <= char <= "\udfff" for char in text)
