"""Documentation in HTML or Mallard: aligned paragraphs of translations, and heading -> paragraph pairs.

A translated page made from a catalogue has the same blocks as the English one. Pages whose block counts differ are
left out rather than guessed at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starter_recipe.packages import ENGLISH_MANUALS
from starter_recipe.records import LANGUAGES, Item, Pair, PairKind, Text
from starter_recipe.sources.html_blocks import Block, html_blocks, mallard_blocks
from starter_recipe.text import ANCHOR_CHARS, PASSAGE_CHARS, aligned, is_prose, plausible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NUMBER = re.compile(r"^(?:Chapter |第|\W|\d|[A-D]\.)[\d.]*(?:章|장)?[.:]?\s*")
_SHORT_BODY = 60
_SHORT_PARAGRAPH = 40
MOST_PAGES = 700


@dataclass(frozen=True, slots=True)
class Manual:
    """A manual in several languages: where a language's pages lie, given its {code} or {lower} case code."""

    name: str
    pattern: str
    codes: dict[str, str]
    suffix: str = ".html"
    english: str = ""
    """Where the English pages lie, if the pattern does not say it."""


def _codes(*pairs: str) -> dict[str, str]:
    """Turn "zh=zh-cn" into {"zh": "zh-cn"}."""
    return dict(pair.split("=") for pair in pairs)


_PLAIN = {code: code for code in ("en", *LANGUAGES)}
MANUALS = (
    Manual(
        "libreoffice-help",
        "libreoffice-help-{lower}/usr/share/libreoffice/help/{code}/text",
        {**_PLAIN, "en": "en-US", "zh": "zh-CN"},
    ),
    Manual("gnome-user-docs", "gnome-user-docs/usr/share/help/{code}", {**_PLAIN, "en": "C", "zh": "zh_CN"}, ".page"),
    Manual(
        "debian-handbook",
        "debian-handbook/usr/share/doc/debian-handbook/html/{code}",
        _codes("en=en-US", "de=de-DE", "fr=fr-FR", "es=es-ES", "ja=ja-JP", "zh=zh-CN", "ru=ru-RU"),
    ),
    Manual(
        "installation-guide",
        "installation-guide-amd64/usr/share/doc/installation-guide-amd64/{code}",
        {**_PLAIN, "zh": "zh_CN"},
    ),
    Manual("debian-reference", "debian-reference-{lower}/usr/share/debian-reference", {**_PLAIN, "zh": "zh-cn"}),
    Manual(
        "developers-reference",
        "developers-reference-{lower}/usr/share/developers-reference/{code}",
        _PLAIN,
        english="developers-reference/usr/share/developers-reference",
    ),
    Manual(
        "debian-faq",
        "debian-faq-{lower}/usr/share/doc/debian/FAQ/{code}",
        {**_PLAIN, "zh": "zh-cn"},
        english="debian-faq/usr/share/doc/debian/FAQ",
    ),
    Manual(
        "gimp-help",
        "gimp-help-{lower}/usr/share/gimp/2.0/help/{code}",
        {**_PLAIN, "zh": "zh_CN"},
        english="gimp-help-en/usr/share/gimp/2.0/help/en",
    ),
    Manual("debian-edu", "debian-edu-doc-{code}/usr/share/doc/debian-edu-doc-{code}", _PLAIN),
    Manual(
        "maint-guide",
        "maint-guide-{lower}/usr/share/doc/maint-guide-{lower}/html",
        {**_PLAIN, "zh": "zh-cn"},
        english="maint-guide/usr/share/doc/maint-guide/html",
    ),
    Manual("debmake", "debmake-doc/usr/share/doc/debmake-doc/html", {**_PLAIN, "zh": "zh-cn"}, ".{code}.html"),
    Manual("live-manual", "live-manual-html/usr/share/doc/live-manual/html", _PLAIN, ".{code}.html"),
    Manual("aptitude", "aptitude-doc-{lower}/usr/share/doc/aptitude/html/{code}", _PLAIN),
)


def document_items(root: Path) -> Iterator[Item]:
    """Yield the records of every manual below `root`."""
    for manual in MANUALS:
        yield from _manual_items(root, manual)
    for package in ENGLISH_MANUALS:
        paths = [path for path in sorted((root / package).rglob("*.html")) if path.is_file() and not path.is_symlink()]
        for path in paths[:: 1 + len(paths) // MOST_PAGES]:
            yield from _english_items(html_blocks(path), f"document/{package}")


def _manual_items(root: Path, manual: Manual) -> Iterator[Item]:
    """Yield one manual: English pages alone, then each translation beside them."""
    read: Callable[[Path], list[Block]] = mallard_blocks if manual.suffix == ".page" else html_blocks
    source = f"document/{manual.name}"
    english = {key: read(path) for key, path in _pages(root, manual, "en").items()}
    for blocks in english.values():
        yield from _english_items(blocks, source)
    for language in LANGUAGES:
        for key, path in _pages(root, manual, language).items():
            blocks = read(path)
            if aligned([block.text for block in english.get(key, ())], [block.text for block in blocks]):
                yield from _aligned_items(english[key], blocks, language, source)


def _pages(root: Path, manual: Manual, language: str) -> dict[str, Path]:
    """Map a language-free page key to the page."""
    code = manual.codes.get(language)
    if code is None:
        return {}
    pages: dict[str, Path] = {}
    pattern = manual.english if language == "en" and manual.english else manual.pattern
    for folder in sorted(root.glob(pattern.format(code=code, lower=code.lower()))):
        for path in sorted(folder.rglob(f"*{manual.suffix.format(code=code)}")):
            key = str(path.relative_to(folder)).replace(f".{code}.", ".")
            if path.is_file() and not path.is_symlink():
                pages.setdefault(key, path)
    return pages


def _sections(blocks: list[Block]) -> Iterator[tuple[str, list[str]]]:
    """Split a page into (heading, paragraphs)."""
    heading, paragraphs = "", list[str]()
    for block in blocks:
        if block.heading:
            yield heading, paragraphs
            heading, paragraphs = _NUMBER.sub("", block.text), []
        elif is_prose(block.text, shortest=25, longest=1500):
            paragraphs.append(block.text)
    yield heading, paragraphs


def _english_items(blocks: list[Block], source: str) -> Iterator[Item]:
    """Yield paragraphs as anchored texts and heading -> the section's beginning as retrieval pairs."""
    for heading, paragraphs in _sections(blocks):
        for paragraph in paragraphs:
            if len(paragraph) >= _SHORT_PARAGRAPH:
                yield Text(paragraph[:ANCHOR_CHARS], paragraph[:ANCHOR_CHARS], source)
        passage = " ".join(paragraphs)[:PASSAGE_CHARS]
        if heading and len(passage) >= _SHORT_BODY:
            yield Pair(heading, passage, PairKind.RETRIEVAL, source)


def _aligned_items(english: list[Block], other: list[Block], language: str, source: str) -> Iterator[Item]:
    """Yield block by block translations, and translated heading -> English paragraph pairs."""
    heading = title = ""
    for original, translation in zip(english, other, strict=True):
        text, anchor = translation.text, original.text
        if original.heading:
            heading, title = _NUMBER.sub("", text), _NUMBER.sub("", anchor)
            text, anchor = heading, title
        usable = original.ident == translation.ident and text != anchor and plausible(anchor, text)
        if not usable or not is_prose(anchor, longest=900) or not is_prose(text, shortest=6, longest=1200):
            continue
        if len(anchor) <= ANCHOR_CHARS:
            yield Text(text, anchor, source, language)
        if not original.heading and heading and heading != title and len(anchor) >= _SHORT_BODY:
            yield Pair(heading, anchor[:600], PairKind.RETRIEVAL, source, english=title)
            heading = ""
