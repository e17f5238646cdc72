"""Answers and errors of every dialect, field by field as recorded: tests/contract/dialect_examples.py."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.contract.conftest import Served
from tests.contract.dialect_examples import ANYTHING, EXAMPLES, REFUSALS, Example, Refusal

from nestling.server.api.registry import DIALECTS


def test_every_route_of_every_dialect_has_an_example_and_every_dialect_an_error() -> None:
    routes = {(dialect.name, route.path) for dialect in DIALECTS for route in dialect.routes}
    assert {(one.dialect, one.path) for one in EXAMPLES} == routes
    assert {one.dialect for one in REFUSALS} == {dialect.name for dialect in DIALECTS}


@pytest.mark.parametrize("prefixed", [False, True], ids=["shared path", "prefix"])
@pytest.mark.parametrize("one", EXAMPLES, ids=lambda one: f"{one.dialect} {one.path}")
def test_an_answer_has_the_recorded_shape(served: Served, one: Example, *, prefixed: bool) -> None:
    url = f"{served.url}/{one.dialect}{one.url}" if prefixed else served.url + one.url
    answer = httpx.get(url) if one.body is None else httpx.post(url, json=one.body, timeout=60)
    assert answer.status_code == 200, answer.text[:300]
    assert list(differences(answer.json(), one.answer, one.more)) == []


@pytest.mark.parametrize("one", REFUSALS, ids=lambda one: f"{one.url} {str(one.body)[:40]}")
def test_an_error_has_the_recorded_status_and_shape(served: Served, one: Refusal) -> None:
    answer = httpx.post(served.url + one.url, json=one.body, timeout=60)
    assert answer.status_code == one.status, answer.text[:300]
    assert list(differences(answer.json(), one.answer, frozenset())) == []


def differences(found: Any, recorded: Any, more: frozenset[str], place: str = "") -> Iterator[str]:
    """Where a value is not of the recorded shape; of lists, all that was found is compared with the first recorded."""
    if recorded is ANYTHING:
        return
    if kind(found) != kind(recorded):
        yield f"{place}: {kind(found)}, recorded {kind(recorded)}"
    elif isinstance(recorded, dict):
        yield from (f"{place}.{name}: missing" for name in recorded.keys() - found.keys())
        yield from (f"{place}.{name}: not recorded" for name in found.keys() - recorded.keys() - more)
        for name in recorded.keys() & found.keys():
            yield from differences(found[name], recorded[name], more, f"{place}.{name}")
    elif isinstance(recorded, list):
        if not found and not place.endswith(".families"):  # nothing is known of a file that is not built yet
            yield f"{place}: an empty list"
        for index, item in enumerate(found):
            yield from differences(item, recorded[0], more, f"{place}[{index}]")


def kind(value: Any) -> str:
    """The JSON type of a value."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
