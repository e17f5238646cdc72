"""The commands and the specification of docs/models.md, and of a published card, are ones that there are."""

import re
from pathlib import Path

import pytest
import typer.main

from nestling.cli.commands import app
from nestling.models import hub_models, local
from nestling.models.families import read_spec
from nestling.spec import Pooling, Task

DOC = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
COMMANDS = re.findall(r"^    nestling (.+?)(?: +#.*)?$", DOC, re.MULTILINE)
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    verb, *words = command.split()
    options = {name for parameter in VERBS[verb].params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= options


def test_every_new_verb_is_shown() -> None:
    assert {"pull", "show", "rm", "publish", "list", "verify", "build"} <= {command.split()[0] for command in COMMANDS}


@pytest.mark.parametrize("reference", [command.split()[1] for command in COMMANDS if command.startswith("pull ")])
def test_every_reference_can_be_pulled(reference: str) -> None:
    repositories = [one.repository for one in hub_models.references(reference)]
    assert repositories[0] == "jinaai/jina-embeddings-v4-text-retrieval-GGUF"
    assert len(repositories) == (3 if reference.startswith("jina-v4:") else 1)


def test_the_specification_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", DOC, re.DOTALL)
    (tmp_path / "spec.json").write_text(block, "utf-8")
    spec = read_spec(tmp_path / "spec.json")
    assert (spec.task, spec.pooling, spec.dimensions[-1]) == (Task.CODE, Pooling.LAST, 896)


def test_the_default_file_type_is_the_one_that_is_said() -> None:
    assert f"without a file type {local.DEFAULT_QUANT}" in DOC
