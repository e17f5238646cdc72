"""What the battery's judge found about the starter, as a result file, and its table and sentence for `docs/starter.md`.

python -m benchmarks.starter_battery verdict.json "its/name/there=this starter" "another/name=the first"

`verdict.json` is what `starter_recipe.battery judge` writes; each NAME=TITLE is a column, this starter's first.
"""

import argparse
import json
import textwrap
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measuring import RESULTS

RESULT = RESULTS / "starter-battery.json"
BM25 = "BM25"
GROUPS = {
    "English questions, titles, terms -> text": ("perlfaq-en", "faq-en", "titles-en", "man-en", "terms-en"),
    "the same in de, fr, es, ja, zh": ("titles-xx", "faq-xx", "titles-kicad-xx"),
    "any language -> English": (
        "xling-manpages", "descriptions-xx", "messages-xx", "glosses-xx", "apps-xx", "messages-cli-xx",
    ),
    "words -> code": ("code-docstring", "code-python", "code-snippets", "code-go", "code-names"),
    "sentence pairs in en, de, es": ("similarity-en", "similarity-de", "similarity-es"),
}  # fmt: skip


def recorded(verdict: dict[str, Any], titles: dict[str, str]) -> dict[str, Any]:
    """A verdict with the given columns, by their titles; the differences are this starter's to each of the others."""
    columns = {**titles, BM25: BM25}
    sets = [
        {
            **{key: one[key] for key in ("name", "task", "withheld")},
            "figures": {title: one["figures"].get(name) for name, title in columns.items()},
        }
        for one in verdict["sets"]
    ]
    judged = next(iter(verdict["sets"][0]["figures"])) == next(iter(titles))  # or the verdict is about another one
    known = [one for one in verdict["summaries"] if judged and one["against"] in titles]
    return {
        "sets": sets,
        "summaries": [
            {**{key: one[key] for key in ("mean", "worst", "lost")}, "against": titles[one["against"]]} for one in known
        ],
    }


def table() -> str:
    """nDCG@10 by kinds of sets, and the mean of all searches; the number of withheld sets in brackets."""
    found = json.loads(RESULT.read_text("utf-8"))
    columns = list(found["sets"][0]["figures"])
    lines = [f"| sets (withheld ones) | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    by_name = {one["name"]: one for one in found["sets"]}
    assert {name for names in GROUPS.values() for name in names} == by_name.keys()
    for title, names in GROUPS.items():
        rows = [by_name[name] for name in names]
        lines.append(_row(f"{title}: {_counted(rows)}", rows, columns))
    searches = [one for one in found["sets"] if one["figures"][BM25] is not None]
    lines.append(_row(f"all but pairs: {_counted(searches)}", searches, columns))
    return "\n".join(lines) + "\n"


def _counted(rows: list[dict[str, Any]]) -> str:
    withheld = sum(row["withheld"] for row in rows)
    return f"{len(rows)} ({withheld})" if withheld else str(len(rows))


def _row(title: str, rows: list[dict[str, Any]], columns: list[str]) -> str:
    cells = []
    for column in columns:
        values = [row["figures"][column] for row in rows if row["figures"][column] is not None]
        cells.append(_shown(fmean(values)) if values else "")
    return f"| {title} | {' | '.join(cells)} |"


def sentence() -> str:
    """How it compares with each earlier checkpoint: mean, worst set, and sets lost after correction."""
    found = json.loads(RESULT.read_text("utf-8"))
    return "".join(textwrap.fill(_compared(one), 120) + "\n" for one in found["summaries"])


def _compared(one: dict[str, Any]) -> str:
    worst = one["worst"]
    ends = f"{worst['set']}, 95 % interval {_shown(worst['low'], '+')} to {_shown(worst['high'], '+')}"
    lost = ", ".join(one["lost"]) or "none"
    return (
        f"- Against {one['against']}: {_shown(one['mean'], '+')} in the mean, worst {_shown(worst['mean'], '+')} "
        f"({ends}); lost after Holm's correction: {lost}."
    )


def _shown(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verdict", type=Path)
    parser.add_argument("titles", nargs="+", metavar="NAME=TITLE")
    given = parser.parse_args()
    titles = dict(one.split("=", 1) for one in given.titles)
    found = recorded(json.loads(given.verdict.read_text("utf-8")), titles)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
