"""Block structure of HTML and Mallard pages: headings and paragraphs in reading order."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from starter_recipe.text import squeeze

if TYPE_CHECKING:
    from pathlib import Path

_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "dt"}
_BLOCKS = _HEADINGS | {"p", "li", "dd", "td", "th", "pre"}
_SKIPPED = {"script", "style", "pre", "nav", "head", "footer"}


@dataclass(frozen=True, slots=True)
class Block:
    """A heading or a paragraph, with its `id` attribute if it has one."""

    text: str
    heading: bool
    ident: str = ""


class _Blocks(HTMLParser):
    """Collects blocks; a block ends where the next one starts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._tag = self._ident = ""
        self._parts: list[str] = []
        self._skip = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self._skip += 1
        elif tag in _BLOCKS:
            self.flush()
            self._tag, self._ident = tag, dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self._skip = max(0, self._skip - 1)
        elif tag == self._tag:
            self.flush()

    def handle_data(self, data: str) -> None:
        if self._tag and not self._skip:
            self._parts.append(data)

    def flush(self) -> None:
        """End the open block."""
        text = squeeze("".join(self._parts)).rstrip("¶# ")
        if text:
            self.blocks.append(Block(text, heading=self._tag in _HEADINGS, ident=self._ident))
        self._tag, self._ident, self._parts = "", "", []


def html_blocks(path: Path) -> list[Block]:
    """Read the blocks of an HTML file."""
    parser = _Blocks()
    parser.feed(path.read_text("utf-8", "replace"))
    parser.flush()
    return parser.blocks


def mallard_blocks(path: Path) -> list[Block]:
    """Read the blocks of a Mallard (.page) file: titles are headings, `desc` and `p` are paragraphs."""
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - a file of a signed package
    except ET.ParseError:
        return []
    blocks = []
    for element in root.iter():
        name = element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else ""
        if name in {"title", "desc", "p"} and element.get("type") != "link":
            text = squeeze("".join(element.itertext()))
            if text and "@" not in text:
                blocks.append(Block(text, heading=name == "title"))
    return blocks
