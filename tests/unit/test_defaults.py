"""A default is declared once, and what a command, its help, a page or a docstring says of it is that declaration.

Doors: a literal in a command's signature; the same parameter with a literal in two places of the package; a command and
its library call that differ; a help text beside the parser's own `[default: ...]`; a number in a page or a docstring.
The server's settings are in `test_serve_settings`.
"""

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from nestling.bulk import JobSpec, RunOptions, exact_search
from nestling.bulk.settings import SHARD_ROWS
from nestling.cli import commands, evaluate
from nestling.engine.names import DEFAULT_ENGINE
from nestling.engine.openvino.weight_files import DEFAULT_LIMIT_GB
from nestling.evaluation.settings import QualitySettings, SpeedSettings
from nestling.evaluation.verify import verify
from nestling.formats.tower_shape import MAX_PIXELS
from nestling.inputs.image.patches import PATCH
from nestling.models import hub_models, local, publish
from nestling.models.embedder import Embedder
from nestling.models.reranking import DEFAULT_SCORING
from nestling.pipeline.conversion.convert import convert
from nestling.pipeline.quantization import calibration
from nestling.pipeline.quantization.search.search import Chooser
from nestling.spec import DEFAULT_ROLE

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "nestling").rglob("*.py"))
Call = Callable[..., Any]
Found = dict[str, list[tuple[object, str]]]
EMPTY = (None, False, "", 0, ...)
"""Not given, off, nothing: the absence of a value."""
DIFFERENT = {
    "format": "the version of each kind of result file", "kind": "the name of each kind of result file",
    "param": "what a helper's error names", "threads": "one, of arithmetic that its caller gives more",
    "normalized": "of the arithmetic, and of a request that says nothing",
    "cost": "of each form of attention, measured",
}  # fmt: skip
"""Parameters of one name that mean different things."""


def literals(source: str, where: str) -> Iterator[tuple[str, object, str]]:
    """Every parameter and field whose default is a value written out: name, value, place."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args]
            pairs = [*zip(given[::-1], node.args.defaults[::-1], strict=False)]
            pairs += [
                (one, default)
                for one, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                if default
            ]
            values = [(one.arg, default) for one, default in pairs]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            inner = node.value.keywords if isinstance(node.value, ast.Call) else []
            value = next((one.value for one in inner if one.arg == "default"), node.value)
            values = [(node.target.id, value)] if value and not node.target.id.isupper() else []
        else:
            continue
        for name, value in values:
            if isinstance(value, ast.Constant) and value.value not in EMPTY:
                yield name, value.value, f"{where}:{node.lineno}"


def in_two_places(sources: dict[str, str]) -> Found:
    found: Found = defaultdict(list)
    for where, source in sources.items():
        for name, value, place in literals(source, where):
            found[name].append((value, place))
    return {name: places for name, places in found.items() if len(places) > 1 and name not in DIFFERENT}


def package() -> dict[str, str]:
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in SOURCES}


def test_no_default_is_written_twice_in_the_package() -> None:
    assert in_two_places(package()) == {}


def test_no_command_writes_a_default_of_its_own() -> None:
    assert [one for where, text in package().items() if "/cli/" in where for one in literals(text, where)] == []


@pytest.mark.parametrize(
    "planted",
    [
        'def embed(text: str, engine: str = "auto") -> None: ...\ndef load(*, engine: str = "auto") -> None: ...',
        "class Settings:\n    rounds: int = 5\n\ndef speed(rounds: int = 6) -> None: ...",
        "class Settings:\n    port: int = field(default=8080)\n\nasync def run(*, port: int = 8080) -> None: ...",
    ],
)
def test_a_default_that_is_written_twice_is_found(planted: str) -> None:
    assert len(in_two_places({"planted.py": planted})) == 1


# Commands and their library calls.

VERBS: dict[str, Call] = {**commands._VERBS, "eval quality": evaluate.quality, "eval speed": evaluate.speed}
LIBRARIES: dict[str, list[Call]] = {
    "embed": [Embedder.load, Embedder.items, Embedder.encode],
    "similarity": [Embedder.load, Embedder.items],
    "rerank": [Embedder.load, Embedder.rerank],
    "bulk": [JobSpec, RunOptions],
    "search": [exact_search.search],
    "quantize": [Chooser.choose],
    "imatrix": [calibration.collect],
    "convert": [convert],
    "pull": [hub_models.pull],
    "publish": [publish.plan, publish.send],
    "verify": [verify],
    "eval quality": [QualitySettings],
    "eval speed": [SpeedSettings],
}
RENAMED = {
    "prompt": "prompt_name", "quant": "file_type", "chunks": "limit", "calibration": "text", "cell_seconds": "cell_s",
}  # fmt: skip
"""Options that the library calls otherwise; `bulk` has `engine` for the runner and `prompt` as it is."""


def defaults(call: Call) -> dict[str, Any]:
    found = inspect.signature(call).parameters.values()
    return {one.name: one.default for one in found if one.default is not inspect.Parameter.empty}


def differences(verb: Call, libraries: list[Call], renamed: dict[str, str]) -> tuple[dict[str, Any], int]:
    """The options of a command whose default is not the library's, and how many were compared.

    A list that is left out means the library's own, which the command hands on.
    """
    known = {name: value for library in reversed(libraries) for name, value in defaults(library).items()}
    given = {name: (value, renamed.get(name, name)) for name, value in defaults(verb).items()}
    pairs = {name: (value, known[other]) for name, (value, other) in given.items() if other in known}
    wrong = {
        name: pair for name, pair in pairs.items()
        if pair[0] != pair[1] and not (pair[0] is None and isinstance(pair[1], tuple))
    }  # fmt: skip
    return wrong, len(pairs)


@pytest.mark.parametrize("verb", LIBRARIES)
def test_a_commands_default_is_the_librarys(verb: str) -> None:
    renamed = {"engine": "runner"} if verb == "bulk" else RENAMED
    wrong, compared = differences(VERBS[verb], LIBRARIES[verb], renamed)
    assert (wrong, compared > 0) == ({}, True)


def test_a_command_that_differs_from_its_library_is_found() -> None:
    def planted(model: str, engine: str = "openvino", top_n: int | None = None) -> None: ...

    assert differences(planted, [Embedder.load, Embedder.rerank], {}) == ({"engine": ("openvino", "auto")}, 2)


# Help, pages, docstrings.


def options() -> Iterator[tuple[str, Any]]:
    root: Any = typer.main.get_command(commands.app)
    for name, verb in [*root.commands.items(), *root.commands["eval"].commands.items()]:
        for one in getattr(verb, "params", ()):
            if one.param_type_name == "option":
                yield f"{name} {one.opts[0]}", one


@pytest.mark.parametrize(("name", "option"), [pytest.param(name, one, id=name) for name, one in options()])
def test_help_says_a_default_once(name: str, option: Any) -> None:
    """A value is shown by the parser, and the text is silent; where there is none the text may say what that means."""
    if option.default not in (None, False, [], ()):
        assert "default" not in (option.help or "")
        assert option.show_default, name


SAID = {
    "602,112": f"{MAX_PIXELS:,}",
    "3,072": f"{MAX_PIXELS // PATCH**2:,}",
    "1,000": f"{SHARD_ROWS:,}",
    "20": f"{DEFAULT_LIMIT_GB:g}",
    "Q8_0": local.DEFAULT_QUANT,
    "maxsim": DEFAULT_SCORING,
    "query": DEFAULT_ROLE,
    "auto": DEFAULT_ENGINE,
}
"""What pages and docstrings say of defaults, as it is written, and what they are."""
OF_OTHERS = ("docs/compare.md", "src/nestling/server/api/")
"""Where other projects' defaults are spoken of."""
STATED = re.compile(r"`?([\w.,]*\d[\w.,]*)`?(?: GB)? by default|`(\w+)`,?\s+\(?(?:the )?default[,)]")


def test_what_is_said_of_a_default_is_so() -> None:
    pages = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
    said = [(where, one[0] or one[1]) for where, text in (package() | pages).items() for one in STATED.findall(text)]
    assert len(said) >= len(SAID)
    ours = [(where, value) for where, value in said if not where.startswith(OF_OTHERS)]
    assert [(where, value) for where, value in ours if SAID.get(value) != value] == []
