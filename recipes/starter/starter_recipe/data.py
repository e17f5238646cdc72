"""Step 2: read the fetched packages, leave out whatever touches a benchmark set, write the training rows.

Reads  WORK/debian, WORK/python, WORK/wheels and the benchmark sets.
Writes WORK/anchors.jsonl (English texts for the teacher), WORK/rows.jsonl (text, anchor number, source,
       language), WORK/pairs.jsonl (query, passage, kind, source), WORK/held-out.jsonl and WORK/counts.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from starter_recipe.exclude import Bans
from starter_recipe.records import LANGUAGES, Item, Pair, Text
from starter_recipe.sources.catalogs import catalogue_items
from starter_recipe.sources.dictionaries import dictionary_items
from starter_recipe.sources.documents import document_items
from starter_recipe.sources.manpages import manpage_items
from starter_recipe.sources.python_code import code_items
from starter_recipe.text import normalise

if TYPE_CHECKING:
    from collections.abc import Iterable

SEED = 1
HELD_OUT = 300
HELD_OUT_CHARS = range(40, 200)
# at most so many rows of one source and language: word lists and English reference text would drown the rest
ROW_CAPS = {
    "jmdict": 40_000,
    "cedict": 45_000,
    "gcide": 12_000,
    "wordnet": 60_000,
    "wordnet-example": 25_000,
    "manpage": 9_000,
    "document/python3.11-doc": 6_000,
    "document/sqlite3-doc": 5_000,
    "document/postgresql-doc-15": 6_000,
    "document/git-doc": 3_000,
    "document/debian-policy": 1_500,
    "document/r-doc-html": 3_000,
    "catalogue/iso-codes": 1_500,
}
# the same for pairs: definitions of single words are not what a question's answer looks like
PAIR_CAPS = {"wordnet": 20_000, "gcide": 8_000}


def collect(work: Path, bans: Bans) -> list[Item]:
    """Return every record that does not touch a benchmark, by itself or through a translation of its English text."""
    debian = work / "debian"
    items = list(
        chain(
            catalogue_items(debian),
            document_items(debian),
            manpage_items(debian, bans.pages, bans.texts),
            dictionary_items(debian, work / "python"),
            code_items(work / "wheels", bans.modules),
        )
    )
    for item in items:
        if isinstance(item, Text) and bans.hits(item.text):
            bans.texts.add(normalise(item.anchor))
    return [item for item in items if not bans.drops(item)]


def cap(records: list[Any], caps: dict[str, int]) -> list[Any]:
    """Drop duplicates, and keep a random share of the capped sources (of each language, for texts)."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for record in dict.fromkeys(records):
        groups[record.source, getattr(record, "language", "")].append(record)
    generator = np.random.default_rng(SEED)
    kept = []
    for (source, _), members in sorted(groups.items()):
        order = generator.permutation(len(members))[: caps.get(source, len(members))]
        kept += [members[index] for index in order]
    return kept


def hold_out(rows: list[Text]) -> tuple[list[Text], list[dict[str, str]]]:
    """Set aside some English messages that have all six translations, for `evaluate --held-out`."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row.source.startswith("catalogue/") and len(row.anchor) in HELD_OUT_CHARS:
            groups[row.anchor][row.language] = row.text
    complete = sorted(anchor for anchor, texts in groups.items() if set(texts) >= {"en", *LANGUAGES})
    chosen = set(np.random.default_rng(SEED).permutation(complete)[:HELD_OUT].tolist())
    return [row for row in rows if row.anchor not in chosen], [groups[anchor] for anchor in sorted(chosen)]


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of the three sets to leave out")
    options = parser.parse_args()

    bans = Bans.load(options.benchmarks)
    items = collect(options.work, bans)
    rows = cap([item for item in items if isinstance(item, Text)], ROW_CAPS)
    rows, held_out = hold_out(rows)
    pairs = cap([item for item in items if isinstance(item, Pair)], PAIR_CAPS)
    anchors = sorted({row.anchor for row in rows})
    number = {text: index for index, text in enumerate(anchors)}

    write_jsonl(options.work / "held-out.jsonl", held_out)
    write_jsonl(options.work / "anchors.jsonl", anchors)
    write_jsonl(options.work / "rows.jsonl", ([row.text, number[row.anchor], row.source, row.language] for row in rows))
    write_jsonl(options.work / "pairs.jsonl", ([pair.query, pair.passage, pair.kind, pair.source] for pair in pairs))
    counts = {
        "anchors": len(anchors),
        "rows": dict(sorted(Counter(f"{row.source} {row.language}" for row in rows).items())),
        "pairs": dict(sorted(Counter(f"{pair.source} {pair.kind}" for pair in pairs).items())),
        "dropped_for_benchmarks": dict(sorted((source, count) for source, count in bans.dropped.items() if count)),
    }
    (options.work / "counts.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    print(f"{len(anchors)} anchors, {len(rows)} rows, {len(pairs)} pairs; dropped {sum(bans.dropped.values())}")


if __name__ == "__main__":
    main()
