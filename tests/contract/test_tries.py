"""The tries on the server's page are true: through a real server, what is sought is first, by the gap that is claimed.

Which tries those are is chosen by `benchmarks.tries` among its candidates.
"""

import json
import sys
from dataclasses import asdict
from typing import Any

import httpx
import pytest
from benchmarks.tries import LEAST, PICTURED, SHOWN, chosen, gap
from benchmarks.tries_candidates import CANDIDATES, Try
from tests.contract.conftest import Served

from nestling._util.data import data_folder
from nestling.server import pages
from nestling.spec import Task

TRIES: list[dict[str, Any]] = json.loads(pages.TRIES.read_text("utf-8"))


@pytest.mark.parametrize("one", TRIES, ids=lambda one: str(one["title"]))
def test_what_is_sought_is_first_by_the_gap_that_is_claimed(served: Served, one: dict[str, Any]) -> None:
    assert 0 < one["gap"] <= gap(served.url, "starter", one)


def test_the_server_hands_out_the_tries_with_their_pictures(served: Served) -> None:
    given = httpx.get(f"{served.url}/tries").json()
    assert [one["query"] for one in given] == [one["query"] for one in TRIES]
    assert [len(one["images"]) for one in given] == [len(one["images"]) for one in TRIES]


def test_five_for_search_and_code_two_of_them_with_pictures() -> None:
    assert len(TRIES) == SHOWN
    assert {one["task"] for one in TRIES} >= {Task.RETRIEVAL, Task.CODE}
    assert sum(bool(one["images"]) for one in TRIES) == PICTURED


def test_without_the_data_there_are_no_tries_with_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = "sets/emoji-names/images/e52.png"
    rows = [{"query": "a", "images": []}, {"query": "b", "images": [picture]}]
    [text, shown] = pages.whole(rows)
    assert text["images"] == []
    assert shown["images"][0].keys() == {"text", "uri", "base64"}
    monkeypatch.setitem(sys.modules, "nestling_data", None)
    assert pages.whole(rows) == rows[:1]


def test_without_pillow_there_are_no_tries_with_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(pages.TRIES.read_text("utf-8"))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert pages.whole(rows) == [one for one in rows if not one["images"]]


def test_candidates_are_whole() -> None:
    data = data_folder(".", wanted_for="this test")
    for one in CANDIDATES:
        count = len(one.passages) + len(one.images)
        assert 0 < len(one.answers) < count, one
        assert all(0 <= answer < count for answer in one.answers), one
        assert not [text for text in one.passages if "\n" in text], "a line of the page's field each"
        assert not [file for file in one.images if not (data / file).is_file()], one


def _shown(kind: str, n: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Passages or pictures, the first of which is sought: those of p and q are the same."""
    return (("x", "y"), ()) if len(kind) == 1 else ((), (f"{kind[:5]}{n}", "z"))


def test_the_best_of_each_kind_is_chosen_and_none_that_does_not_hold() -> None:
    kinds = ("a", "b", "c", "d", "e", "f", "emoji: p", "emoji: q", "page")
    every = [Try(kind, f"{kind[-1]}{n}", "", "code", "", (0,), *_shown(kind, n)) for kind in kinds for n in range(3)]
    gaps = dict.fromkeys((one.title for one in every), 0.2)
    gaps |= {"b1": 0.3, "p1": 0.3, "q1": 0.5, "q2": 0.4} | dict.fromkeys(
        ("c0", "c1", "c2"), LEAST / 2
    )  # c does not hold
    gaps |= {"d0": -0.1, "d1": -0.1, "d2": 0.9}  # d is mostly wrong
    rows = chosen([(one, gaps[one.title]) for one in every])
    assert [row["title"] for row in rows] == ["a0", "b1", "e0", "q2", "e0"], "q1 has p1's picture"
    assert [row["gap"] for row in rows] == [0.16, 0.24, 0.16, 0.32, 0.16]
    assert rows[0].keys() == asdict(every[0]).keys() - {"kind"} | {"gap"}
    assert [bool(row["images"]) for row in rows] == [False] * 3 + [True] * 2, "an emoji and a page"
    rows = chosen([(one, gaps[one.title]) for one in every if one.kind != "page"])
    assert [row["title"] for row in rows] == ["a0", "b1", "e0", "q2", "p1"]
    rows = chosen([(one, gaps[one.title]) for one in every if not one.images])
    assert [row["title"] for row in rows] == ["a0", "b1", "e0", "f0"], "all that hold"
