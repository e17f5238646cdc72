"""A small, fixed number of the requests that `benchmarks.server_fuzz` sends by the ten thousand."""

import httpx
import pytest
from tests.contract.serving import running
from tests.fuzzing import fuzz_bodies, fuzz_document


@pytest.mark.parametrize("mode", ["reject", "model"])
def test_no_body_is_a_server_error(mode: str) -> None:
    with running(token_input=mode) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        statuses: list[int] = []
        fuzz_bodies(client, 400, statuses.append)
    assert len(statuses) >= 300
    assert {200, 400} <= set(statuses)


def test_nothing_in_the_openapi_document_leads_to_a_server_error() -> None:
    with running() as server, httpx.Client(base_url=server.url, timeout=20) as client:
        statuses: list[int] = []
        sent = fuzz_document(client, 400, statuses.append)
    assert {"POST /v1/embeddings", "POST /tokenize", "POST /detokenize", "GET /v1/models"} <= sent.keys()
    assert max(statuses) < 500
    assert {200, 400} <= set(statuses)
