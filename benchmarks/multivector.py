"""MaxSim reranking compared with the single vector on the shipped sets, with the starter.

    python -m benchmarks.multivector

For each set and task: exact search with the single vector, then its best 100 documents ordered by MaxSim over token
vectors, these as float32, as int8 and as signs (documents only; a query stays float32). It shows that
reranking works end to end; it is no measure of the full model, since the starter's multi-vector head is weakly trained.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measuring
from nestling.evaluation import data, metrics
from nestling.evaluation.data import RetrievalSet
from nestling.models.embedder import Embedder
from nestling.spec import Role
from nestling.vectors import Floats, cosine, from_int8, from_ubinary, maxsim, to_int8, to_ubinary

QUANT = "Q8_0"
SHOWN = ("nDCG@10", "MRR@10", "recall@10")
GROUP = 256
STORED: Mapping[str, tuple[Callable[[Floats], Any], Callable[[Any], Floats]]] = {
    "float32": (lambda rows: rows, lambda rows: rows),
    "int8": (to_int8, from_int8),
    "binary": (to_ubinary, from_ubinary),
}
Values = dict[str, list[float]]


def main() -> None:
    """Measure and write `benchmarks/results/multivector.json`."""
    rows = [_measured(name, str(task)) for name, tasks in data.SHIPPED.items() for task in tasks]
    path = measuring.write("multivector", {"model": f"starter:{QUANT}", "candidates": metrics.DEPTH, "rows": rows})
    print(path.read_text())


def _measured(name: str, task: str) -> dict[str, Any]:
    benchmark = data.load(name)
    assert isinstance(benchmark, RetrievalSet)
    model = Embedder.load(f"starter-{task}:{QUANT}")
    single = cosine(model.encode_query(benchmark.queries), model.encode_document(benchmark.documents))
    queries, documents = (
        _tokens(model, benchmark.queries, Role.QUERY),
        _tokens(model, benchmark.documents, Role.PASSAGE),
    )
    model.close()
    base = _values(benchmark, single)
    row: dict[str, Any] = {
        "set": name,
        "task": task,
        "queries": len(queries),
        "documents": len(documents),
        "tokens": sum(map(len, documents)),
        "width": documents[0].shape[1],
        "single": {one: asdict(metrics.interval(base[one])) for one in SHOWN},
    }
    for form, (pack, unpack) in STORED.items():
        packed = [pack(one) for one in documents]
        found = _values(benchmark, _reranked(single, queries, [unpack(one) for one in packed]))
        row[form] = {
            "bytes": sum(one.nbytes for one in packed),
            **{one: asdict(metrics.interval(found[one])) for one in SHOWN},
            "difference": {one: _difference(found[one], base[one]) for one in SHOWN},
        }
    return row


def _tokens(model: Embedder, texts: tuple[str, ...], role: Role) -> list[Floats]:
    groups = [texts[start : start + GROUP] for start in range(0, len(texts), GROUP)]
    return [rows for group in groups for rows in model.encode_tokens(group, prompt_name=role)]


def _reranked(single: NDArray[np.float64], queries: list[Floats], documents: list[Floats]) -> NDArray[np.float64]:
    """MaxSim for each query's best candidates by the single vector, minus infinity for the rest: -> (Q, N)."""
    scores = np.full(single.shape, -np.inf)
    for place, query in enumerate(queries):
        best = np.argsort(-single[place], kind="stable")[: metrics.DEPTH]
        scores[place, best] = maxsim(query, [documents[one] for one in best])
    return scores


def _values(benchmark: RetrievalSet, scores: NDArray[np.float64]) -> Values:
    ranked = metrics.rank(scores, benchmark.document_ids)
    return metrics.per_query(benchmark.relevant, dict(zip(benchmark.query_ids, ranked, strict=True)))


def _difference(found: list[float], base: list[float]) -> dict[str, float]:
    return asdict(metrics.interval([a - b for a, b in zip(found, base, strict=True)]))


if __name__ == "__main__":
    main()
