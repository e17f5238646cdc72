"""Every default of a command's option that a library call has too is the library's own."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from nestling.bulk import JobSpec, RunOptions
from nestling.cli import build, bulk, embed, evaluate, quantize, rerank
from nestling.evaluation import quality, speed
from nestling.models.embedder import Embedder
from nestling.pipeline.conversion.convert import convert
from nestling.pipeline.quantization.search.search import Chooser

RENAMED = {"engine": "runner"}
"""Options of `bulk` that the library calls otherwise."""
OTHERWISE = {
    "bulk": {"keep": "a list, none is empty", "model": "the library has no default"},
    "quality": {"out": "the library has no default"},
    "speed": {
        "out": "the library has no default", "clients": "none is the library's", "length": "none is the library's",
        "inputs": "none is the library's", "engine": "none is the library's",
    },
}  # fmt: skip


def defaults(call: Callable[..., Any]) -> dict[str, Any]:
    found = inspect.signature(call).parameters.values()
    return {one.name: one.default for one in found if one.default is not inspect.Parameter.empty}


CALLS: list[tuple[Callable[..., Any], list[Callable[..., Any]]]] = [
    (bulk.bulk, [JobSpec, RunOptions]),
    (evaluate.quality, [quality.Settings]),
    (evaluate.speed, [speed.Settings]),
    (rerank.rerank, [Embedder.rerank]),
    (embed.embed, [Embedder.load]),
    (quantize.quantize, [Chooser.choose]),
    (build.convert, [convert]),
]


@pytest.mark.parametrize(("verb", "libraries"), CALLS, ids=lambda one: getattr(one, "__name__", ""))
def test_a_default_is_the_librarys(verb: Callable[..., Any], libraries: list[Callable[..., Any]]) -> None:
    known = {name: value for library in libraries for name, value in defaults(library).items()}
    names = {"quant": "file_type"} if verb is build.convert else RENAMED if verb is bulk.bulk else {}
    compared = 0
    for name, value in defaults(verb).items():
        other = names.get(name, name)
        if other in known and name not in OTHERWISE.get(verb.__name__, {}):
            assert (value or None) == (known[other] or None), name
            compared += 1
    assert compared
