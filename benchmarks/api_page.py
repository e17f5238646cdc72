"""Write `docs/api.md` from the docstrings of everything that `nestling` exports.

python -m benchmarks.api_page
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from enum import EnumType
from functools import cached_property
from pathlib import Path
from typing import Any

import nestling
from nestling import errors

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
WIDTH = 120
HEAD = """# The Python API

Everything that a caller imports or catches is exported from `nestling`. Public besides: `nestling.bulk`
([bulk.md](bulk.md)), `nestling.vectors` (MaxSim, int8 and binary vectors: [multivectors.md](multivectors.md)),
`nestling.evaluation.data` and `nestling.evaluation.mteb_model` ([evaluation.md](evaluation.md)). Other modules are
internal and may change in any release. Vectors are numpy arrays of float32 with unit rows. In shapes, B is the number
of inputs, T of tokens, dim of components. This page is generated from the docstrings by
`python -m benchmarks.api_page`.
"""
CLASSES = ("Embedder", "compat.JinaEmbeddingsV4", "Chunks", "Ranked", "ModelSpec", "Task", "Role")
FUNCTIONS = ("read_spec",)
INTERNAL = "Internal. "
"""The beginning of the docstring of a method that is not for callers."""
_SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Example):$", re.MULTILINE)


def page() -> str:
    """The page's text."""
    parts = [HEAD, *(_class(name) for name in CLASSES), *(_function(name, _named(name)) for name in FUNCTIONS)]
    return "\n".join([*parts, _errors()])


def _named(name: str) -> Any:  # noqa: ANN401 - a class or function
    found: Any = nestling
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _class(name: str) -> str:
    kind = _named(name)
    parts = [f"## {name}", "", _prose(inspect.getdoc(kind) or "")]
    if isinstance(kind, EnumType):
        values = ", ".join(f"`{one}`" for one in list[Any](kind))
        return "\n".join([*parts, f"Values: {values}.", ""])
    members = sorted(_members(kind).items(), key=_order)
    return "\n".join([*parts, *(_member(name, member, one) for member, one in members)])


def _members(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - a class
    """What callers may use of a class, by name."""
    return {
        member: one
        for base in reversed(kind.__mro__)
        if base.__module__.startswith("nestling.")
        for member, one in vars(base).items()
        if member[0] != "_" and not (inspect.getdoc(one) or "").startswith(INTERNAL)
    }


def public_functions(name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods of a class that `nestling` exports: (title, function)."""
    for member, one in _members(_named(name)).items():
        function = one.__func__ if isinstance(one, classmethod | staticmethod) else one
        if inspect.isfunction(function):
            yield f"{name}.{member}", function


def _order(member: tuple[str, object]) -> int:
    """What most callers need comes first; the rest in the order of the source."""
    return 0 if member[0].startswith(("load", "from_")) else 1 if member[0].startswith(("encode", "rerank")) else 2


def _member(owner: str, name: str, one: Any) -> str:  # noqa: ANN401 - whatever a class holds
    title = f"{owner.rpartition('.')[2]}.{name}"
    if isinstance(one, property | cached_property):
        return f"### {title}\n\n{_prose(inspect.getdoc(one) or '')}"
    function = one.__func__ if isinstance(one, classmethod | staticmethod) else one
    return _function(title, function) if inspect.isfunction(function) else ""


def _function(title: str, function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    names = [_parameter(one) for one in signature.parameters.values() if one.name not in ("self", "cls")]
    if any(one.kind is inspect.Parameter.KEYWORD_ONLY for one in signature.parameters.values()):
        first = next(i for i, one in enumerate(signature.parameters.values()) if one.kind is one.KEYWORD_ONLY)
        names.insert(first - ("self" in signature.parameters or "cls" in signature.parameters), "*")
    call = "\n".join(textwrap.wrap(f"{title}({', '.join(names)})", WIDTH, subsequent_indent="    "))
    return f"### {title}\n\n```text\n{call}\n```\n\n{_prose(inspect.getdoc(function) or '')}"


def _parameter(one: inspect.Parameter) -> str:
    stars = "**" if one.kind is one.VAR_KEYWORD else "*" if one.kind is one.VAR_POSITIONAL else ""
    value = one.default
    shown = f"'{value}'" if isinstance(value, str) else repr(value)
    return f"{stars}{one.name}" if value is one.empty else f"{one.name}={shown}"


def _prose(text: str) -> str:
    """A docstring as Markdown: its sections become lists, its example a block of Python."""
    head, *rest = _SECTION.split(text)
    sections = [
        _section(title, textwrap.dedent(body).strip("\n")) for title, body in zip(*[iter(rest)] * 2, strict=True)
    ]
    return "\n\n".join([head.strip(), *sections]).strip() + "\n"


def _section(title: str, body: str) -> str:
    if title == "Example":
        return f"```python\n{body.strip()}\n```"
    if title in ("Returns", "Yields"):
        return "\n".join(textwrap.wrap(f"{title}: {' '.join(body.split())}", WIDTH))
    return "\n".join([f"{title}:", "", *_items(body)])


def _items(body: str) -> Iterator[str]:
    for item in re.split(r"\n(?=\S)", body):
        name, _, text = " ".join(item.split()).partition(": ")
        yield from textwrap.wrap(f"- `{name}`: {text}", WIDTH, subsequent_indent="  ")


def _errors() -> str:
    tree = "\n".join(line[4:] for line in (errors.__doc__ or "").splitlines() if line.startswith("    "))
    return f"## Errors\n\n```text\n{tree}\n```\n\nEvery message is one line: what was wrong and what is expected.\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
