"""Draw the curves of the starter's training, from `results/starter-curve.json`.

python -m benchmarks.starter_curve                     (draws docs/starter-text.svg and docs/starter-eyes.svg)
python -m benchmarks.starter_curve --eyes WORK-EYES    (first takes the losses of a training of the eyes, thinned)

`text` in that file is typed from `starter_recipe.evaluate` and the battery's judge, run on checkpoints by the way;
`eyes` is of the training's losses-*.jsonl. Nothing is drawn of what is not in the file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS
from nestling.evaluation.figures import Figure, Point, Series
from nestling.evaluation.plots import draw

RESULT = RESULTS / "starter-curve.json"
DOCS = Path(__file__).parents[1] / "docs"
MOST = 60
"""The most points of a line."""
LOSSES = {
    "letters": "letters of a text",
    "cells": "tokens of a text",
    "concept": "concepts of pictures",
    "picture": "names of pictures",
    "vector": "vectors of texts",
}


def text(found: dict[str, Any]) -> Figure:
    """The quality of the base by minutes of training."""
    names = list(found["text"][0]["nDCG@10"])
    series = [
        Series(
            name,
            tuple(Point("", row["minutes"], row["nDCG@10"][name]) for row in found["text"] if name in row["nDCG@10"]),
            joined=True,
        )
        for name in names
    ]
    return Figure("starter-text", "The text tower: quality by time on two cores", "minutes", "nDCG@10", tuple(series))


def eyes(found: dict[str, Any]) -> Figure:
    """The losses of the vision tower by steps."""
    series = [
        Series(LOSSES.get(name, name), tuple(Point("", step, value) for step, value in rows), joined=True)
        for name, rows in found["eyes"].items()
    ]
    return Figure("starter-eyes", "The vision tower: losses by steps", "steps", "loss", tuple(series))


def losses(folder: Path) -> dict[str, list[list[float]]]:
    """Loss -> (step, value), of a work folder; a step that was done again counts as it was done last."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("losses*.jsonl")):
        for row in map(json.loads, path.read_text("utf-8").splitlines()):
            for name in row.keys() - {"step", "cpu_s"}:
                found.setdefault(name, {})[row["step"]] = row[name]
    return {name: _thinned(sorted(rows.items())) for name, rows in sorted(found.items())}


def _thinned(rows: list[tuple[int, float]]) -> list[list[float]]:
    every = -(-len(rows) // MOST)
    return [[step, round(value, 4)] for step, value in rows[every - 1 :: every]]


def main() -> None:
    """Take the losses if asked to, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eyes", type=Path, help="the work folder of a training of the eyes")
    given = parser.parse_args()
    found = json.loads(RESULT.read_text("utf-8"))
    if given.eyes:
        found["eyes"] = losses(given.eyes)
        RESULT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for name, figure in (("text", text), ("eyes", eyes)):
        if name in found:
            (DOCS / f"starter-{name}.svg").write_bytes(draw(figure(found)))


if __name__ == "__main__":
    main()
