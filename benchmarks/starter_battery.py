"""What the battery's judge found about the starter, in two screens' room: `docs/starter.md`'s table and sentences.

Reads `results/starter-battery.json`: what `starter_recipe.battery judge` writes, its checkpoints named `this`, `second`
and `first`.
"""

import json
import textwrap
from statistics import fmean
from typing import Any

from benchmarks.measuring import RESULTS

RESULT = RESULTS / "starter-battery.json"
BM25 = "BM25"
TITLES = {"this": "this starter", "second": "the second", "first": "the first", BM25: BM25}
GROUPS = {
    "English questions, titles, terms -> text": ("perlfaq-en", "faq-en", "titles-en", "man-en", "terms-en"),
    "the same in de, fr, es, ja, zh": ("titles-xx", "faq-xx", "titles-kicad-xx"),
    "any language -> English": (
        "xling-manpages", "descriptions-xx", "messages-xx", "glosses-xx", "apps-xx", "messages-cli-xx",
    ),
    "words -> code": ("code-docstring", "code-python", "code-snippets", "code-go", "code-names"),
    "sentence pairs in en, de, es": ("similarity-en", "similarity-de", "similarity-es"),
}  # fmt: skip


def table() -> str:
    """nDCG@10 by kinds of sets, and the mean of all searches; the number of withheld sets in brackets."""
    found = json.loads(RESULT.read_text("utf-8"))
    columns = [name for name in TITLES if name in found["sets"][0]["figures"]]
    lines = [
        f"| sets (withheld ones) | {' | '.join(TITLES[name] for name in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    by_name = {one["name"]: one for one in found["sets"]}
    assert {name for names in GROUPS.values() for name in names} == by_name.keys()
    for title, names in GROUPS.items():
        rows = [by_name[name] for name in names]
        lines.append(_row(f"{title}: {_counted(rows)}", rows, columns))
    searches = [one for one in found["sets"] if BM25 in one["figures"]]
    lines.append(_row(f"all but pairs: {_counted(searches)}", searches, columns))
    return "\n".join(lines) + "\n"


def _counted(rows: list[dict[str, Any]]) -> str:
    withheld = sum(row["withheld"] for row in rows)
    return f"{len(rows)} ({withheld})" if withheld else str(len(rows))


def _row(title: str, rows: list[dict[str, Any]], columns: list[str]) -> str:
    cells = []
    for column in columns:
        values = [row["figures"][column] for row in rows if column in row["figures"]]
        cells.append(_shown(fmean(values)) if values else "")
    return f"| {title} | {' | '.join(cells)} |"


def sentence() -> str:
    """How it compares with each earlier checkpoint: mean, worst set, and sets lost after correction."""
    found = json.loads(RESULT.read_text("utf-8"))
    return "".join(textwrap.fill(_compared(one), 120, subsequent_indent="  ") + "\n" for one in found["summaries"])


def _compared(one: dict[str, Any]) -> str:
    worst, against = one["worst"], TITLES[one["against"]]
    ends = f"{worst['set']}, 95 % interval {_shown(worst['low'], '+')} to {_shown(worst['high'], '+')}"
    lost = ", ".join(one["lost"]) or "none"
    return (
        f"- Against {against}: {_shown(one['mean'], '+')} in the mean, worst {_shown(worst['mean'], '+')} "
        f"({ends}); lost after Holm's correction: {lost}."
    )


def _shown(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}".replace("0.", ".", 1)
