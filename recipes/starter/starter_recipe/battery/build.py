"""Makes the battery: reads the fetched packages and writes the sets, their texts to leave out, counts and hashes.

Deterministic: the versions of the packages and of the index decide everything. Writes below the output folder:
`sets/NAME/` (BEIR layout, or pairs.jsonl), `exclude.jsonl` (every text of every set, for the training's exclusion)
and `counts.json` (queries, documents, languages and SHA-256 of each set).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING, Any

from starter_recipe.battery.entries import Sample, order, sample
from starter_recipe.battery.sets import SETS, SIMILARITY, Sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

QUERIES, DOCUMENTS = 150, 600
"""The most that a set gets."""


def build(sources: Sources, output: Path) -> dict[str, Any]:
    """Write every set and return their counts."""
    counts: dict[str, Any] = {}
    excluded: list[dict[str, str]] = []
    for one in SETS:
        chosen = sample(one.name, one.read(sources), queries=QUERIES, documents=DOCUMENTS)
        counts[one.name] = {**write_set(output / "sets" / one.name, chosen), "withheld": bool(one.withheld)}
        excluded += texts_of(one.name, chosen)
        print(one.name, json.dumps(counts[one.name], ensure_ascii=False), flush=True)
    for name, language in SIMILARITY.items():
        pairs = read_similarity(language)
        counts[name] = write_pairs(output / "sets" / name, pairs)
        excluded += [
            {"set": name, "kind": "query", "lang": language, "text": text} for pair in pairs for text in pair[:2]
        ]
    write_jsonl(output / "exclude.jsonl", excluded)
    (output / "counts.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return counts


def write_set(folder: Path, chosen: Sample) -> dict[str, Any]:
    """Write a set in BEIR layout and return its counts. Documents are in the order of their hashes."""
    documents = sorted(chosen.asked + chosen.others, key=lambda entry: order("document", entry))
    number = {entry: f"d{place}" for place, entry in enumerate(documents)}
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [
        {"_id": number[entry], "text": entry.document, "metadata": {"within": entry.language} if entry.within else {}}
        for entry in documents
    ]
    write_jsonl(folder / "corpus.jsonl", corpus)
    queries = [
        {"_id": f"q{place}", "text": entry.query, "metadata": {"lang": entry.language}}
        for place, entry in enumerate(chosen.asked)
    ]
    write_jsonl(folder / "queries.jsonl", queries)
    with (folder / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(("query-id", "corpus-id", "score"))
        rows.writerows((f"q{place}", number[entry], 1) for place, entry in enumerate(chosen.asked))
    languages = dict(sorted(Counter(entry.language for entry in chosen.asked).items()))
    return {"queries": len(queries), "documents": len(documents), "languages": languages, "sha256": digest(folder)}


def texts_of(name: str, chosen: Sample) -> Iterator[dict[str, str]]:
    """Every text of a set, with the English original of a translated query."""
    for entry in chosen.asked + chosen.others:
        language = entry.language if entry.within else "en"
        yield {"set": name, "kind": "document", "lang": language, "text": entry.document}
    for entry in chosen.asked:
        yield {"set": name, "kind": "query", "lang": entry.language, "text": entry.query}
        if entry.english:
            yield {"set": name, "kind": "query", "lang": "en", "text": entry.english}


def read_similarity(language: str) -> list[tuple[str, str, float]]:
    """Read the graded sentence pairs of a language: (sentence, sentence, grade from 0 to 5)."""
    text = (resources.files("starter_recipe.battery") / "similarity.tsv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return [(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows if row["lang"] == language]


def write_pairs(folder: Path, pairs: list[tuple[str, str, float]]) -> dict[str, Any]:
    """Write graded pairs and return their counts."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"sentence1": left, "sentence2": right, "score": score} for left, right, score in pairs]
    write_jsonl(folder / "pairs.jsonl", rows)
    return {"queries": len(rows), "documents": 0, "sha256": digest(folder), "withheld": False}


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def digest(folder: Path) -> str:
    """SHA-256 of a set's files, by name."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
