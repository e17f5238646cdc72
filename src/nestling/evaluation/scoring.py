"""From the vectors (or words) of a benchmark to the scores of a result file. Does not know models or files."""

import time
from dataclasses import dataclass

import numpy as np

from nestling.evaluation import bm25, metrics, origins
from nestling.evaluation.data import Benchmark, PairSet, RetrievalSet
from nestling.evaluation.metrics import SPEARMAN, Interval
from nestling.evaluation.results import BenchmarkFacts, ModelFacts, QualityResult, Scores
from nestling.spec import Task
from nestling.vectors import Floats, finish, paired_cosine


@dataclass(frozen=True, slots=True)
class Sides:
    """The vectors of a benchmark: (Q, D) queries and (N, D) documents, or the left and right texts of pairs."""

    queries: Floats
    documents: Floats

    def at(self, dimensions: int) -> "Sides":
        """The vectors truncated to a size and normalised again."""
        return Sides(finish(self.queries, dimensions), finish(self.documents, dimensions))


def score(benchmark: Benchmark, sides: Sides, dimensions: int) -> Scores:
    """Compute the metrics of a benchmark at one vector size."""
    if isinstance(benchmark, PairSet):
        gold, cosines = np.array(benchmark.scores), paired_cosine(sides.queries, sides.documents)
        samples = {"score": gold.tolist(), "cosine": cosines.tolist()}
        return Scores(dimensions, {SPEARMAN: metrics.spearman_interval(gold, cosines)}, samples)
    return Scores(dimensions, *_retrieval(benchmark, sides))


def _retrieval(benchmark: RetrievalSet, sides: Sides) -> tuple[dict[str, Interval], dict[str, list[float]]]:
    return _measured(benchmark, metrics.search(sides.queries, sides.documents, benchmark.document_ids))


def lexical(benchmark: RetrievalSet, task: Task | None) -> QualityResult:
    """BM25's result, for comparison with the models of a task; it has no vectors, so its scores have 0 dimensions."""
    began = time.perf_counter()
    ranked = metrics.rank(bm25.scores(benchmark.queries, benchmark.documents), benchmark.document_ids)
    return QualityResult(
        origin=origins.origin(),
        model=ModelFacts(bm25.NAME, task=task),
        engine="bm25s",
        benchmark=facts_of(benchmark),
        query_ids=list(benchmark.query_ids),
        scores=[Scores(0, *_measured(benchmark, ranked))],
        against=None,
        encode_s=round(time.perf_counter() - began, 3),
    )


def _measured(benchmark: RetrievalSet, ranked: list[list[str]]) -> tuple[dict[str, Interval], dict[str, list[float]]]:
    samples = metrics.per_query(benchmark.relevant, dict(zip(benchmark.query_ids, ranked, strict=True)))
    return {name: metrics.interval(values) for name, values in samples.items()}, samples


def difference(ours: Scores, theirs: Scores, measure: str) -> Interval:
    """Mean difference of two models on the same benchmark, with its paired interval."""
    left, right = ours.samples, theirs.samples
    if measure == SPEARMAN:
        return metrics.spearman_difference(
            *(np.array(side) for side in (left["score"], left["cosine"], right["cosine"]))
        )
    return metrics.interval([a - b for a, b in zip(left[measure], right[measure], strict=True)])


def facts_of(benchmark: Benchmark) -> BenchmarkFacts:
    """The benchmark's entry in a result file."""
    tasks = [str(task) for task in benchmark.tasks]
    if isinstance(benchmark, PairSet):
        return BenchmarkFacts(benchmark.name, "pairs", tasks, benchmark.sha256, 0, len(benchmark.left))
    sizes, form = (len(benchmark.document_ids), len(benchmark.queries)), str(benchmark.form or "")
    return BenchmarkFacts(benchmark.name, "retrieval", tasks, benchmark.sha256, *sizes, form, benchmark.visual)
