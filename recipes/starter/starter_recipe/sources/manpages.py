"""Manual pages: NAME lines and DESCRIPTION paragraphs, English beside its translations.

Reads just enough of man(7) and mdoc(7) for running text. A page is identified by `name.section`; aliases (links and
`.so` files) count as the page they point to, so that a banned page stays out under all its names.
"""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starter_recipe.records import LANGUAGES, Item, Pair, PairKind, Text
from starter_recipe.text import ANCHOR_CHARS, PASSAGE_CHARS, aligned, is_prose, normalise, squeeze

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FOLDERS = {"en": "man", **{code: f"man/{code}" for code in LANGUAGES}, "zh": "man/zh_CN"}
_NAME_HEAD = re.compile(r"NAME|BEZEICHNUNG|NOM|NOMBRE|名前|名称|名称|ИМЯ|НАЗВАНИЕ|НАИМЕНОВАНИЕ")
_ESCAPES = (
    (re.compile(r"\\f(?:\[\w*\]|\(..|.)|\\[&,/|^!%c:]|\\s[-+]?\d|\\m\[\w*\]"), ""),
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\\((?:aq|cq|oq)|\\\[(?:aq|cq|oq)\]"), "'"),
    (re.compile(r"\\\((?:lq|rq|dq)|\\\[(?:lq|rq|dq)\]|\\\*\([lr]q"), '"'),
    (re.compile(r"\\\((?:em|en)|\\\[(?:em|en)\]"), "-"),
    (re.compile(r"\\\[u([0-9A-F]{4})\]"), None),
    (re.compile(r"\\(?:\(..|\[[^\]]*\]|\*\(..|.)"), " "),
)
_INLINE = re.compile(r"^\.(?:BR?|IR?|RB|RI|BI|IB|SB|SM|Nm|Xr|Fl|Ar|Pa|Ql|Dq|Sy|Em|Cm|Ev|Fn|Va|Vt)(?:\s+|$)")
_PARAGRAPH = re.compile(r"^\.(?:PP|P|LP|TP|IP|HP|Pp|It|RS|RE|sp|SS|Ss|nf|fi|EX|EE|Bl|El|Bd|Ed|TQ)\b")


@dataclass(frozen=True, slots=True)
class Page:
    """The running text of a manual page."""

    summary: str
    paragraphs: tuple[str, ...]


def manpage_items(root: Path, banned_pages: set[str], banned_summaries: set[str]) -> Iterator[Item]:
    """Yield the records of every page outside the banned set, NAME lines being compared normalised."""
    pages = {language: _language_pages(root, folder) for language, folder in _FOLDERS.items()}
    banned = {_resolve(pages["en"], name) for name in banned_pages} | banned_pages
    for key, path in sorted(pages["en"].items()):
        if key in banned or _resolve(pages["en"], key) in banned or _alias(path):
            continue
        english = read_page(path)
        if english is None or normalise(english.summary) in banned_summaries:
            continue
        yield from _english_items(english)
        for language in LANGUAGES:
            other = read_page(pages[language][key]) if key in pages[language] else None
            if other is not None:
                yield from _translated_items(english, other, language)


def _language_pages(root: Path, folder: str) -> dict[str, Path]:
    """Map `name.section` to the page of one language."""
    pages: dict[str, Path] = {}
    for path in sorted(root.glob(f"*/usr/share/{folder}/man[1-8]/*.gz")):
        pages.setdefault(path.name.removesuffix(".gz"), path)
    return pages


def _alias(path: Path) -> str:
    """Return the page that a link or `.so` file points to, or nothing."""
    if path.is_symlink():
        return path.readlink().name.removesuffix(".gz")
    first = _source(path).lstrip().split("\n", 1)[0]
    return first.split("/")[-1].strip() if first.startswith(".so ") else ""


def _resolve(pages: dict[str, Path], key: str) -> str:
    """Follow aliases to the page that holds the text."""
    for _ in range(3):
        target = _alias(pages[key]) if key in pages else ""
        if not target:
            break
        key = target
    return key


def _source(path: Path) -> str:
    """Read a compressed page; empty when it is broken or a dangling link."""
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    except (OSError, EOFError):
        return ""


def read_page(path: Path) -> Page | None:
    """Read a page's NAME summary and paragraphs; None when it has no usable NAME line."""
    sections = _sections(_source(path))
    name = next((blocks for head, blocks in sections if _NAME_HEAD.search(head)), [])
    summary = re.split(r"\s[-\u2013\u2014]+\s", squeeze(" ".join(name)), maxsplit=1)[-1]
    paragraphs = tuple(block for head, blocks in sections if not _NAME_HEAD.search(head) for block in blocks)
    return Page(summary, paragraphs) if is_prose(summary, shortest=8, longest=300) else None


def _sections(source: str) -> list[tuple[str, list[str]]]:
    """Split a page into (heading, paragraphs)."""
    sections: list[tuple[str, list[str]]] = []
    for line in source.splitlines():
        if re.match(r"\.S[Hh]\b", line):
            sections.append((_plain(line[3:]).strip('" '), [""]))
        elif not sections or line.startswith(('.\\"', "'")):
            continue
        elif _PARAGRAPH.match(line) or not line.strip():
            sections[-1][1].append("")
        elif line.startswith(".Nd"):
            sections[-1][1][-1] += " - " + _plain(line[3:])
        elif not line.startswith(".") or _INLINE.match(line):
            sections[-1][1][-1] += " " + _plain(_INLINE.sub("", line))
    return [(head, [squeeze(block) for block in blocks if block.strip()]) for head, blocks in sections]


def _plain(line: str) -> str:
    """Remove the escapes of one line."""
    for pattern, replacement in _ESCAPES:
        line = pattern.sub(replacement if replacement is not None else lambda m: chr(int(m[1], 16)), line)
    return line


def _english_items(page: Page) -> Iterator[Item]:
    """Yield the summary, the paragraphs, and summary -> first long paragraph."""
    yield Text(page.summary, page.summary, "manpage")
    prose = [block for block in page.paragraphs if is_prose(block, shortest=60, longest=1500)]
    for block in prose[:12]:
        yield Text(block[:ANCHOR_CHARS], block[:ANCHOR_CHARS], "manpage")
    if prose:
        yield Pair(page.summary, " ".join(prose)[:PASSAGE_CHARS], PairKind.RETRIEVAL, "manpage")


def _translated_items(english: Page, other: Page, language: str) -> Iterator[Item]:
    """Yield the translated summary, aligned paragraphs, and translated summary -> English paragraph."""
    if other.summary == english.summary:
        return
    yield Text(other.summary, english.summary, "manpage-name", language)
    prose = next((block for block in english.paragraphs if is_prose(block, shortest=60, longest=1500)), "")
    if prose:
        yield Pair(other.summary, prose[:600], PairKind.RETRIEVAL, "manpage", english=english.summary)
    if not aligned(english.paragraphs, other.paragraphs):
        return
    groups: dict[str, str] = defaultdict(str)
    for original, translation in zip(english.paragraphs, other.paragraphs, strict=True):
        if original != translation and len(original) <= ANCHOR_CHARS and is_prose(original, shortest=20):
            groups[original] = translation
    for original, translation in groups.items():
        if is_prose(translation, shortest=10, longest=1000):
            yield Text(translation, original, "manpage", language)
