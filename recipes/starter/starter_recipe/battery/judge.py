"""Judges a candidate against earlier checkpoints: a row a set, the mean and the worst loss.

Nothing may be chosen by a withheld set: they are left out, and refused by name, unless `--withheld` is given, which is
for one look at the end. A loss counts when its interval excludes zero after Holm's correction for the number of sets.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from starter_recipe.battery.scoring import BM25, Judged, Scorer, lexical
from starter_recipe.battery.sets import SHIPPED, tasks, withheld
from starter_recipe.battery.statistics import Difference, holm, paired, paired_correlation, spearman

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from starter_recipe.battery.statistics import Doubles

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One set: each contender's figure, and the candidate's difference from each earlier checkpoint."""

    name: str
    task: str
    withheld: bool
    figures: dict[str, float]
    differences: dict[str, Difference]


def places(battery: Path, benchmarks: Path, names: Sequence[str]) -> list[Judged]:
    """Where the sets lie: the shipped ones among the benchmarks, the others in the battery."""
    task = tasks()
    return [Judged(name, (benchmarks if name in SHIPPED else battery / "sets") / name, task[name]) for name in names]


def judge(candidate: Path, against: Sequence[Path], sets: Sequence[Judged], kept: Path) -> list[Row]:
    """Score every checkpoint on every set and compare."""
    scorers = {folder: Scorer(folder, kept) for folder in (candidate, *against)}
    label = labels([*scorers])
    hidden = withheld()
    rows = []
    for one in sets:
        values = {folder: scorer.values(one) for folder, scorer in scorers.items()}
        figures = {label[folder]: figure(one, found) for folder, found in values.items()}
        words = lexical(one)
        if words is not None:
            figures[BM25] = float(words.mean())
        differences = {label[folder]: compare(one, values[candidate], values[folder]) for folder in against}
        rows.append(Row(one.name, one.task, one.name in hidden, figures, differences))
        print(one.name, {name: round(value, 3) for name, value in figures.items()}, flush=True)
    return rows


def labels(folders: Sequence[Path]) -> dict[Path, str]:
    """Names of checkpoints in the table: the fewest last parts of their paths that tell them apart."""
    parts = {folder: folder.resolve().parts for folder in folders}
    for count in range(1, max(map(len, parts.values()))):
        found = {folder: "/".join(one[-count:]) for folder, one in parts.items()}
        if len(set(found.values())) == len(found):
            break
    return found


def figure(one: Judged, values: Doubles) -> float:
    """The set's figure: mean nDCG@10, or Spearman's correlation with the grades."""
    return spearman(np.array(one.grades), values) if one.grades else float(values.mean())


def compare(one: Judged, ours: Doubles, theirs: Doubles) -> Difference:
    """Ours minus theirs on one set."""
    return paired_correlation(np.array(one.grades), ours, theirs) if one.grades else paired(ours, theirs)


def summary(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """The candidate against one checkpoint: mean difference, worst set, and the sets lost or won after correction."""
    found = {row.name: row.differences[name] for row in rows}
    adjusted = holm({one: difference.p for one, difference in found.items()})
    worst = min(found, key=lambda one: found[one].mean)
    certain = [one for one in found if adjusted[one] < SIGNIFICANT]
    return {
        "against": name,
        "mean": float(np.mean([difference.mean for difference in found.values()])),
        "worst": {"set": worst, **asdict(found[worst]), "p_holm": adjusted[worst]},
        "lost": [one for one in certain if found[one].mean < 0],
        "won": [one for one in certain if found[one].mean > 0],
        "p_holm": adjusted,
    }


def table(rows: Sequence[Row], summaries: Sequence[dict[str, Any]]) -> str:
    """The report in Markdown."""
    contenders = list(dict.fromkeys(name for row in rows for name in row.figures))
    heads = ["set", "task", *contenders, *(f"minus {one['against']} (interval; p after Holm)" for one in summaries)]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        figures = [f"{row.figures[name]:.3f}" if name in row.figures else "" for name in contenders]
        cells = [cell(row.differences[one["against"]], one["p_holm"][row.name]) for one in summaries]
        lines.append([row.name + (" (withheld)" if row.withheld else ""), row.task, *figures, *cells])
    means = [np.mean([row.figures[name] for row in rows if name in row.figures]) for name in contenders]
    lines.append(["mean", "", *(f"{mean:.3f}" for mean in means), *(f"{one['mean']:+.3f}" for one in summaries)])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([text, "", *map(verdict, summaries)])


def cell(difference: Difference, adjusted: float) -> str:
    """A difference as text."""
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}; {adjusted:.3f})"


def verdict(one: dict[str, Any]) -> str:
    """A line on the candidate against one checkpoint."""
    worst, lost, won = one["worst"], ", ".join(one["lost"]) or "none", ", ".join(one["won"]) or "none"
    return (
        f"Against {one['against']}: mean {one['mean']:+.3f}, worst {worst['mean']:+.3f} on {worst['set']}; "
        f"lost after correction: {lost}; won: {won}."
    )


def report(rows: Sequence[Row], output: Path | None) -> str:
    """Return the table, and write it all as JSON if asked."""
    summaries = [summary(rows, name) for name in rows[0].differences]
    if output is not None:
        record = {"sets": [asdict(row) for row in rows], "summaries": summaries}
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return table(rows, summaries)
