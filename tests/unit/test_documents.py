"""The pages: lines that fit a screen, links that lead somewhere, an index of all, and an API page that is today's."""

import inspect
import re
from pathlib import Path

import pytest
from benchmarks import api_page

from nestling.engine import registry
from nestling.engine.names import EngineName
from nestling.formats.quant_types import FILE_TYPES
from nestling.inputs.image import header, pillow
from nestling.pipeline.quantization.file_types import RECIPES

ROOT = Path(__file__).parents[2]
LONGEST = 120
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "data", ROOT / "recipes")
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_is_longer_than_a_screen(page: Path) -> None:
    """Rows of tables, which cannot be broken, and pictures excepted."""
    lines = enumerate(page.read_text("utf-8").splitlines(), 1)
    assert not [
        number for number, line in lines if len(line) > LONGEST and not line.startswith(("| ", "![", "license:"))
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [one for one in LINK.findall(page.read_text("utf-8")) if not re.match(r"[a-z]+:", one)]
    assert not [one for one in targets if not (page.parent / one).exists()]


def test_the_index_has_every_page() -> None:
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text("utf-8")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def test_no_two_decisions_have_one_number() -> None:
    numbers = [path.name.partition("-")[0] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))


def test_the_api_page_is_that_of_the_docstrings() -> None:
    assert api_page.PAGE.read_text("utf-8") == api_page.page(), "python -m benchmarks.api_page"


def test_paths_that_contributing_names_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`((?:src|tests|docs|benchmarks|data|recipes)/[\w./-]+)`", text)
    assert len(named) >= 8
    assert not [one for one in named if not (ROOT / one).exists()]


def test_what_contributing_says_to_touch_is_all_there_is() -> None:
    """File types, engines and decoders: the tables that it names have the same members."""
    assert FILE_TYPES.keys() == RECIPES.keys()
    assert registry._LOADERS.keys() == set(EngineName)
    assert header._SIGNATURES.keys() == header._READERS.keys() == pillow._OPENERS.keys() == set(header.Format)


def test_nothing_names_a_machine_or_a_registry() -> None:
    names = ("constraints.txt", "pyproject.toml", "data/pyproject.toml", "Makefile", ".ci/run")
    assert not [name for name in names if re.search(r"https?://|/home/|/root/", (ROOT / name).read_text("utf-8"))]


def test_every_public_method_documents_its_arguments_what_it_returns_and_raises_and_has_an_example() -> None:
    """A method without arguments needs only an example."""
    for owner in ("Embedder", "compat.JinaEmbeddingsV4"):
        for title, function in api_page.public_functions(owner):
            text = inspect.getdoc(function) or ""
            names = [name for name in inspect.signature(function).parameters if name not in {"self", "cls"}]
            sections = ("Args:", "Raises:", "Example:") if names else ("Example:",)
            assert not [section for section in sections if section not in text], title
            assert not names or "Returns:" in text or "Yields:" in text, title
            assert not [name for name in names if not re.search(rf"^    {name}: ", text, re.MULTILINE)], title
