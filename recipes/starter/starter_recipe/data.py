"""Step 2: read the fetched packages, leave out whatever touches a benchmark set, write the training rows.

Reads  WORK/debian, WORK/python, WORK/wheels and the benchmark sets.
Writes WORK/anchors.jsonl (English texts for the teacher), WORK/rows.jsonl (text, anchor number, source,
       language), WORK/pairs.jsonl (query, passage, kind, source, anchor numbers of both), WORK/held-out.jsonl and
       WORK/counts.json. What each reader found is kept in WORK/records: delete it when packages or benchmarks change.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from starter_recipe.exclude import Bans
from starter_recipe.records import LANGUAGES, Item, Pair, Text
from starter_recipe.sources.catalogs import catalogue_items
from starter_recipe.sources.dictionaries import dictionary_items
from starter_recipe.sources.documents import document_items
from starter_recipe.sources.go_code import go_items
from starter_recipe.sources.manpages import manpage_items
from starter_recipe.sources.python_code import code_items
from starter_recipe.text import normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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


def read_all(folder: Path, read: Callable[..., Iterable[Item]], arguments: tuple[Any, ...]) -> Path:
    """Run one reader, in a process of its own, and store its records; a rerun takes what is stored."""
    path = folder / f"{read.__name__}.pickle"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps(list(read(*arguments))))
        part.rename(path)
    return path


def collect(work: Path, bans: Bans) -> list[Item]:
    """Return every record that does not touch a benchmark, by itself or through a translation of its English text."""
    debian = work / "debian"
    (work / "records").mkdir(exist_ok=True)
    readers: list[tuple[Callable[..., Iterable[Item]], tuple[Any, ...]]] = [
        (document_items, (debian,)),
        (catalogue_items, (debian,)),
        (code_items, (work / "wheels", bans.modules)),
        (manpage_items, (debian, bans.pages, bans.texts)),
        (dictionary_items, (debian, work / "python")),
        (go_items, (debian,)),
    ]
    with ProcessPoolExecutor(2) as pool:
        paths = pool.map(read_all, [work / "records"] * len(readers), *zip(*readers, strict=True))
        items: list[Item] = list(chain.from_iterable(pickle.loads(path.read_bytes()) for path in paths))  # noqa: S301 - our own
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


def passages(pairs: list[Pair]) -> list[Text]:
    """Return both sides of the pairs as texts of their own, so that they get teacher vectors."""
    texts = []
    for pair in pairs:
        english = pair.english or pair.query
        texts += [
            Text(english, english, f"query-{pair.kind}"),
            Text(pair.passage, pair.passage, f"passage-{pair.kind}"),
        ]
    return list(dict.fromkeys(texts))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of the three sets to leave out")
    parser.add_argument("--exclude", type=Path, help="further texts to leave out: JSON lines with `kind` and `text`")
    options = parser.parse_args()

    bans = Bans.load(options.benchmarks, options.exclude)
    items = collect(options.work, bans)
    rows = cap([item for item in items if isinstance(item, Text)], ROW_CAPS)
    rows, held_out = hold_out(rows)
    pairs = cap([item for item in items if isinstance(item, Pair)], PAIR_CAPS)
    rows += passages(pairs)
    anchors = sorted({row.anchor for row in rows})
    number = {text: index for index, text in enumerate(anchors)}

    write_jsonl(options.work / "held-out.jsonl", held_out)
    write_jsonl(options.work / "anchors.jsonl", anchors)
    write_jsonl(options.work / "rows.jsonl", ([row.text, number[row.anchor], row.source, row.language] for row in rows))
    write_jsonl(
        options.work / "pairs.jsonl",
        (
            [pair.query, pair.passage, pair.kind, pair.source, number[pair.english or pair.query], number[pair.passage]]
            for pair in pairs
        ),
    )
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
