import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import FileFormatError, UsageError
from nestling.spec import ModelSpec, Pooling, Role, Task, prefixes_for

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
    with pytest.raises(UsageError, match="trained for 128, 256, 2048") as caught:
        SPEC.dimension(wanted)
    assert caught.value.param == "dimensions"


def test_true_is_not_the_dimension_one() -> None:
    with pytest.raises(UsageError):
        ModelSpec("f", Task.CODE, (1, 2), 1).dimension(True)  # noqa: FBT003 - the wrong type is the point


@given(
    st.builds(
        ModelSpec,
        st.text(),
        st.sampled_from(Task),
        st.sets(st.integers(1, 1 << 20), min_size=1).map(lambda sizes: tuple(sorted(sizes))),
        st.integers(1, 1 << 30),
        st.fixed_dictionaries({"query": st.text(), "passage": st.text()}),
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
    "max_tokens is infinite": changed(max_tokens=77).replace("77", "1e400"),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match=r"^nestling\.spec: "):
        ModelSpec.from_json(text)
