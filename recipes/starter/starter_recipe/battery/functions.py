"""Functions: what is said of them, or their names as words, and their source. Python and Go."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from starter_recipe.battery.entries import Entry
from starter_recipe.sources.python_code import functions, modules
from starter_recipe.text import is_prose, squeeze

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CODE_CHARS = 900
_CAP_PER_PACKAGE = 250
_NAME = re.compile(r"def (\w+)\(")
_WORD = re.compile(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}(?![a-z])")
_FEWEST_WORDS = 3
_GO = re.compile(r"((?:^//[^\n]*\n)+)^(func (?:\([^)\n]*\) )?(\w+)\([\s\S]*?^\}$)", re.MULTILINE)
_GO_LINES = range(4, 46)


def python_functions(wheels: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield (docstring's first paragraph, source without it) of the documented functions of wheels."""
    for wheel in wheels:
        found = [pair for _, source in modules(wheel) for pair in functions(source)]
        found.sort(key=lambda pair: hashlib.sha256(pair[1].encode()).digest())
        yield from found[:_CAP_PER_PACKAGE]


def by_docstring(pairs: Iterable[tuple[str, str]]) -> Iterator[Entry]:
    """Yield docstring -> function, of every second function."""
    for query, code in pairs:
        if not _odd(code):
            yield Entry(query, code[:CODE_CHARS])


def by_name(pairs: Iterable[tuple[str, str]]) -> Iterator[Entry]:
    """Yield the words of a function's name -> the function with its name hidden, of the other functions."""
    for _, code in pairs:
        name = _NAME.search(code)
        words = [word.lower() for word in _WORD.findall(name[1])] if name else []
        if name and _odd(code) and len(words) >= _FEWEST_WORDS:
            yield Entry(" ".join(words), code.replace(name[1], "function")[:CODE_CHARS])


def _odd(code: str) -> bool:
    return hashlib.sha256(code.encode()).digest()[0] % 2 == 1


def go_functions(folders: Iterable[Path]) -> Iterator[Entry]:
    """Yield doc comment -> function of Go packages; the comment's first word, the function's name, is left out."""
    for folder in folders:
        for path in sorted(folder.rglob("*.go")):
            if not path.name.endswith("_test.go"):
                yield from _go(path.read_text("utf-8", "replace"))


def _go(source: str) -> Iterator[Entry]:
    """Yield the documented functions of one file."""
    for comment, code, name in _GO.findall(source):
        text = squeeze(comment.replace("//", " "))
        sentence = re.split(r"(?<=[a-z)])\. ", text)[0].removeprefix(name).strip()
        usable = len(sentence.split()) in range(4, 41) and is_prose(sentence, longest=300)
        if usable and text.startswith(name) and len(code.splitlines()) in _GO_LINES:
            yield Entry(sentence, code[:CODE_CHARS])
