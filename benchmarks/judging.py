"""Quantized files judged by a task's benchmark sets: cosine to F16, and nDCG@10 paired by query.

Of many paired differences some are significant by chance; `rankings` says which remain significant after correction for
multiple comparisons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.evaluation import data, metrics
from nestling.models.embedder import Embedder
from nestling.spec import Role, Task
from nestling.vectors import Floats, paired_cosine

COMPARISONS = ("mix to stock", "mix to F16", "stock to F16")
FLIPS = 50_000
"""Draws of signs for a p-value: it is at least the 50,001st part."""
SEED = 4
LEVEL = 1 - metrics.LEVEL


def embed(path: Path, texts: Sequence[tuple[str, Role]], engine: str = "openvino") -> Floats:
    """The file's vectors of texts in their roles."""
    model = Embedder.load(path, engine=engine)
    vectors = model.embed_ids(model.tokenizer.encode([model.spec.prefix(role) + text for text, role in texts]))
    model.close()
    return vectors


@dataclass(frozen=True, slots=True)
class Judged:
    """A file's mean 1 - cosine to F16 and lowest cosine on the task's sets, and nDCG@10 of every query: set -> (Q,)."""

    error: float
    lowest: float
    gains: dict[str, list[float]]


class Judge:
    """Embeds every text of a task's sets and compares with F16."""

    def __init__(self, base: Path, task: Task) -> None:
        self._sets = [one for name in data.for_task(task) if isinstance(one := data.load(name), data.RetrievalSet)]
        self._texts = [
            [(text, Role.QUERY) for text in one.queries] + [(text, Role.PASSAGE) for text in one.documents]
            for one in self._sets
        ]
        self._base = self._vectors(base)
        self._base_gains = self._gains(self._base)

    def judged(self, path: Path) -> Judged:
        """Judge a file."""
        vectors = self._vectors(path)
        cosines = np.concatenate([paired_cosine(a, b) for a, b in zip(vectors, self._base, strict=True)])
        return Judged(float(1 - cosines.mean()), float(cosines.min()), self._gains(vectors))

    def compared(self, stock: Sequence[Judged], mixes: Sequence[Judged]) -> dict[str, dict[str, Any]]:
        """Set -> means of F16, stock and mix, and their paired differences; several files count by their mean."""
        found: dict[str, dict[str, Any]] = {}
        for name, base in self._base_gains.items():
            gains = {"F16": base, "stock": _together(stock, name), "mix": _together(mixes, name)}
            pairs = [one.split(" to ") for one in COMPARISONS]
            means = {kind: float(np.mean(values)) for kind, values in gains.items()}
            found[name] = means | {f"{a} to {b}": difference(gains[a], gains[b]) for a, b in pairs}
        return found

    def _vectors(self, path: Path) -> list[Floats]:
        found = embed(path, [text for texts in self._texts for text in texts])
        return np.split(found, np.cumsum([len(texts) for texts in self._texts])[:-1])

    def _gains(self, vectors: Sequence[Floats]) -> dict[str, list[float]]:
        return {one.name: _gains(one, found) for one, found in zip(self._sets, vectors, strict=True)}


def _gains(one: data.RetrievalSet, vectors: NDArray[np.float32]) -> list[float]:
    queries, documents = vectors[: len(one.queries)], vectors[len(one.queries) :]
    ranked = metrics.search(queries, documents, one.document_ids)
    return metrics.per_query(one.relevant, dict(zip(one.query_ids, ranked, strict=True)))["nDCG@10"]


def _together(files: Sequence[Judged], name: str) -> list[float]:
    return [float(one) for one in np.mean([file.gains[name] for file in files], 0)]


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ours minus theirs, (Q,) each: the mean, its bootstrap interval, and the p-value of a permutation test."""
    values = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = metrics.interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "p": permutation_p(values)}


def permutation_p(values: Sequence[float]) -> float:
    """How often the mean is as far from 0 when every value's sign is chance (Fisher 1935), two-sided: (Q,) -> p."""
    numbers = np.array([value for value in values if value], np.float64)
    signs = 2 * np.random.default_rng(SEED).integers(0, 2, (FLIPS, len(numbers)), np.int8) - 1
    as_far = np.abs(signs @ numbers) >= abs(numbers.sum()) - 1e-9  # the same numbers, added in another order
    return float((1 + as_far.sum()) / (1 + FLIPS))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): (N,) -> (N,).

    What is then below `LEVEL` is chance, in any of the N, with at most that probability.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return [float(one) for one in corrected]


def rankings(mixes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of every kind of comparison: how many, their mean, those whose interval leaves out 0, and the rest after Holm."""
    return {kind: _ranking(kind, mixes) for kind in COMPARISONS}


def _ranking(kind: str, mixes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {
        (row["task"], row["stock"], "" if kind == "stock to F16" else row["mix"], name): one[kind]
        for row in mixes
        for name, one in row["nDCG@10"].items()
    }
    corrected = dict(zip(found, holm([one["p"] for one in found.values()]), strict=True))
    shown = [
        {"of": list(filter(None, key)), **one, "corrected_p": corrected[key]}
        for key, one in found.items()
        if one["low"] > 0 or one["high"] < 0
    ]
    return {
        "comparisons": len(found),
        "mean": float(np.mean([one["mean"] for one in found.values()])),
        "higher": [one for one in shown if one["mean"] > 0],
        "lower": [one for one in shown if one["mean"] < 0],
        "lowest_corrected_p": min(corrected.values()),
        "left_after_correction": [list(filter(None, key)) for key, p in corrected.items() if p < LEVEL],
    }
