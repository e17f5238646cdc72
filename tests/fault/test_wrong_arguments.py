"""Arguments of a wrong kind: every public method of `Embedder` says what it expects, by a UsageError in one line.

Doors: `load`, `for_task`, `encode`, `encode_query`, `encode_document`, `tokenize`, `embed_ids`, `encode_tokens`,
`embed_tokens`, `encode_chunks`, `chunk`, `rerank`, each with every parameter; null, a text, bytes and a number where
something else is wanted. `test_every_method_is_a_door` keeps the list whole.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nestling.errors import TextError, UsageError
from nestling.inputs.late_chunking import Cut
from nestling.models.embedder import Embedder

LISTS: list[Any] = [None, "abc", b"abc", 3, 2.5]
TEXTS: list[Any] = [None, b"abc", 3, ["a"], "", "a\udce9"]
TEXT_LISTS: list[Any] = [*LISTS, *([one] for one in TEXTS)]
SIZES: list[Any] = ["64", b"64", 2.5, [64], 0, 65, True]
COUNTS: list[Any] = ["3", b"3", 2.5, [3], 0, -1, True]
WORDS: list[Any] = [None, b"query", 3, "answer", ["query"]]
IDS: list[Any] = [*LISTS, [None], ["ab"], [b"ab"], [3], [2.5], [[]], [[1.5]], [[None]], [[1, [2]]], [[-1]], [[10**12]]]
CUTS: list[Any] = ["ab", b"ab", 3, [None], ["ab"], [(0, "b")], [(0, 99)], []]
IMAGES: list[Any] = [None, "abc", b"abc", 3, [None], [3]]
REFERENCES: list[Any] = [None, b"starter", 3, ["starter"]]

DOORS: dict[str, dict[str, list[Any]]] = {
    "encode": {"texts": TEXT_LISTS, "prompt_name": WORDS, "truncate_dim": SIZES},
    "encode_query": {"texts": TEXT_LISTS, "truncate_dim": SIZES},
    "encode_document": {"texts": TEXT_LISTS, "truncate_dim": SIZES},
    "tokenize": {"texts": TEXT_LISTS, "prompt_name": WORDS},
    "encode_tokens": {"texts": TEXT_LISTS, "prompt_name": WORDS},
    "embed_ids": {"ids": IDS, "dimension": SIZES},
    "embed_tokens": {"ids": IDS},
    "encode_chunks": {
        "document": TEXTS, "spans": CUTS, "chunk_tokens": COUNTS, "overlap": [None, "1", 2.5, -1],
        "prompt_name": WORDS, "truncate_dim": SIZES,
    },
    "rerank": {
        "query": TEXTS, "documents": TEXT_LISTS, "top_n": COUNTS, "scoring": [None, b"cosine", 3, "dot"],
    },
    "encode_image": {"images": IMAGES, "truncate_dim": SIZES, "max_pixels": COUNTS},
    "encode_image_tokens": {"images": IMAGES, "max_pixels": COUNTS},
    "items": {"inputs": [*LISTS, [None], [3], [""], ["a\udce9"]], "prompt_name": WORDS},
    "limited": {"max_tokens": [one for one in COUNTS if one is not None]},
    "for_task": {"task": [None, b"code", 3, "clustering"]},
    "load": {"reference": REFERENCES, "engine": [None, b"auto", 3, "fast"], "threads": COUNTS},
}  # fmt: skip
"""Method -> parameter -> values that it cannot take."""
SOUND: dict[str, dict[str, Any]] = {
    "rerank": {"query": "a", "documents": ["b"], "scoring": "cosine"},
    "encode_chunks": {"document": "a beach", "spans": [(0, 7)]},
    "embed_ids": {"ids": [[1, 2]]}, "embed_tokens": {"ids": [[1, 2]]}, "for_task": {"task": "retrieval"},
    "encode_image": {"images": []}, "encode_image_tokens": {"images": []}, "items": {"inputs": ["a"]},
    "limited": {"max_tokens": 64},
}  # fmt: skip
"""What each method takes, other than texts."""
OWN = {
    "close": "takes nothing", "finish": "takes what `pool` made", "chunk_pool": "takes what `chunk` made",
    **dict.fromkeys(("embed", "embed_iter", "pool", "run", "multivectors"), "takes what `items` or `tokenize` made"),
    "pool_chunks": "the server's, takes what `chunk` made", "chunk": "through encode_chunks",
    "own": "the server's, takes what `items` made",
}  # fmt: skip
CASES = [
    pytest.param(method, param, value, id=f"{method}-{param}-{value!r:.20}")
    for method, params in DOORS.items()
    for param, values in params.items()
    for value in values
]


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path]) -> Embedder:
    return Embedder.load(tiny_models["F32"], engine="reference")


@pytest.mark.parametrize(("method", "param", "value"), CASES)
def test_what_it_cannot_be_is_said(
    model: Embedder, tiny_models: dict[str, Path], method: str, param: str, value: object
) -> None:
    sound = {"reference": tiny_models["F32"]} if method == "load" else SOUND.get(method, {"texts": ["a"]})
    if param == "chunk_tokens":
        sound = {"document": "a beach"}
    with pytest.raises(UsageError) as caught:
        getattr(model, method)(**{**sound, param: value})
    assert "\n" not in str(caught.value)


def test_every_method_is_a_door() -> None:
    methods = {name for name, one in inspect.getmembers(Embedder, callable) if not name.startswith("_")}
    assert methods - DOORS.keys() <= OWN.keys()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: model.rerank(None, ["a"]), "query: expected a string, not NoneType"),
        (lambda model: model.rerank("a", None), "documents: expected a list of strings, not None"),
        (lambda model: model.rerank("a", "b"), "documents: expected a list of strings, not a single text"),
        (lambda model: model.encode("a"), "texts: expected a list of strings, not a single text"),
        (lambda model: model.encode(None), "texts: expected a list of strings, not None"),
        (lambda model: model.embed_ids([["ab"]]), "input 0: expected a list of token ids (integers)"),
        (lambda model: model.rerank("a", ["b"], top_n="3"), "top_n='3': expected a whole number"),
        (lambda model: model.load(None), "model: expected a model reference or a path, not NoneType"),
    ],
)
def test_the_message_says_what_is_right(model: Embedder, call: Callable[[Any], object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        call(model)
    assert str(caught.value) == said


def test_a_place_is_counted_in_the_text_as_it_was_given(model: Embedder) -> None:
    """Not with the prefix in front of it."""
    with pytest.raises(TextError, match=r"^input 1: the lone surrogate U\+DCE9 at character 1 cannot"):
        model.encode(["a", "h\udce9llo"])
    with pytest.raises(TextError, match=r"^input 0: the lone surrogate U\+DCE9 at character 1 cannot"):
        model.chunk("h\udce9llo", Cut(chunk_tokens=5))


def test_what_can_be_gone_through_is_a_list(model: Embedder) -> None:
    expected = model.encode(["a", "b"])
    np.testing.assert_array_equal(model.encode(iter(["a", "b"])), expected)  # type: ignore[arg-type]
    np.testing.assert_array_equal(model.encode(np.array(["a", "b"])), expected)  # type: ignore[arg-type]
    ids = model.tokenize(["a", "b"])
    np.testing.assert_array_equal(model.embed_ids([one.tolist() for one in ids]), expected)
    np.testing.assert_array_equal(model.embed_ids([one.astype(np.uint64) for one in ids]), expected)
