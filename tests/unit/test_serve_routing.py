"""Which dialect a request is in: by path, by the fields of its body, by prefix, by the operator's choice."""

from collections.abc import AsyncGenerator

import pytest
from tests.contract.serving import fake_embedder, fake_spec, loader, settings

from nestling.errors import UsageError
from nestling.server.api.bodies import Body
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.api.registry import DIALECTS
from nestling.server.api.routing import speakers, spoken_for
from nestling.server.app import create_app
from nestling.server.core.inputs import doubled, tokenized
from nestling.server.core.requests import Reading
from nestling.spec import Role


async def _nothing(_call: Call) -> AsyncGenerator[bytes, None]:
    yield b""


def dialect(name: str, *claims: str) -> Dialect:
    route = Route("/rerank", _nothing, "", body=Body, claims=frozenset(claims))
    return Dialect(name, (route,), lambda problem: problem.message.encode())


PLAIN, TEXTS, TOP = dialect("plain"), dialect("texts", "texts"), dialect("top", "top_k", "truncation")


@pytest.mark.parametrize(
    ("body", "preferred", "name"),
    [
        (b'{"query": "a", "documents": []}', None, "plain"),
        (b'{"query": "a", "texts": []}', None, "texts"),
        (b'{"query": "a", "top_k": null}', None, "top"),
        (b'{"query": "a"}', "top", "plain"),
        (b'{"query": "a", "texts": [], "top_k": 1}', "top", "top"),
        (b'{"query": "a", "texts": []}', "top", "texts"),
        (b"not JSON", None, "plain"),
        (b"not JSON", "texts", "texts"),
        (b'["texts"]', None, "plain"),
    ],
)
def test_the_body_decides(body: bytes, preferred: str | None, name: str) -> None:
    spoken = speakers([PLAIN, TEXTS, TOP], preferred)["/rerank", "POST"]
    assert spoken_for(spoken, body).dialect.name == name


def test_below_its_prefix_a_dialect_is_alone() -> None:
    found = speakers([PLAIN, TEXTS, TOP])
    assert [one.dialect.name for one in found["/texts/rerank", "POST"]] == ["texts"]


def test_every_dialect_can_be_preferred() -> None:
    for name in (*(one.name for one in DIALECTS), None):
        assert create_app(settings(dialect=name), loader())
    with pytest.raises(UsageError, match=r"dialect='jinna': expected one of .*; did you mean jina"):
        create_app(settings(dialect="jinna"), loader())


@pytest.mark.parametrize(
    ("path", "body", "preferred", "name"),
    [
        ("/embeddings", b'{"input": "a"}', None, "openai"),
        ("/embeddings", b'{"input": "a"}', "llama-server", "llama-server"),
        ("/v1/embeddings", b'{"input": "a"}', "voyage", "voyage"),
        ("/v1/rerank", b'{"query": "a", "documents": ["b"]}', None, "jina"),
        ("/v1/rerank", b'{"query": "a", "documents": ["b"]}', "cohere", "cohere"),
        ("/v1/rerank", b'{"query": "a", "documents": ["b"]}', "voyage", "voyage"),
        ("/rerank", b'{"query": "a", "documents": ["b"]}', "vllm", "vllm"),
        ("/rerank", b'{"query": "a", "documents": ["b"]}', "tei", "jina"),
        ("/rerank", b'{"query": "a", "texts": ["b"]}', "cohere", "tei"),
    ],
)
def test_the_operators_choice_decides_where_the_body_leaves_doubt(
    path: str, body: bytes, preferred: str | None, name: str
) -> None:
    assert spoken_for(speakers(DIALECTS, preferred)[path, "POST"], body).dialect.name == name


def test_below_a_prefix_every_path_is_there_with_the_dialects_own_errors() -> None:
    found = speakers(DIALECTS)
    common = [place for place in found if place[0].split("/")[1] not in {one.name for one in DIALECTS}]
    assert len(found) == len(common) * (len(DIALECTS) + 1)
    [*borrowed] = found["/jina/v1/embeddings", "POST"]
    assert {one.dialect.name for one in borrowed} == {"jina"}
    assert spoken_for(borrowed, b'{"input": "a"}').route.path == "/v1/embeddings"


def test_a_typed_prefix_is_a_texts_own_where_no_role_is_named() -> None:
    embedder, texts = fake_embedder(), ["Query: a", "Passage: b", "c"]
    reading = Reading(typed=True)
    found = tokenized(texts, embedder, role=None, reading=reading)
    raw = embedder.tokenize(texts, prompt_name=Role.RAW)
    assert [one.tolist() for one in found[:2]] == [one.tolist() for one in raw[:2]]
    assert found[2].tolist() == embedder.tokenize(["c"], prompt_name=Role.QUERY)[0].tolist()
    assert not doubled(texts, fake_spec(), role=None, reading=reading)


def test_a_prefix_in_front_of_a_prefix_is_a_warning() -> None:
    texts = ["c", "Query: a", "Passage: b"]
    [warning] = doubled(texts, fake_spec(), role=Role.PASSAGE, reading=Reading(typed=True))
    assert warning == "input 1 and 1 more: begins with a prefix and got another; prompt_name=raw adds none"
    assert doubled(texts, fake_spec(), role=None, reading=Reading())
    assert not doubled(texts, fake_spec(), role=Role.RAW, reading=Reading())
    assert not doubled(["c"], fake_spec(), role=None, reading=Reading())


@pytest.mark.parametrize(("limit", "end"), [(12, "56789"), (11, "6789"), (8, "9")])
def test_cut_on_the_left_the_prefix_stays(limit: int, end: str) -> None:
    embedder, text = fake_embedder(), "0123456789"
    [ids] = tokenized([text], embedder, role=Role.QUERY, reading=Reading(limit=limit, from_left=True))
    assert bytes(ids.tolist()).decode() == "Query: " + end


def test_cut_on_the_left_a_short_text_is_whole() -> None:
    [ids] = tokenized(["012"], fake_embedder(), role=Role.QUERY, reading=Reading(limit=12, from_left=True))
    assert bytes(ids.tolist()).decode() == "Query: 012"
