"""Values of a checkpoint, or BM25, on one set: nDCG@10 of each query at 256 dimensions, or the cosine of each pair.

What was computed is kept below the battery's `scores/`, by the checkpoint's and the set's hashes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starter_recipe.battery.build import digest
from starter_recipe.evaluate import QUERY, Benchmark, Encoder, ndcg, unit
from starter_recipe.exclude import read_jsonl

if TYPE_CHECKING:
    from pathlib import Path

Array = NDArray[np.float32]
BM25 = "BM25"
PASSAGE = {"retrieval": "Passage: ", "text-matching": QUERY, "code": "Passage: "}
"""The documents' prompt by task; queries have `Query: `."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Judged:
    """A set as it is judged: where its files lie, and the task whose adapter and prompts it takes."""

    name: str
    folder: Path
    task: str

    @property
    def grades(self) -> list[float]:
        """The grades of a set of pairs; empty for a retrieval set."""
        path = self.folder / "pairs.jsonl"
        return [row["score"] for row in read_jsonl(path)] if path.exists() else []


class Scorer:
    """A checkpoint's values by set, from the file of an earlier run where the set is the same."""

    def __init__(self, checkpoint: Path, kept: Path) -> None:
        self.checkpoint, self._encoders = checkpoint, dict[str, Encoder]()
        self._path = kept / f"{weights_hash(checkpoint)[:16]}.json"
        self._kept = json.loads(self._path.read_text("utf-8")) if self._path.exists() else {}

    def values(self, one: Judged) -> NDArray[np.float64]:
        """nDCG@10 of each query, or the cosine of each pair."""
        key = f"{one.name} {one.task} {digest(one.folder)[:16]}"
        if key not in self._kept:
            self._kept[key] = self._compute(one).tolist()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._kept) + "\n", encoding="utf-8")
        return np.array(self._kept[key])

    def _compute(self, one: Judged) -> NDArray[np.float64]:
        if one.task not in self._encoders:
            self._encoders[one.task] = Encoder(self.checkpoint, one.task)
        encoder = self._encoders[one.task]
        if one.grades:
            rows = read_jsonl(one.folder / "pairs.jsonl")
            left, right = (unit(encoder.vectors([QUERY + row[f"sentence{side}"] for row in rows])) for side in (1, 2))
            return (left * right).sum(1).astype(np.float64)
        benchmark = Benchmark.load(one.folder)
        queries = unit(encoder.vectors([QUERY + text for text in benchmark.queries]))
        documents = unit(encoder.vectors([PASSAGE[one.task] + text for text in benchmark.documents]))
        return ndcg(within(queries @ documents.T, one.folder, benchmark.languages), benchmark.relevant)


def within(scores: Array, folder: Path, languages: list[str]) -> Array:
    """Leave out documents of other languages, which may be translations of the answer: (Q, D) -> (Q, D)."""
    wanted = [row.get("metadata", {}).get("within", "") for row in read_jsonl(folder / "corpus.jsonl")]
    other = [[bool(one) and one != language for one in wanted] for language in languages]
    found: Array = np.where(np.array(other), -np.inf, scores)
    return found


def lexical(one: Judged) -> NDArray[np.float64] | None:
    """BM25's nDCG@10 of each query (Lucene's, k1 = 1.5, b = 0.75, lower-case words); None for sets of pairs."""
    if one.grades:
        return None
    import bm25s

    benchmark = Benchmark.load(one.folder)
    index = bm25s.BM25(method="lucene")
    index.index([words(text) for text in benchmark.documents], show_progress=False)
    scores = np.zeros((len(benchmark.queries), len(benchmark.documents)), np.float32)
    for row, query in zip(scores, benchmark.queries, strict=True):
        if known := [word for word in words(query) if word in index.vocab_dict]:
            row[:] = index.get_scores(known)
    return ndcg(within(scores, one.folder, benchmark.languages), benchmark.relevant)


def words(text: str) -> list[str]:
    """Lower-case words; scripts without spaces between words are not split further."""
    return _WORD.findall(text.lower())


def weights_hash(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights and tokenizer."""
    total = hashlib.sha256()
    for path in sorted([*checkpoint.rglob("*.safetensors"), checkpoint / "tokenizer.json"]):
        total.update(path.relative_to(checkpoint).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
