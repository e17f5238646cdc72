import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import FileFormatError, UsageError
from nestling.formats.mmproj import tower_path
from nestling.formats.multivector_head import projector_path
from nestling.models import local
from nestling.pipeline.pipeline import model_path
from nestling.spec import ModelSpec, Pooling, Role, Task, checked_family, prefixes_for

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = ModelSpec("jina-v4", Task.CODE, (128, 256, 2048), 32768, prefixes_for(Task.CODE), source="sha256:ab")


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("retrieval", Task.RETRIEVAL),
        ("text-matching", Task.TEXT_MATCHING),
        ("matching", Task.TEXT_MATCHING),
        ("code", Task.CODE),
    ],
)
def test_tasks_are_parsed(text: str, task: Task) -> None:
    assert Task.parse(text) is task


@pytest.mark.parametrize("text", ["", "Retrieval", "retrieval.query", "clustering", "text_matching"])
def test_other_tasks_are_refused_with_the_right_ones(text: str) -> None:
    with pytest.raises(UsageError, match="retrieval, text-matching, code") as caught:
        Task.parse(text)
    assert caught.value.param == "task"


def test_file_names_use_the_published_words() -> None:
    assert [task.stem for task in Task] == ["retrieval", "matching", "code"]


@pytest.mark.parametrize(
    ("text", "role"),
    [("query", Role.QUERY), ("passage", Role.PASSAGE), ("document", Role.PASSAGE), ("raw", Role.RAW)],
)
def test_roles_are_parsed(text: str, role: Role) -> None:
    assert Role.parse(text) is role


@pytest.mark.parametrize("text", ["", "Query", "doc"])
def test_other_roles_are_refused_with_the_right_ones(text: str) -> None:
    with pytest.raises(UsageError, match="query, passage, raw") as caught:
        Role.parse(text)
    assert caught.value.param == "prompt_name"


@pytest.mark.parametrize(
    ("task", "query", "passage"),
    [
        (Task.RETRIEVAL, "Query: ", "Passage: "),
        (Task.CODE, "Query: ", "Passage: "),
        (Task.TEXT_MATCHING, "Query: ", "Query: "),
    ],
)
def test_the_published_prefixes(task: Task, query: str, passage: str) -> None:
    spec = ModelSpec("f", task, (8,), 1, prefixes_for(task))
    assert [spec.prefix(role) for role in (Role.QUERY, Role.PASSAGE, Role.RAW)] == [query, passage, ""]


def test_pooling_numbers_are_those_of_llama_cpp() -> None:
    assert {kind.value: kind.gguf_value for kind in Pooling} == {"mean": 1, "last": 3}


def test_the_name_is_family_and_task() -> None:
    assert SPEC.name == "jina-v4-code"


def test_no_dimension_is_the_full_width() -> None:
    assert SPEC.dimension(None) == 2048


@pytest.mark.parametrize("wanted", [128, np.int64(128), 128.0])
def test_a_trained_dimension_comes_back_as_an_int(wanted: Any) -> None:
    found = SPEC.dimension(wanted)
    assert (found, type(found)) == (128, int)


@pytest.mark.parametrize("wanted", [0, -1, 1, 127, 2049, 4096, True, 128.5, "128"])
def test_an_untrained_dimension_is_refused_with_the_trained_ones(wanted: Any) -> None:
    with pytest.raises(UsageError, match="expected one of 128, 256, 2048") as caught:
        SPEC.dimension(wanted)
    assert caught.value.param == "dimensions"


def test_true_is_not_the_dimension_one() -> None:
    with pytest.raises(UsageError):
        ModelSpec("f", Task.CODE, (1, 2), 1).dimension(True)  # noqa: FBT003 - the wrong type is the point


@given(
    st.builds(
        ModelSpec,
        st.from_regex(r"[A-Za-z0-9]([._-]?[A-Za-z0-9]){0,30}", fullmatch=True),
        st.sampled_from(Task),
        st.sets(st.integers(1, 1 << 16), min_size=1).map(lambda sizes: tuple(sorted(sizes))),
        st.integers(1, 1 << 20),
        st.fixed_dictionaries({"query": st.text(), "passage": st.text(max_size=1000)}),
        st.sampled_from(Pooling),
        st.text(),
    )
)
def test_json_round_trip(spec: ModelSpec) -> None:
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()


def changed(**values: Any) -> str:
    return json.dumps(json.loads(SPEC.to_json()) | values)


MALFORMED = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "null": "null",
    "a number": "1",
    "nothing in it": "{}",
    "nested beyond the parser's depth": "[" * 100_000,
    "unknown task": changed(task="clustering"),
    "unknown pooling": changed(pooling="max"),
    "unknown role": changed(prefixes={"query": "", "passage": "", "other": ""}),
    "prefixes are a list": changed(prefixes=[]),
    "prefixes are missing": changed(prefixes={"query": ""}),
    "a prefix is a number": changed(prefixes={"query": 1, "passage": ""}),
    "dimensions are empty": changed(dimensions=[]),
    "dimensions are a text": changed(dimensions="128"),
    "a dimension is zero": changed(dimensions=[0, 128]),
    "a dimension is negative": changed(dimensions=[-8]),
    "a dimension is a fraction": changed(dimensions=[1.5]),
    "a dimension is infinite": changed(dimensions=[128]).replace("128", "1e400"),
    "max_tokens is zero": changed(max_tokens=0),
    "max_tokens is a text": changed(max_tokens="many"),
    "a family leads elsewhere": changed(family="../../../../tmp/x"),
    "a family has a slash": changed(family="a/b"),
    "a family has two dots in a row": changed(family="a..b"),
    "a family is empty": changed(family=""),
    "a family is long": changed(family="a" * 65),
    "a family is hidden": changed(family=".ssh"),
    "a family ends its line": changed(family="a\n"),
    "a family is not ASCII": changed(family="ü"),
    "a dimension stands twice": changed(dimensions=[128, 128]),
    "dimensions descend": changed(dimensions=[256, 128]),
    "a dimension is huge": changed(dimensions=[1 << 17]),
    "max_tokens is huge": changed(max_tokens=10**30),
    "a prefix is long": changed(prefixes={"query": "x" * 1001, "passage": ""}),
    "a prefix has no UTF-8 form": changed(prefixes={"query": "\ud800", "passage": ""}),
    "a source is long": changed(source="x" * 1001),
    "max_tokens is infinite": changed(max_tokens=77).replace("77", "1e400"),
}


@pytest.mark.parametrize("name", ["jina-v4", "a.b_c-1", "Q", "1"])
def test_a_familys_name_is_safe_everywhere(name: str) -> None:
    assert checked_family(name) == name


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", "-a", ".a", "a b", "a..b", "a" * 65])
def test_an_unsafe_name_of_a_family_is_refused_where_files_are_named(name: str) -> None:
    """Doors: everything that makes a path or a URL of a family's name."""
    doors: list[Callable[[], object]] = [
        lambda: checked_family(name),
        lambda: local.family_folder(name),
        lambda: model_path(Path(), family=name, task=Task.CODE, file_type="F16"),
        lambda: projector_path(Path(), family=name, task=Task.CODE),
        lambda: tower_path(Path(), name),
    ]
    for door in doors:
        with pytest.raises(UsageError, match=r"family=.*that begin with a letter or digit") as caught:
            door()
        assert caught.value.param == "family"


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match=r"^nestling\.spec: "):
        ModelSpec.from_json(text)
