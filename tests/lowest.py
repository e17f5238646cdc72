"""Print the requirements of the unit tests with every dependency of the package at the lowest version allowed.

    python tests/lowest.py > requirements.txt

Lowest is what `>=` names; the tools of the extra `dev` are as in constraints.txt, and so is torch, of which every
version is gigabytes. The standard library alone.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "gguf", "openai", "torch", "triton")
LEFT_OUT = ("all", "data", "dev", "gpu", "mteb")
"""Extras of others, the tools, and those that bring torch."""


def lowest() -> Iterator[str]:
    """One requirement a line: `name>=1.2,<2` -> `name==1.2`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in extras if extra not in LEFT_OUT for one in extras[extra])]
    for requirement in dict.fromkeys(wanted):
        if not requirement.startswith("nestling["):
            yield re.sub(r"(==|>=)([^,]+).*", r"==\2", requirement)


def tools() -> Iterator[str]:
    """The lines of constraints.txt for what runs the tests."""
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line.partition("==")[0].lower() in TOOLS:
            yield line


if __name__ == "__main__":
    print(*sorted({*lowest(), *tools()}), sep="\n")  # noqa: T201 - the output
