"""What the readers of the battery yield: a query, the document that answers it and their language.

Knows nothing of files, packages or models.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from starter_recipe.text import normalise

if TYPE_CHECKING:
    from collections.abc import Iterable

XLING = ("de", "fr", "es", "ja", "zh")
_BEGINNING = 80


@dataclass(frozen=True, slots=True)
class Entry:
    """A query and its document; without a query, a document that is only searched.

    `language` is the query's, `english` its English original if the document is not it. `within` says that the document
    is in the query's language and is compared with documents of that language alone, since others may translate it.
    """

    query: str
    document: str
    language: str = "en"
    english: str = ""
    within: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """A set: the entries whose queries are asked, and those whose documents are only searched."""

    asked: list[Entry]
    others: list[Entry]


def order(name: str, entry: Entry) -> str:
    """The place of an entry in a set's order: a hash, so that it depends on the set's name and the texts alone."""
    return hashlib.sha256("\n".join((name, entry.language, entry.query, entry.document)).encode()).hexdigest()


def sample(name: str, entries: Iterable[Entry], *, queries: int, documents: int) -> Sample:
    """Choose a set's entries by hash; deterministic. Rare languages choose first, so that all get their share.

    `queries` and `documents` are the most that the set gets, in all languages together. Queries and documents that
    equal an earlier one (normalised; documents by their beginning too) are left out.
    """
    groups: dict[str, list[Entry]] = defaultdict(list)
    ordered = sorted(entries, key=lambda entry: order(name, entry))
    for entry in ordered:
        groups[entry.language if entry.query else ""].append(entry)
    groups.pop("", None)
    seen: set[tuple[str, str]] = set()
    asked: list[Entry] = []
    by_size = sorted(groups.values(), key=lambda group: (len(group), group[0].language))
    for place, group in enumerate(by_size):
        share = (queries - len(asked)) // (len(by_size) - place)
        asked += islice((entry for entry in group if _fresh(entry, seen)), share)
    others = _balanced([entry for entry in ordered if _fresh(entry, seen)], documents - len(asked))
    return Sample(asked, others)


def _balanced(entries: list[Entry], count: int) -> list[Entry]:
    """The first entries of each language in turn."""
    place: Counter[str] = Counter()
    ranked = []
    for entry in entries:
        place[entry.language] += 1
        ranked.append((place[entry.language], entry.language, entry))
    return [entry for *_, entry in sorted(ranked, key=lambda row: row[:2])[:count]]


def _fresh(entry: Entry, seen: set[tuple[str, str]]) -> bool:
    """Tell whether an entry's texts are new, and remember them. Documents of other languages are other documents."""
    query, document = normalise(entry.query), normalise(entry.document)
    scope = entry.language if entry.within else ""
    keys = {(scope + " document", document[:_BEGINNING])} | ({(entry.language + " query", query)} if query else set())
    if not document or query == document or keys & seen:
        return False
    seen |= keys
    return True
