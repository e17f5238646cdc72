"""Benchmarks: their contents, and how one is found by name.

A benchmark is a retrieval set (documents, queries, relevance judgements) or a set of text pairs with scores. It is
given as a folder or file in one of the formats of `layouts`, the name of a shipped set, or a data set on the Hugging
Face hub. Documents may be pages, which are images. Does not know models.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from nestling._util.data import data_folder
from nestling._util.spelling import nearest
from nestling.errors import FileFormatError, ModelNotFoundError
from nestling.evaluation import layouts
from nestling.evaluation.pages import Page
from nestling.models.hub import datasets
from nestling.spec import Task

SHIPPED: Mapping[str, tuple[Task, ...]] = {
    "perlfaq-en": (Task.RETRIEVAL,),
    "code-docstring": (Task.CODE,),
    "xling-manpages": (Task.TEXT_MATCHING, Task.RETRIEVAL),
}
"""The sets of texts in nestling-data, and the tasks that each is for."""
IMAGE_SETS: Mapping[str, tuple[Task, ...]] = {
    "pages-en": (Task.RETRIEVAL,),
    "emoji-names": (Task.RETRIEVAL, Task.TEXT_MATCHING),
}
"""The same for its sets of images, which only a model with a vision tower can be measured on."""


class Form(StrEnum):
    """What is embedded of a page: its image, or its OCR text."""

    IMAGES = "images"
    OCR = "OCR text"


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries, documents and their relevance: query id -> document id -> grade (0: judged as irrelevant).

    `tasks` are the tasks that the set is for; empty if unknown. For documents that are pages, `pages` has their images
    and `documents` their OCR text, or empty strings. A set of one `form` has only images or only OCR text; `visual` is
    then the hash of the set that it was made from.
    """

    name: str
    document_ids: tuple[str, ...]
    documents: tuple[str, ...]
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    relevant: dict[str, dict[str, int]]
    tasks: tuple[Task, ...] = ()
    pages: tuple[Page, ...] = ()
    form: Form | None = None
    visual: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the contents, independent of where they were read from."""
        contents = (self.document_ids, self.documents, self.query_ids, self.queries, self.relevant)
        return _hash((*contents, [page.sha256 for page in self.pages]) if self.pages else contents)

    def forms(self) -> "list[RetrievalSet]":
        """The sets to measure: itself, or for pages one of their images and, if there is any, one of their OCR text.

        The latter leaves out pages without text, which nothing could find.
        """
        if not self.pages:
            return [self]
        whole = self.sha256
        images = replace(self, documents=(), form=Form.IMAGES, visual=whole)
        read = [place for place, text in enumerate(self.documents) if text.strip()]
        ids, texts = (tuple(one[place] for place in read) for one in (self.document_ids, self.documents))
        more = replace(images, name=f"{self.name}-ocr", document_ids=ids, documents=texts, pages=(), form=Form.OCR)
        return [images, more] if read else [images]


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs of texts with similarity scores, on any scale."""

    name: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    scores: tuple[float, ...]
    tasks: tuple[Task, ...] = (Task.TEXT_MATCHING,)
    form: ClassVar[Form | None] = None

    def forms(self) -> "list[PairSet]":
        """Itself."""
        return [self]

    @property
    def sha256(self) -> str:
        """Hash of the contents."""
        return _hash(astuple(self)[1:-1])


Benchmark = RetrievalSet | PairSet


def _hash(contents: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(contents, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def load(name: str) -> Benchmark:
    """Find and read a benchmark.

    `name` is a folder in BEIR layout, a .jsonl, .tsv or .parquet file of scored pairs, a shipped set, a NanoBEIR set
    (`NanoSciFact`) or a hub data set in BEIR layout (`org/name`). ModelNotFoundError for an unknown name,
    FileFormatError with file and line for invalid contents.
    """
    path = Path(name)
    packaged = {**SHIPPED, **IMAGE_SETS}
    if name in packaged:
        folder = data_folder("sets", wanted_for=f"benchmark={name!r}") / name
        return read_folder(folder, name=name, tasks=packaged[name])
    if path.is_dir():
        return read_folder(path, name=path.resolve().name)
    if path.is_file():
        return read_pairs(path)
    if repository := datasets.repository(name):
        return read_folder(datasets.fetch(repository), name=name, tasks=(Task.RETRIEVAL,))
    near = nearest(name, [*packaged, *(f"Nano{one}" for one in datasets.NANOBEIR)])
    raise ModelNotFoundError(
        f"benchmark={name!r}: expected a folder, a file, one of {', '.join(packaged)} or a NanoBEIR set{near}"
    )


def for_task(task: Task | None) -> list[str]:
    """The shipped sets of texts for a task; all of them for None."""
    return [name for name, tasks in SHIPPED.items() if task is None or task in tasks]


def read_folder(folder: Path, *, name: str, tasks: tuple[Task, ...] = ()) -> RetrievalSet:
    """Read a folder in BEIR layout; every judged id must exist and every query must have a relevant document."""
    documents = layouts.read_texts(folder, "corpus")
    queries = layouts.read_texts(folder, "queries")
    relevant, elsewhere = layouts.read_judgements(folder, documents=documents.texts, queries=queries.texts)
    kept = [query for query in queries.texts if query in relevant or query not in elsewhere]
    for query in kept:
        if not any(grade > 0 for grade in relevant.get(query, {}).values()):
            raise FileFormatError(
                f"{queries.place(query)}: the query {query!r} has no relevant document in {folder}/qrels"
            )
    return RetrievalSet(
        name=name,
        document_ids=tuple(documents.texts),
        documents=tuple(documents.texts.values()),
        pages=tuple(documents.pages.values()),
        query_ids=tuple(kept),
        queries=tuple(queries.texts[query] for query in kept),
        relevant={query: relevant[query] for query in kept},
        tasks=tasks,
    )


def read_pairs(path: Path) -> PairSet:
    """Read scored pairs: rows with `sentence1`, `sentence2` and `score`."""
    rows = list(layouts.read_pairs(path))
    if len({score for _, _, score in rows}) < 2:  # noqa: PLR2004 - a correlation needs two different scores
        raise FileFormatError(f"{path}: {len(rows)} pairs: expected pairs with at least two different scores")
    left, right, scores = zip(*rows, strict=True)
    return PairSet(path.stem, left, right, scores)
