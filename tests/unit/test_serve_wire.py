"""Request bodies, answers, errors, metrics and the cache: pure functions."""

import base64
import json
import sys
from typing import Any

import numpy as np
import pytest

from nestling.engine.protocol import Item
from nestling.errors import EngineError, ModelNotFoundError, NestlingError, TextError, UsageError
from nestling.server.api import answers, openai
from nestling.server.api.answers import Form
from nestling.server.api.bodies import texts_or_ids
from nestling.server.api.jina import RerankRequest
from nestling.server.api.openai import EmbeddingRequest
from nestling.server.core import cl100k
from nestling.server.core.metrics import Metrics
from nestling.server.core.refusals import BusyError, InvalidError, NotServedError, TooLargeError, UnavailableError
from nestling.server.core.requests import Embedded, Output
from nestling.server.core.result_cache import OVERHEAD_BYTES, ResultCache
from nestling.server.http.problems import Problem, problem_of

ROWS = np.random.default_rng(3).standard_normal((3, 16)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


def written(form: Form) -> list[Any]:
    body = json.loads(b"".join(openai.embeddings(Embedded(ROWS, 12), Output.VECTOR, form=form, model='a "b"')))
    assert body["object"] == "list"
    assert body["model"] == 'a "b"'
    assert body["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    return [item["embedding"] for item in body["data"]]


def test_floats_come_back_exactly() -> None:
    assert np.array_equal(np.array(written(Form.FLOAT), np.float32), ROWS)


def test_a_large_answer_comes_in_pieces_that_make_it_whole() -> None:
    many = np.tile(ROWS, (1000, 10))
    pieces = list(answers.pieces(openai.embeddings(Embedded(many, 1), Output.VECTOR, form=Form.FLOAT, model="m")))
    assert len(pieces) > 1
    assert max(map(len, pieces)) < answers.PIECE_BYTES + 10_000
    data = json.loads(b"".join(pieces))["data"]
    assert np.array_equal(np.array([item["embedding"] for item in data], np.float32), many)


def test_base64_is_little_endian_float32() -> None:
    assert np.array_equal([np.frombuffer(base64.b64decode(one), "<f4") for one in written(Form.BASE64)], ROWS)


def test_int8_keeps_the_direction() -> None:
    whole = np.array(written(Form.INT8))
    assert np.abs(whole).max(axis=1).tolist() == [127, 127, 127]
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    # a component is off by at most half a step of 1/127 of the largest one, 16 of them by at most 4 halves in length
    assert ((unit * ROWS).sum(1) > 1 - (4 * 0.5 / 127) ** 2).all()


def test_binary_is_the_signs_packed_and_shifted() -> None:
    assert np.array_equal(written(Form.UBINARY), np.packbits(ROWS > 0, axis=1))
    assert np.array_equal(np.array(written(Form.BINARY)) + 128, written(Form.UBINARY))


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({}, Form.FLOAT),
        ({"encoding_format": None, "embedding_type": None}, Form.FLOAT),
        ({"encoding_format": "base64"}, Form.BASE64),
        ({"encoding_format": "base64", "embedding_type": "float"}, Form.BASE64),
        ({"encoding_format": "base64", "encoding_type": "int8"}, Form.INT8),
        ({"embedding_type": "base64"}, Form.BASE64),
        ({"embedding_type": "binary", "encoding_type": "binary"}, Form.BINARY),
    ],
)
def test_the_form_of_the_answer(fields: dict[str, Any], form: Form) -> None:
    assert EmbeddingRequest.parse(json.dumps({"input": "a", **fields}).encode()).form is form


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"embedding_type": "float16"}, "embedding_type"),
        ({"embedding_type": ["int8"]}, "embedding_type"),
        ({"dimensions": "64"}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"truncate": "END"}, "truncate"),
        ({"model": 7}, "model"),
        ({"normalized": 1}, "normalized"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidError) as caught:
        EmbeddingRequest.parse(json.dumps({"input": "a", **fields}).encode())
    assert caught.value.param == param


def test_types_that_contradict_each_other_are_refused() -> None:
    request = EmbeddingRequest.parse(b'{"input": "a", "embedding_type": "int8", "encoding_type": "binary"}')
    with pytest.raises(InvalidError, match="contradict"):
        assert request.form


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"return_multivector": True, "dimensions": 16}, "dimensions"),
        ({"return_multivector": True, "normalized": False}, "normalized"),
        ({"return_multivector": True, "late_chunking": True}, "late_chunking"),
        ({"late_chunking": True, "truncate_prompt_tokens": 9}, "truncate_prompt_tokens"),
    ],
)
def test_fields_that_cannot_both_be_honoured_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidError, match="not together") as caught:
        EmbeddingRequest.parse(json.dumps({"input": "a", **fields}).encode()).check_together()
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"return_multivector": False, "late_chunking": False, "dimensions": 16, "normalized": False},
        {"return_multivector": True, "normalized": True, "late_chunking": None, "dimensions": None},
        {"late_chunking": True, "truncate_prompt_tokens": -1, "dimensions": 16, "normalized": False},
    ],
)
def test_fields_at_their_defaults_contradict_nothing(fields: dict[str, Any]) -> None:
    EmbeddingRequest.parse(json.dumps({"input": "a", **fields}).encode()).check_together()


def test_candidates_are_texts_or_objects_with_one() -> None:
    request = RerankRequest.parse(b'{"query": "q", "documents": ["a", {"text": "b", "title": "t"}]}')
    assert request.candidates(most=2) == ["a", "b"]
    with pytest.raises(TooLargeError, match="takes 1 a request"):
        request.candidates(most=1)
    for body, message in ((b"[]", "at least one"), (b'["a", {"title": "b"}]', r"documents\[1\].text")):
        with pytest.raises(InvalidError, match=message):
            RerankRequest.parse(b'{"query": "q", "documents": %b}' % body).candidates(most=9)


def test_an_error_does_not_repeat_the_body() -> None:
    with pytest.raises(InvalidError) as caught:
        EmbeddingRequest.parse(b'{"input": "very secret", "dimensions": "very secret"}')
    assert "secret" not in str(caught.value)


def test_ids_and_texts_are_told_apart() -> None:
    assert texts_or_ids("a", most=1) == ["a"]
    assert texts_or_ids(["a", "b"], most=2) == ["a", "b"]
    assert [one.tolist() for one in texts_or_ids([1, 2], most=1)] == [[1, 2]]  # type: ignore[union-attr]
    assert [one.tolist() for one in texts_or_ids([[1], [2, 3]], most=2)] == [[1], [2, 3]]  # type: ignore[union-attr]
    with pytest.raises(TooLargeError):
        texts_or_ids(["a"] * 3, most=2)


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (TextError("is empty", index=3), 400, "invalid_input", "input"),
        (UsageError("no", param="task"), 400, "invalid_value", "task"),
        (ModelNotFoundError("none"), 404, "model_not_found", "model"),
        (EngineError("nan"), 500, "engine_error", None),
        (NestlingError("else"), 500, "model_error", None),
        (ZeroDivisionError("secret"), 500, "internal_error", None),
        (Problem(429, "full", "overloaded"), 429, "overloaded", None),
        (BusyError("full", retry_after_s=7), 429, "overloaded", None),
        (InvalidError("no", param="task", code="contradiction"), 400, "contradiction", "task"),
        (TooLargeError("much", param="input"), 413, "request_too_large", "input"),
        (NotServedError("none"), 404, "model_not_found", "model"),
        (UnavailableError("loading"), 503, "unavailable", None),
    ],
)
def test_every_exception_has_its_answer(error: Exception, status: int, code: str, param: str | None) -> None:
    problem = problem_of(error)
    inner = json.loads(answers.error(problem))["error"]
    assert (problem.status, inner["code"], inner["param"]) == (status, code, param)
    assert inner["type"] == {429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    assert "secret" not in inner["message"]


def test_metrics_in_prometheus_text_belong_to_one_server() -> None:
    one, other = Metrics(), Metrics()
    one.requests.labels('a"b\\c\n', "200").inc()
    for seconds in (0.0005, 0.001, 0.0015, 60):
        one.stage.labels("queue").observe(seconds)
    one.gauge("nestling_g", "Read", lambda: 1.5)
    lines = one.render().decode().splitlines()
    assert 'nestling_requests_total{path="a\\"b\\\\c\\n",status="200"} 1.0' in lines
    assert 'nestling_stage_seconds_bucket{le="0.001",stage="queue"} 2.0' in lines
    assert 'nestling_stage_seconds_bucket{le="+Inf",stage="queue"} 4.0' in lines
    assert {"# TYPE nestling_stage_seconds histogram", "nestling_g 1.5", "nestling_dropped_texts_total 0.0"} <= {*lines}
    assert not [line for line in lines if "_created" in line]
    assert one.value("nestling_requests_total", path='a"b\\c\n', status="200") == 1
    assert other.value("nestling_requests_total", path='a"b\\c\n', status="200") == 0


def test_the_cache_is_bounded_in_bytes_and_lets_the_oldest_go() -> None:
    ids = [Item(np.array([n], np.int32)) for n in range(3)]
    bound = 2 * (len(ids[0].identity) + ROWS[0].nbytes + OVERHEAD_BYTES)
    cache = ResultCache(bound)
    for one, row in zip(ids[:2], ROWS, strict=False):
        cache.put(b"m", one, row)
    assert cache.get(b"m", ids[0]) is not None
    cache.put(b"m", ids[2], ROWS[2])
    assert cache.get(b"m", ids[1]) is None
    assert np.array_equal(cache.get(b"m", ids[0]), ROWS[0])  # type: ignore[arg-type]
    assert cache.get(b"other", ids[0]) is None
    assert cache.size_bytes <= bound
    off = ResultCache(0)
    off.put(b"m", ids[0], ROWS[0])
    assert off.get(b"m", ids[0]) is None


def test_cl100k_without_its_vocabulary_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    with pytest.raises(UsageError, match=r"nestling\[cl100k\]"):
        cl100k.text_reader()


def test_cl100k_ids_become_texts_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", _Vocabulary)
    read = cl100k.text_reader()
    assert read([[72, 105], [0xE6, 0xB5, 0xB7], [0xE6]]) == ["Hi", "海", "\ufffd"]
    with pytest.raises(TextError, match="input 1"):
        read([[1], [cl100k.VOCABULARY]])


class _Vocabulary:
    """A vocabulary in which each id is its byte."""

    @staticmethod
    def get_encoding(name: str) -> type["_Vocabulary"]:
        assert name == "cl100k_base"
        return _Vocabulary

    @staticmethod
    def decode_bytes(ids: list[int]) -> bytes:
        return bytes(ids)
