"""Python packages: the first paragraph of a docstring -> the function without its docstring."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
import zipfile
from typing import TYPE_CHECKING

from starter_recipe.records import Item, Pair, PairKind, Text
from starter_recipe.text import PASSAGE_CHARS, squeeze

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SKIPPED_PATH = re.compile(r"(^|/)(tests?|testing|_vendor|vendor|vendored|examples?)/|/test_|conftest|_pb2")
_SKIPPED_START = (">>>", "Deprecated", "See ", ".. ", "TODO", "Args", ":")
_WORDS = range(4, 41)
_LINES = range(3, 46)
_CHARS = 2000
_CAP_PER_PACKAGE = 1500


def code_items(wheels: Path, banned_modules: set[str]) -> Iterator[Item]:
    """Yield the records of every wheel in a folder, without modules whose path ends like a banned one."""
    for wheel in sorted(wheels.glob("*.whl")):
        package = wheel.name.split("-")[0].lower()
        count = 0
        for path, source in modules(wheel):
            if count >= _CAP_PER_PACKAGE or _banned(path, banned_modules):
                continue
            for query, code in functions(source):
                count += 1
                yield Pair(query, code[:PASSAGE_CHARS], PairKind.CODE, f"code/{package}")
                yield Text(query, query, f"docstring/{package}")
                yield Text(code[:500], query, f"code/{package}", "python")


def _banned(path: str, banned_modules: set[str]) -> bool:
    """Tell whether a module's path is a banned one, with or without the package's folder before it."""
    return path in banned_modules or path.split("/", 1)[-1] in banned_modules


def modules(wheel: Path) -> Iterator[tuple[str, str]]:
    """Yield (path inside the wheel, source) of each module worth reading."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py") and not _SKIPPED_PATH.search(name):
                yield name, archive.read(name).decode("utf-8", "replace")


def functions(source: str) -> Iterator[tuple[str, str]]:
    """Yield (docstring's first paragraph, code without docstring) of each documented function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("__"):
            query, code = _query(node), _code(node, lines)
            if query and code:
                yield query, code


def _query(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the first paragraph of the docstring as a search query, or nothing if it would be a poor one."""
    paragraph = squeeze((ast.get_docstring(node) or "").split("\n\n")[0])
    query = re.sub(r":\w+:`~?([^`]*)`", r"\1", paragraph).replace("`", "")
    usable = len(query.split()) in _WORDS and query.isascii() and not query.startswith(_SKIPPED_START)
    return query if usable else ""


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """Return the function's source without decorators and docstring, or nothing if too short or too long."""
    first = node.body[0]
    if len(node.body) == 1 or not isinstance(first, ast.Expr) or first.end_lineno is None:
        return ""
    kept = lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
    code = textwrap.dedent("\n".join(kept)).strip()
    usable = code.count("\n") + 1 in _LINES and len(code) <= _CHARS
    return code if usable else ""
