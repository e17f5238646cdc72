"""The starter's figures in a folder of results, by name, so that two folders can be compared.

Reads the result files of `benchmarks.starter_records`; a file that is not there has no figures.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.agreement import PAIRS
from nestling.evaluation import results
from nestling.evaluation.results import QualityResult

Figures = Iterator[tuple[str, float]]
SHOWN = ("F16", "Q8_0", "Q4_K_M", "Q3_K_M", "IQ2_M")
"""File types whose quality is told."""
MARGIN = 5e-6


def changes(before: Path, after: Path) -> list[str]:
    """A line for each figure that is not the same in both folders: name, old and new."""
    old, new = figures(before), figures(after)
    names = dict.fromkeys([*old, *new])
    moved = [name for name in names if abs(old.get(name, float("inf")) - new.get(name, float("-inf"))) > MARGIN]
    return [f"{name}: {_shown(old.get(name))} -> {_shown(new.get(name))}" for name in moved]


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.5g}"


def figures(folder: Path) -> dict[str, float]:
    """All figures of a folder."""
    found = dict(_quality(folder))
    for name, read in READERS.items():
        path = folder / f"{name}.json"
        if path.exists():
            found |= {f"{name}, {what}": value for what, value in read(json.loads(path.read_text("utf-8")))}
    return found


def _quality(folder: Path) -> Figures:
    for path in sorted(folder.glob("starter/quality-*.json")):
        one = results.read(path)
        if not isinstance(one, QualityResult) or one.model.file_type not in (*SHOWN, None):
            continue
        fits = one.model.task in one.benchmark.tasks
        for measure in ("nDCG@10", "recall@10") if fits else ():
            yield f"{one.benchmark.name}, {one.model.label}, {measure}", one.full.means[measure].mean


def _accuracy(result: dict[str, Any]) -> Figures:
    for kind, lowest in result["lowest"].items():
        yield from ((f"{kind}, {what}", value) for what, value in lowest.items())


def _agreement(result: dict[str, Any]) -> Figures:
    for part, lowest in result["lowest"].items():
        yield from ((f"{part}, {pair}", lowest[pair]) for pair in PAIRS)


def _mixes(result: dict[str, Any]) -> Figures:
    for row in result["mixes"]:
        yield f"{row['task']}, {row['stock']}, {row['mix']}, error over stock", row["ratio"]
    for pair, found in result["summary"]["nDCG@10"].items():
        yield f"{pair}, mean difference of nDCG@10", found["mean"]


def _losses(result: dict[str, Any]) -> Figures:
    for row in result["losses"]:
        yield f"{row['how']}, {row['file_type']}, {row['task']}", row["mean"]


def _int8(result: dict[str, Any]) -> Figures:
    for row in result["nDCG@10"]:
        yield f"{row['file_type']}, {row['set']}, int8 less float32", row["difference"][0]


def _maxsim(result: dict[str, Any]) -> Figures:
    for row in result["rows"]:
        yield f"{row['set']}, {row['task']}, MaxSim nDCG@10", row["float32"]["nDCG@10"]["mean"]


def _card(result: dict[str, Any]) -> Figures:
    for task, found in result["sunset"].items():
        yield f"sunset, {task}, gap", found["gap"]


READERS: dict[str, Callable[[dict[str, Any]], Figures]] = {
    "starter-accuracy": _accuracy,
    "agreement": _agreement,
    "quantization": _mixes,
    "adapters": _losses,
    "int8-cost": _int8,
    "multivector": _maxsim,
    "starter-card": _card,
}
