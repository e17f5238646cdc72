"""Which model, task and role a request means."""

from pathlib import Path
from typing import Any

import pytest

from nestling.errors import UsageError
from nestling.server.core.catalog import Catalog, Target
from nestling.server.core.refusals import InvalidError, NotServedError
from nestling.spec import ModelSpec, Role, Task, prefixes_for


def specs_of_file(_path: str) -> list[ModelSpec]:
    return [ModelSpec("own", Task.CODE, (16,), 512, prefixes_for(Task.CODE))]


def catalog(*references: str, **more: Any) -> Catalog:
    return Catalog(references, specs_of_file=specs_of_file, **more)


@pytest.mark.parametrize(
    ("model", "reference", "role"),
    [
        (None, "starter-retrieval:Q8_0", None),
        ("starter", "starter-retrieval:Q8_0", None),
        ("starter-code", "starter-code:Q8_0", None),
        ("starter/code", "starter-code:Q8_0", None),
        ("starter/retrieval.passage", "starter-retrieval:Q8_0", Role.PASSAGE),
        ("starter/retrieval.document", "starter-retrieval:Q8_0", Role.PASSAGE),
        ("starter-retrieval/retrieval.query", "starter-retrieval:Q8_0", Role.QUERY),
        ("starter-retrieval:Q4_K_M", "starter-retrieval:Q4_K_M", None),
        ("starter:Q4_K_M/text-matching", "starter-text-matching:Q4_K_M", None),
        ("starter/matching", "starter-text-matching:Q8_0", None),
    ],
)
def test_model_strings(model: str | None, reference: str, role: Role | None) -> None:
    found = catalog("starter").target(model)
    assert (found.reference, found.role) == (reference, role)


def test_fields_fill_in_what_the_model_leaves_open() -> None:
    found = catalog("starter").target("starter", task="code.passage")
    assert found == Target("starter-code:Q8_0", Role.PASSAGE, Task.CODE)
    found = catalog("starter").target(None, task="code", roles={"prompt_name": None, "input_type": "document"})
    assert found == Target("starter-code:Q8_0", Role.PASSAGE, Task.CODE)


@pytest.mark.parametrize(
    ("model", "task", "roles"),
    [
        ("starter-code", "retrieval", {}),
        ("starter/code", "retrieval", {}),
        ("starter-code/retrieval", None, {}),
        ("starter/retrieval.query", None, {"prompt_name": "passage"}),
        ("starter", "retrieval.query", {"input_type": "passage"}),
        ("starter", None, {"prompt_name": "query", "input_type": "passage"}),
    ],
)
def test_contradictions_are_refused(model: str, task: str | None, roles: dict[str, str | None]) -> None:
    with pytest.raises(InvalidError, match="contradict") as caught:
        catalog("starter").target(model, task=task, roles=roles)
    assert caught.value.code == "contradiction"


@pytest.mark.parametrize(
    "model", ["gpt", "starter-nope", "starter:Q9", "starter/", "other", "a" * 10_000, "/", "starter:"]
)
def test_a_name_that_is_not_served_is_404_or_400(model: str) -> None:
    with pytest.raises((NotServedError, UsageError)) as caught:
        catalog("starter").target(model)
    assert len(str(caught.value)) < 500


def test_values_that_are_no_task_or_role_name_their_field() -> None:
    for task, roles, param in (("x", {}, "task"), (None, {"input_type": "x"}, "input_type"), ("code.x", {}, "task")):
        with pytest.raises(UsageError, match=param) as caught:
            catalog("starter").target(None, task=task, roles=roles)
        assert caught.value.param == param


def test_one_task_or_type_served_is_all_that_is_answered() -> None:
    one = catalog("starter-code:Q8_0")
    assert one.target("starter").reference == "starter-code:Q8_0"
    assert one.target("starter-code").reference == "starter-code:Q8_0"
    for other in ("starter-retrieval", "starter-code:Q4_K_M"):
        with pytest.raises(NotServedError):
            one.target(other)


def test_a_file_is_known_by_its_path_its_stem_and_its_specification() -> None:
    path = "some/folder/mine.gguf"
    files = catalog(path, "starter")
    for name in (None, path, "mine", "own-code", "mine/code.passage"):
        assert files.target(name).reference == path
    assert files.target("starter").reference == "starter-retrieval:Q8_0"


def test_aliases_mean_what_the_operator_said_and_are_checked_at_the_start() -> None:
    named = catalog("starter", aliases={"text-embedding-3-small": "starter/code.passage"})
    assert named.target("text-embedding-3-small") == Target("starter-code:Q8_0", Role.PASSAGE, Task.CODE)
    with pytest.raises(UsageError, match="alias x"):
        catalog("starter", aliases={"x": "nope"})


def test_a_type_of_another_family_is_answered_only_if_its_file_is_here(cache_folder: Path) -> None:
    assert cache_folder.is_dir()
    own = catalog("own-family")
    assert own.target("own-family-code").reference == "own-family-code:Q8_0"
    with pytest.raises(NotServedError):
        own.target("own-family-code:Q4_K_M")


def test_with_adapters_every_task_is_the_base() -> None:
    offered = catalog("starter", adapters=True)
    for name, task in (("starter", Task.RETRIEVAL), ("starter-code", Task.CODE), ("starter/code.query", Task.CODE)):
        found = offered.target(name)
        assert (found.reference, found.task) == ("starter-base:Q8_0", task)
    assert offered.target("starter-base", task="code").task is Task.CODE
    assert offered.default.name == "starter"


def test_a_base_is_served_by_its_own_name_too() -> None:
    assert catalog("starter-base:Q4_K_M").target("starter-code").reference == "starter-base:Q4_K_M"
    with pytest.raises(NotServedError):
        catalog("starter").target("starter-base")


def test_adapters_are_for_families() -> None:
    with pytest.raises(UsageError, match="adapters: model='starter-code' is one task's"):
        catalog("starter-code", adapters=True)


def test_the_file_of_a_base_serves_all_tasks() -> None:
    def three(_path: str) -> list[ModelSpec]:
        return [ModelSpec("own", task, (16,), 512, prefixes_for(task)) for task in Task]

    offered = Catalog(["own-text-base-Q8_0.gguf"], specs_of_file=three)
    for name in ("own", "own-text-base-Q8_0"):
        found = offered.target(f"{name}/code")
        assert (found.reference, found.task) == ("own-text-base-Q8_0.gguf", Task.CODE)
    with pytest.raises(NotServedError):
        offered.target("own:Q4_K_M")


@pytest.mark.parametrize(
    ("model", "reference", "role"),
    [
        ("starter:latest", "starter-retrieval:Q8_0", None),
        ("starter:latest/retrieval.passage", "starter-retrieval:Q8_0", Role.PASSAGE),
        ("starter/retrieval.passage:latest", "starter-retrieval:Q8_0", Role.PASSAGE),
        ("gpt", "starter-code:Q8_0", None),
        ("gpt:latest", "starter-code:Q8_0", None),
        ("gpt/code.passage", "starter-code:Q8_0", Role.PASSAGE),
        ("gpt:latest/code.passage", "starter-code:Q8_0", Role.PASSAGE),
        ("org/name", "starter-retrieval:Q8_0", None),
        ("org/name/retrieval.query", "starter-retrieval:Q8_0", Role.QUERY),
        ("tagged:latest", "starter-text-matching:Q8_0", None),
    ],
)
def test_every_name_may_end_in_latest_and_an_alias_takes_a_role(model: str, reference: str, role: Role | None) -> None:
    aliases = {"gpt": "starter-code", "org/name": "starter", "tagged:latest": "starter-text-matching"}
    found = catalog("starter", aliases=aliases).target(model)
    assert (found.reference, found.role) == (reference, role)


def test_aliases_are_replaced_all_or_not_at_all() -> None:
    names = catalog("starter", aliases={"a": "starter-code"})
    names.rename({"b": "starter"})
    assert names.aliases == {"b": "starter"}
    for wrong in ({"c": "absent"}, {"c": "b"}):
        with pytest.raises(UsageError, match="alias c: model="):
            names.rename(wrong)
        assert names.aliases == {"b": "starter"}
