"""Retrieval quality of each vector size and storage type, on the shipped sets.

    python -m benchmarks.vector_types [QUANT=Q8_0]

Each set with the starter's model of its task. `ndcg_at_10` and `recall_at_10` use the relevance judgements;
`overlap_at_10` is the share of the ten best of full float vectors that are still among the ten best. Binary vectors
are scored twice: by the float query with their signs, as `nestling search` does, and by Hamming distance, as databases
do.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measuring
from nestling import Embedder, vectors
from nestling.evaluation import data
from nestling.evaluation.data import RetrievalSet
from nestling.vectors import Floats

TOP = 10
SETS = {"perlfaq-en": "retrieval", "code-docstring": "code", "xling-manpages": "text-matching"}
Places = NDArray[np.int64]
Score = Callable[[Floats, Floats], Floats]


def _float16(queries: Floats, documents: Floats) -> Floats:
    return queries @ documents.astype(np.float16).astype(np.float32).T


def _int8(queries: Floats, documents: Floats) -> Floats:
    return queries @ vectors.from_int8(vectors.to_int8(documents)).T


def _binary(queries: Floats, documents: Floats) -> Floats:
    return queries @ vectors.from_ubinary(vectors.to_ubinary(documents)).T


def _bits(queries: Floats, documents: Floats) -> Floats:
    unpacked = [vectors.from_ubinary(vectors.to_ubinary(rows)) for rows in (queries, documents)]
    return unpacked[0] @ unpacked[1].T


SCORES: dict[str, Score] = {
    "float": lambda queries, documents: queries @ documents.T,
    "float16": _float16,
    "int8": _int8,
    "binary": _binary,
    "binary, both sides": _bits,
}


def main(quant: str = "Q8_0") -> None:
    """Measure every set, size and type, and write `benchmarks/results/vector-types.json`."""
    found = {name: measure(name, f"starter-{task}:{quant}") for name, task in SETS.items()}
    print(measuring.write("vector-types", {"quant": quant, "top": TOP, "sets": found}))


def measure(name: str, reference: str) -> dict[str, Any]:
    """Figures of one set: size -> type -> measure -> value."""
    one = data.load(name)
    assert isinstance(one, RetrievalSet)
    embedder = Embedder.load(reference)
    queries, documents = embedder.encode_query(list(one.queries)), embedder.encode_document(list(one.documents))
    whole = best(queries @ documents.T)
    found: dict[str, Any] = {}
    for size in embedder.spec.dimensions:
        cut = [vectors.finish(rows, size) for rows in (queries, documents)]
        found[str(size)] = {kind: figures(one, best(score(*cut)), whole) for kind, score in SCORES.items()}
    return found


def best(scores: Floats) -> Places:
    """The ten best documents of each query, best first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def figures(one: RetrievalSet, found: Places, whole: Places) -> dict[str, float]:
    """Means over the queries."""
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    rows = []
    for query, places, reference in zip(one.query_ids, found, whole, strict=True):
        grades = one.relevant[query]
        gains = np.array([grades.get(one.document_ids[place], 0) for place in places], float)
        ideal = np.sort(np.array(list(grades.values()), float))[::-1][:TOP]
        relevant = sum(grade > 0 for grade in grades.values())
        rows.append(
            (
                float(gains @ discounts / (ideal @ discounts[: len(ideal)])),
                float((gains > 0).sum() / min(relevant, TOP)),
                len(set(places.tolist()) & set(reference.tolist())) / TOP,
            )
        )
    means = np.mean(rows, axis=0)
    return dict(zip(("ndcg_at_10", "recall_at_10", "overlap_at_10"), (round(float(x), 4) for x in means), strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
