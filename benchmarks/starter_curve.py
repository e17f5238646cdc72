"""Draw the curves of the starter's training, from `results/starter-curve.json`.

python -m benchmarks.starter_curve       (draws docs/starter-text.svg and docs/starter-eyes.svg)

That file is typed from the battery's judge and from `nestling eval quality` on `emoji-names`, run on checkpoints by the
way.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS
from nestling.evaluation.figures import Figure, Point, Series
from nestling.evaluation.plots import draw

RESULT = RESULTS / "starter-curve.json"
DOCS = Path(__file__).parents[1] / "docs"
FIGURES = {
    "text": ("The text tower: quality by time on two cores", "minutes", "nDCG@10"),
    "eyes": ("The vision tower: emoji of an unseen font found by their names", "steps", "recall@10"),
}


def figure(name: str, rows: list[dict[str, Any]]) -> Figure:
    """A tower's quality by the time or steps that it was trained."""
    title, along, measure = FIGURES[name]
    lines = list(rows[0][measure])
    series = [
        Series(
            line,
            tuple(Point("", row[along], row[measure][line]) for row in rows if line in row[measure]),
            joined=True,
        )
        for line in lines
    ]
    return Figure(f"starter-{name}", title, along, measure, tuple(series))


def main() -> None:
    """Draw what is in the file."""
    found = json.loads(RESULT.read_text("utf-8"))
    for name in FIGURES:
        (DOCS / f"starter-{name}.svg").write_bytes(draw(figure(name, found[name])))


if __name__ == "__main__":
    main()
