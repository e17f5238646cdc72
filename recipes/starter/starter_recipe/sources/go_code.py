"""Go's standard library: the first sentence of a function's comment -> the function."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starter_recipe.records import Item, Pair, PairKind, Text
from starter_recipe.text import PASSAGE_CHARS, squeeze

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FUNCTION = re.compile(r"^((?://[^\n]*\n)+)(func [^\n]*\{\n(?:[^}\n][^\n]*\n|\n)*\})", re.MULTILINE)
_WORDS = range(5, 41)
_LINES = range(3, 46)
_SKIPPED = ("_test.go", "zerrors", "zsyscall", "tables.go")
_SKIPPED_FOLDERS = {"cmd", "vendor", "testdata"}


def go_items(root: Path) -> Iterator[Item]:
    """Yield the records of the unpacked source package below `root`."""
    for path in sorted(root.glob("golang-*-src/usr/share/go-*/src/**/*.go")):
        if path.is_file() and not path.name.endswith(_SKIPPED) and not _SKIPPED_FOLDERS & set(path.parts):
            for query, code in functions(path.read_text("utf-8", "replace")):
                yield Pair(query, code[:PASSAGE_CHARS], PairKind.CODE, "go")
                yield Text(query, query, "go-comment")
                yield Text(code[:500], query, "go", "python")


def functions(source: str) -> Iterator[tuple[str, str]]:
    """Yield (first sentence of the comment, function) of each documented function."""
    for comment, code in _FUNCTION.findall(source):
        text = squeeze(
            " ".join(line.removeprefix("//") for line in comment.splitlines() if not line.startswith("//go:"))
        )
        query = re.split(r"(?<=[a-z)])\.\s", text, maxsplit=1)[0].rstrip(".")
        if len(query.split()) in _WORDS and query.isascii() and code.count("\n") + 1 in _LINES:
            yield query, code
