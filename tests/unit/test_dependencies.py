"""What the package imports is what `pyproject.toml` declares: the core's anywhere, an extra's in its homes."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "nestling"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
HOMES = {"engine/torch": ("gpu",), "server": ("serve",), "bulk": ("bulk",), "evaluation": ("eval",)}
"""Package -> the extras without which none of it can be imported."""
OWN_HOMES = {
    "bulk/lance.py": ("lance",),
    "bulk/ray.py": ("ray",),
    "evaluation/mteb_model.py": ("mteb",),
    "inputs/image/pillow.py": ("images",),
    "server/http/tracing.py": ("otel",),
    "server/ray_serve.py": ("ray",),
}
NOT_INSTALLED = {"mteb": "mteb", "triton": "torch"}
"""Module -> distribution, of what the development environment leaves out, or comes with another (torch's triton)."""


def distribution(requirement: str) -> str:
    """`Name[extra]>=1` -> `name`, as pip compares names."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def declared(extra: str) -> set[str]:
    """The distributions of an extra, and of the extras of ours that it names."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if requirement.startswith("nestling["):
            inner = requirement.removeprefix("nestling[").partition("]")[0].split(",")
            names |= {name for one in inner for name in declared(one)}
        else:
            names.add(distribution(requirement))
    return names


CORE = {distribution(one) for one in PROJECT["dependencies"]}
DISTRIBUTIONS = {module: {distribution(one) for one in names} for module, names in packages_distributions().items()} | {
    module: {name} for module, name in NOT_INSTALLED.items()
}


def is_for_types(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:`, whose imports are never run."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> Iterator[str]:
    """The top-level packages that a module imports, wherever in it; neither ours nor Python's own."""
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {below for node in ast.walk(tree) if is_for_types(node) for below in ast.walk(node)}
    for node in set(ast.walk(tree)) - for_types:
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        tops = {name.partition(".")[0] for name in names}
        yield from (top for top in tops if top not in sys.stdlib_module_names and top not in ("nestling", ""))


def allowed(path: Path) -> set[str]:
    place = path.relative_to(SOURCE).as_posix()
    extras = (
        *(one for home, names in HOMES.items() if place.startswith(home + "/") for one in names),
        *OWN_HOMES.get(place, ()),
    )
    return CORE.union(*map(declared, extras))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_what_is_imported_is_declared(path: Path) -> None:
    foreign = {name for name in imports(path) if not DISTRIBUTIONS.get(name, {name}) & allowed(path)}
    assert not foreign, "declare it in pyproject.toml, or import it with nestling._util.extras.need"


def test_what_is_declared_is_imported() -> None:
    used = {name for path in SOURCE.rglob("*.py") for name in imports(path)}
    text = "".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    used |= set(re.findall(r'need\(\s*"([a-z_0-9]+)', text))
    wanted = CORE.union(*(declared(extra) for extra in PROJECT["optional-dependencies"] if extra not in ("dev", "all")))
    found = set().union(*(DISTRIBUTIONS.get(name, {distribution(name)}) for name in used))
    assert wanted <= found | {"nestling-data"}


def test_the_extra_for_everything_has_every_other_but_those_that_bring_torch() -> None:
    every = {name for name in PROJECT["optional-dependencies"] if name not in ("all", "dev", "gpu", "mteb")}
    assert declared("all") == set().union(*map(declared, every))


@pytest.mark.parametrize("name", ["openvino", "uvicorn", "huggingface-hub"])
def test_packages_whose_private_parts_are_used_have_an_upper_bound(name: str) -> None:
    every = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    found = [one for one in every if distribution(one) == name]
    assert found
    assert all("<" in one for one in found)


def test_every_dependency_has_an_exact_version_in_the_constraints() -> None:
    pinned = {distribution(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    assert declared("dev") | CORE <= pinned | {"nestling"}
