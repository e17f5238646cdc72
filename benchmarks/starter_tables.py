"""Tables of the starter's quality, from result files alone; `benchmarks.tables` puts them into the pages.

Reads the results of `nestling eval quality` in `results/starter` and of `benchmarks.multivector`. Chance is of a random
order of the documents.
"""

import json
from math import log2
from typing import Any

from benchmarks.measuring import RESULTS
from nestling.evaluation import metrics
from nestling.evaluation.metrics import Interval
from nestling.evaluation.results import QualityResult, read

IMAGES = {"retrieval": "starter-text-retrieval-Q8_0", "text-matching": "starter-text-matching-Q8_0"}
PAGES, EMOJI = "pages-en", "emoji-names"
RECALL, TOP = "recall@10", 10


def images() -> str:
    """Pages found by their image, by OCR text and by BM25, and emoji by their names."""
    return _pages() + "\n" + _emoji()


def _pages() -> str:
    model = IMAGES["retrieval"]
    rows = {
        "the page's image": (model, PAGES),
        "OCR text, the same model": (model, f"{PAGES}-ocr"),
        "OCR text, BM25": ("BM25-retrieval", f"{PAGES}-ocr"),
    }
    found = {name: _quality(*of) for name, of in rows.items()}
    names = ("nDCG@5", "nDCG@10", RECALL)
    lines = [f"| {PAGES}, found by | {' | '.join(names)} |", "|---|---|---|---|"]
    for name, one in found.items():
        lines.append(f"| {name} | {' | '.join(_shown(one.full.means[measure]) for measure in names)} |")
    documents = found["the page's image"].benchmark.documents
    chance = (_chance(documents, 5), _chance(documents, TOP), TOP / documents)
    return "\n".join([*lines, f"| chance | {' | '.join(f'{value:.3f}' for value in chance)} |"]) + "\n"


def _emoji() -> str:
    lines = ["| emoji-names, recall@10 | English | mean of the other languages | lowest |", "|---|---|---|---|"]
    for task, model in IMAGES.items():
        found = _by_language(_quality(model, EMOJI))
        means = {language: sum(values) / len(values) for language, values in found.items()}
        english, lowest = metrics.interval(found.pop("en")), min(means, key=lambda one: means[one])
        others = metrics.interval([value for values in found.values() for value in values])
        lines.append(f"| {task} | {_shown(english)} | {_shown(others)} | {lowest} {means[lowest]:.3f} |")
    chance = TOP / _quality(IMAGES["retrieval"], EMOJI).benchmark.documents
    return "\n".join([*lines, f"| chance | {chance:.3f} | {chance:.3f} | |"]) + "\n"


def _by_language(result: QualityResult) -> dict[str, list[float]]:
    """Recall of every query: language, with which a query's id begins -> values."""
    found: dict[str, list[float]] = {}
    for query, value in zip(result.query_ids, result.full.samples[RECALL], strict=True):
        found.setdefault(query.rstrip("0123456789"), []).append(value)
    return found


def _chance(documents: int, depth: int) -> float:
    """The expected nDCG of one relevant document in a random order."""
    return sum(1 / log2(rank + 1) for rank in range(1, depth + 1)) / documents


def maxsim() -> str:
    """The single vector and MaxSim on each set, and their paired difference."""
    lines = ["| set | task | single vector | MaxSim | difference |", "|---|---|---|---|---|"]
    for row in _read("multivector")["rows"]:
        gap = row["float32"]["difference"]["nDCG@10"]
        lines.append(
            f"| {row['set']} | {row['task']} | {row['single']['nDCG@10']['mean']:.3f} "
            f"| {row['float32']['nDCG@10']['mean']:.3f} "
            f"| {gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] |"
        )
    return "\n".join(lines) + "\n"


def _shown(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _quality(model: str, benchmark: str) -> QualityResult:
    found = read(RESULTS / "starter" / f"quality-{model}-{benchmark}.json")
    assert isinstance(found, QualityResult), (model, benchmark)
    return found


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found
