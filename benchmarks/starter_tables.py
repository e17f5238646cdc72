"""Tables of the starter's quality, from result files alone; `benchmarks.tables` puts them into the pages.

Reads the results of `nestling eval quality` in `results/starter`, of `benchmarks.multivector` and of
`benchmarks.starter_card`. Chance is of a random
order of the documents.
"""

import json
from math import log2
from textwrap import fill
from typing import Any

from benchmarks.measuring import RESULTS
from nestling.evaluation import metrics
from nestling.evaluation.metrics import Interval
from nestling.evaluation.results import QualityResult, read

IMAGES = {"retrieval": "starter-text-retrieval-Q8_0", "text-matching": "starter-text-matching-Q8_0"}
PAGES, EMOJI = "pages-en", "emoji-names"
RECALL, NDCG, TOP = "recall@10", "nDCG@10", 10
SETS = (
    ("perlfaq-en", "retrieval", "starter-text-retrieval-F16"),
    ("code-docstring", "code", "starter-text-code-F16"),
    ("xling-manpages", "retrieval", "starter-text-retrieval-F16"),
    ("xling-manpages", "text-matching", "starter-text-matching-F16"),
)
"""Sets of texts, and the model of their task."""


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


def parameters() -> str:
    """What the checkpoint's parts have."""
    found = _read("starter-card")["parameters"]
    text, tower, adapter = (f"{found[part] / 1e6:.2f} million" for part in ("text", "tower", "adapter"))
    return (
        f"| part | parameters |\n|---|---|\n| text | {text} |\n| vision | {tower} |\n| adapter, a task | {adapter} |\n"
    )


def quality() -> str:
    """NDCG@10 of the F16 files on each set, by vector size, and of BM25."""
    bm25 = _read("starter-card")["bm25"]
    lines = ["| set (task) | 256 numbers | 128 | 64 | 32 | BM25 |", "|---|---|---|---|---|---|"]
    for name, task, model in SETS:
        sizes = {one.dimensions: one.means[NDCG] for one in _quality(model, name).scores}
        cells = (_shown(sizes[256]), *(f"{sizes[size].mean:.3f}" for size in (128, 64, 32)), f"{bm25[name]:.3f}")
        lines.append(f"| {name} ({task}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def file_types() -> str:
    """What quantization takes from nDCG@10: paired differences to F16."""
    kinds = ("Q8_0", "Q4_K_M", "Q3_K_M", "IQ2_M")
    lines = [f"| set (task) | {' | '.join(kinds)} |", "|---|---|---|---|---|"]
    for name, task, model in SETS:
        found = [_quality(model.replace("F16", kind), name).against for kind in kinds]
        gaps = [one.differences[NDCG] for one in found if one]
        cells = (f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" for gap in gaps)
        lines.append(f"| {name} ({task}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sunset() -> str:
    """A sentence's cosines to its translations and to the nearest of three others, and how far apart these are."""
    found = _read("starter-card")["sunset"]
    names = list(next(iter(found.values())))
    lines = [f"| task | {' | '.join(names)} |", f"|{'---|' * (1 + len(names))}"]
    lines += [f"| {task} | {' | '.join(f'{one[name]:.3f}' for name in names)} |" for task, one in found.items()]
    return "\n".join(lines) + "\n"


def battery() -> str:
    """Every set of the battery: this checkpoint, both earlier ones and BM25, and what was won and lost."""
    found = _read("starter-battery")
    lines = ["| set (task) | this | first | second | BM25 | this less second |", "|---|---|---|---|---|---|"]
    for one in found["sets"]:
        figures, gap = one["figures"], one["differences"]["second"]
        cells = [f"{figures[name]:.3f}" if name in figures else "" for name in ("this", "first", "second", "BM25")]
        withheld = ", withheld" if one["withheld"] else ""
        lines.append(
            f"| {one['name']} ({one['task']}{withheld}) | {' | '.join(cells)} "
            f"| {gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] |"
        )
    return "\n".join([*lines, "", *map(_verdict, found["summaries"])]) + "\n"


def _verdict(one: dict[str, Any]) -> str:
    worst = one["worst"]
    said = (
        f"- Against the {one['against']}: {one['mean']:+.3f} in the mean of all sets, worst {worst['mean']:+.3f} "
        f"[{worst['low']:+.3f}, {worst['high']:+.3f}] ({worst['set']}). Significant after Holm's correction: lost "
        f"{', '.join(one['lost']) or 'none'}; won {', '.join(one['won']) or 'none'}."
    )
    return fill(said, 120, subsequent_indent="  ", break_on_hyphens=False)


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
