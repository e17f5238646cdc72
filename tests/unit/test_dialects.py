"""The seam: a dialect is one module and one line, with routes and errors of its own."""

from collections.abc import AsyncGenerator
from typing import Any

from starlette.testclient import TestClient
from tests.contract.serving import loader, settings

from nestling.server.api.answers import vector
from nestling.server.api.bodies import Body
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.api.registry import DIALECTS
from nestling.server.app import create_app
from nestling.server.core.requests import Embedding


class EmbedBody(Body):
    prompt: str
    model: str | None = None


async def embed(call: Call) -> AsyncGenerator[bytes, None]:
    body = await call.read(EmbedBody)
    target = call.service.catalog.target(body.model)
    async with call.service.embedded(Embedding([body.prompt], target)) as found:
        yield vector(found.values[0])


async def hello(call: Call) -> AsyncGenerator[bytes, None]:
    yield b'{"hello": "%b"}' % call.path["name"].encode()


OTHER = Dialect(
    name="other",
    error=lambda problem: b'{"said": "%b"}' % problem.code.encode(),
    routes=(
        Route("/other/embed", embed, "A vector.", body=EmbedBody, also=("/other/embed2",)),
        Route("/other/hello/{name:path}", hello, "A greeting."),
    ),
)


def client_of(**changes: Any) -> TestClient:
    app = create_app(settings(**changes), loader(), dialects=(*DIALECTS, OTHER))
    return TestClient(app, base_url="http://localhost")


def test_a_dialect_brings_its_routes_its_answers_and_its_errors() -> None:
    with client_of() as client:
        for path in ("/other/embed", "/other/embed2"):
            assert len(client.post(path, json={"prompt": "a"}).json()) == 64
            answer = client.post(path, json={"prompt": "a", "model": "gpt"})
            assert (answer.status_code, answer.json()) == (404, {"said": "model_not_found"})
        assert client.get("/other/embed").json() == {"said": "method_not_allowed"}
        assert client.get("/other/hello/a/b:c").json() == {"hello": "a/b:c"}
        assert client.post("/other/hello/a", json={}).json() == {"said": "method_not_allowed"}
        assert client.post("/v1/embeddings", json={"input": ""}).json()["error"]["code"] == "invalid_input"
        assert client.get("/other/nothing").json() == {"said": "not_found"}
        assert "/other/hello/{name}" in client.get("/openapi.json").json()["paths"]


def test_an_added_dialect_can_be_preferred_and_has_every_path_below_its_prefix() -> None:
    with client_of(dialect="other") as client:
        assert client.post("/other/v1/embeddings", json={"input": "a"}).json()["object"] == "list"
        assert client.post("/other/v1/embeddings", json={"input": []}).json() == {"said": "empty"}
        assert client.post("/tei/other/embed", json={"prompt": 1}).json().keys() == {"error", "error_type"}


def test_a_missing_key_is_said_as_the_dialect_says_it() -> None:
    with client_of(api_key=("k",)) as client:
        assert client.post("/other/embed", json={}).json() == {"said": "invalid_api_key"}
        assert client.post("/v1/embeddings", json={}).json()["error"]["code"] == "invalid_api_key"


def test_a_dialect_has_a_path_once_and_claims_fields_where_another_has_it() -> None:
    seen: set[tuple[str, str]] = set()
    for dialect in DIALECTS:
        mine = [(path, route) for route in dialect.routes for path in (route.path, *route.also)]
        assert len({(path, route.method) for path, route in mine}) == len(mine), dialect.name
        for path, route in mine:
            assert (path, route.method) not in seen or route.claims, f"{dialect.name} {path}"
        seen |= {(path, route.method) for path, route in mine}
    assert {"openai", "jina", "llama-server"} <= {dialect.name for dialect in DIALECTS}
