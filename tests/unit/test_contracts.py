"""The import contracts of `pyproject.toml` catch what they are for: each is broken once, in a copy of the package.

Doors: an import upwards in every package with layers, a module that no layer names, a heavy package imported outside
its home, a package with modules that no contract covers, and a heavy package without a contract.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "nestling"
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
    "contracts"
]
LAYERS = [one for one in CONTRACTS if one["type"] == "layers"]
HOMES = [one for one in CONTRACTS if one["type"] == "protected"]
HEAVY = {
    "PIL", "huggingface_hub", "lancedb", "matplotlib", "mteb", "openvino", "prometheus_client", "ray", "scipy", "torch",
    "starlette", "triton", "uvicorn", "xllamacpp", "yaml",
}  # fmt: skip
SMALL = {"nestling._util"}
"""Packages of modules that do not know each other, which need no order."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(SOURCE, tmp_path / "nestling", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def verdict(copy: Path) -> str:
    """What import-linter says about the copy, on one line."""
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=copy,
        env={"PYTHONPATH": str(copy), "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return " ".join((done.stdout + done.stderr).split())


def members(layer: str) -> list[str]:
    return [one.strip(" ()") for one in re.split(r"[|:]", layer)]


def ends(contract: dict[str, Any]) -> tuple[str, str]:
    """A module of the lowest layer and one of the highest, by their whole names."""
    [container] = contract["containers"]
    lowest, highest = members(contract["layers"][-1])[0], members(contract["layers"][0])[0]
    return f"{container}.{lowest}", f"{container}.{highest}"


def append(copy: Path, module: str, line: str) -> None:
    path = copy.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    file.write_text(f"{file.read_text('utf-8')}\n{line}\n", "utf-8")


def test_the_package_keeps_them_all(copy: Path) -> None:
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in verdict(copy)


def test_an_import_upwards_is_caught_in_every_package_with_layers(copy: Path) -> None:
    for contract in LAYERS:
        low, high = ends(contract)
        append(copy, low, f"import {high}")
    said = verdict(copy)
    for contract in LAYERS:
        assert f"{contract['name']} BROKEN" in said
        low, high = ends(contract)
        assert re.search(rf"- {re.escape(low)}[.\w]* -> {re.escape(high)}[.\w]* ", said), f"{low} -> {high}"


def test_a_module_that_nobody_has_placed_is_caught_in_every_package(copy: Path) -> None:
    for contract in LAYERS:
        [container] = contract["containers"]
        (copy.joinpath(*container.split(".")) / "stray.py").write_text("")
    said = verdict(copy)
    assert {one["name"] for one in LAYERS if f"{one['name']} BROKEN" in said} == {one["name"] for one in LAYERS}


def test_a_heavy_package_outside_its_home_is_caught(copy: Path) -> None:
    for contract in HOMES:
        for name in contract["protected_modules"]:
            append(copy, "nestling.errors", f"import {name}")
    said = verdict(copy)
    assert {one["name"] for one in HOMES if f"{one['name']} BROKEN" in said} == {one["name"] for one in HOMES}


def test_every_contract_on_layers_is_exhaustive() -> None:
    assert all(one.get("exhaustive") and not one.get("exhaustive_ignores") for one in LAYERS)


def test_every_package_with_modules_has_a_contract() -> None:
    covered = {name for one in LAYERS for name in one["containers"]} | SMALL
    packages = {path.parent for path in SOURCE.rglob("__init__.py") if len(list(path.parent.glob("*.py"))) > 2}
    assert {"nestling" + str(one.relative_to(SOURCE.parent)).replace("/", ".")[8:] for one in packages} <= covered


def test_every_heavy_package_that_is_imported_has_a_home() -> None:
    used = {name for path in SOURCE.rglob("*.py") for name in imported(path)} & HEAVY
    assert used <= {name for one in HOMES for name in one["protected_modules"]}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
