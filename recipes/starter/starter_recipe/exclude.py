"""Keeps every text of the benchmark sets, and of a file of further evaluation texts, out of the training text.

A text is out when its normalised form equals that of a benchmark text, or when its first 80 normalised characters
equal a benchmark document's. Manual pages, functions and modules that occur in a set are out by name or content.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starter_recipe.records import Item, Pair, Text
from starter_recipe.text import normalise

if TYPE_CHECKING:
    from pathlib import Path

SETS = ("perlfaq-en", "code-docstring", "xling-manpages")
_PREFIX = 80
_PREFIX_MINIMUM = 60


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@dataclass(slots=True)
class Bans:
    """Everything that must stay out, and a count of what was dropped, by source."""

    texts: set[str] = field(default_factory=set)
    prefixes: set[str] = field(default_factory=set)
    pages: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def load(cls, benchmarks: Path, exclude: Path | None = None) -> Bans:
        """Read the benchmark sets (BEIR layout) below a folder, and a file of further texts to leave out."""
        bans = cls()
        for name in SETS:
            bans._add_set(benchmarks / name)
        for row in read_jsonl(exclude) if exclude else ():
            if row["kind"] == "document":
                bans.add_document(row["text"])
            else:
                bans.texts.add(normalise(row["text"]))
        bans.texts.discard("")
        return bans

    def _add_set(self, folder: Path) -> None:
        """Ban the documents and queries of one set."""
        corpus = {row["_id"]: row for row in read_jsonl(folder / "corpus.jsonl")}
        for row in corpus.values():
            self.add_document(row["text"])
            if "page" in row.get("metadata", {}):
                self.pages.add(row["metadata"]["page"])
        for row in read_jsonl(folder / "queries.jsonl"):
            english = row.get("metadata", {}).get("english", "")
            self.texts |= {normalise(text) for text in (row["text"], english, english.split(" - ", 1)[-1])}
        with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
            relevant = [row["corpus-id"] for row in csv.DictReader(lines, delimiter="\t")]
        found = (corpus[document].get("metadata", {}) for document in relevant)
        self.modules |= {meta["path"] for meta in found if "package" in meta}

    def add_document(self, text: str) -> None:
        """Ban a document: the whole text and its beginning."""
        key = normalise(text)
        self.texts.add(key)
        if len(key) >= _PREFIX_MINIMUM:
            self.prefixes.add(key[:_PREFIX])

    def hits(self, text: str) -> bool:
        """Tell whether a text is a benchmark text or begins like a benchmark document."""
        key = normalise(text)
        return key in self.texts or key[:_PREFIX] in self.prefixes

    def drops(self, item: Item) -> bool:
        """Tell whether a record must be left out, and count it."""
        match item:
            case Text():
                hit = self.hits(item.text) or self.hits(item.anchor)
            case Pair():
                hit = self.hits(item.query) or self.hits(item.passage) or self.hits(item.english)
        self.dropped[item.source] += hit
        return hit
