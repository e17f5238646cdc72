"""Random and malformed requests for a server: from its own OpenAPI document, and bodies that only look like one."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

ALLOWED = frozenset({200, 400, 404, 405, 408, 413, 415, 422, 429})
"""422 is TEI's alone."""
SHAPES = ({"error"}, {"error", "error_type"}, {"message"}, {"detail"})
"""Keys of an error: OpenAI's (an object of four) and Ollama's (a text), TEI's, Cohere's, Voyage's."""
Asked = Callable[[int], None]
"""Told the status of every answer."""

NUMBERS = st.integers() | st.floats(allow_nan=True)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
)
INPUTS = {
    "input": st.text(min_size=1)
    | st.text()
    | st.lists(st.text(), max_size=5)
    | st.lists(st.integers(-1, 300), max_size=5)
    | ANYTHING,
}
LIKELY = {
    "model": st.sampled_from(["fake", "fake-code", "starter/code.passage", "fake:Q8_0", "x", "", "/"]) | SCALARS,
    "dimensions": st.sampled_from([16, 32, 64, 0]) | SCALARS,
    "encoding_format": st.sampled_from(["float", "base64"]) | SCALARS,
    "embedding_type": st.sampled_from(["int8", "binary", "ubinary"]) | SCALARS,
    "task": st.sampled_from(["code", "retrieval.query"]) | SCALARS,
    "prompt_name": st.sampled_from(["query", "document", "raw"]) | SCALARS,
    "truncate": SCALARS,
    "truncate_prompt_tokens": st.integers(-2, 20) | SCALARS,
    "normalized": SCALARS,
    "late_chunking": SCALARS,
    "return_multivector": SCALARS,
    "content": SCALARS | st.lists(st.text(), max_size=3),
    "tokens": st.lists(st.integers(-1, 300), max_size=5) | SCALARS,
    "query": SCALARS,
    "documents": st.lists(st.text(), max_size=4) | ANYTHING,
    "top_n": st.integers(-1, 5) | SCALARS,
}
BODIES = st.fixed_dictionaries(INPUTS, optional=LIKELY) | st.fixed_dictionaries({}, optional=LIKELY | INPUTS)
PATHS = st.sampled_from(["/v1/embeddings", "/v1/embeddings", "/v1/rerank", "/tokenize", "/detokenize"])


def checked(answer: httpx.Response) -> int:
    """The status of an answer that has its right shape: a dialect's error, or numbers without a hole."""
    assert answer.status_code in ALLOWED, f"{answer.status_code}: {answer.text[:300]}"
    if answer.status_code == 200:
        assert "NaN" not in answer.text
    else:
        body = answer.json()
        assert set(body) in SHAPES, answer.text[:300]
        assert (answer.status_code == 422) <= ("error_type" in body)
        error = next(iter(body.values()))
        if isinstance(error, dict):
            assert set(error) == {"message", "type", "param", "code"}
            error = error["message"]
        assert error
    return answer.status_code


def _examples(count: int) -> settings:
    """So many, the same every time, however long they take; what fails is shown as it was found."""
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(
        max_examples=count, deadline=None, derandomize=False, database=None, suppress_health_check=quiet,
        phases=[Phase.generate],
    )  # fmt: skip


def fuzz_bodies(client: httpx.Client, count: int, asked: Asked = lambda _status: None, *, seed: int = 0) -> None:
    """JSON with likely fields and unlikely values, and bytes that are no JSON: `count` requests."""

    @seeded(seed)
    @_examples(count * 3 // 4)
    @given(path=PATHS, body=BODIES)
    def json_bodies(path: str, body: dict[str, Any]) -> None:
        asked(checked(client.post(path, content=json.dumps(body).encode())))

    @seeded(seed)
    @_examples(count - count * 3 // 4)
    @given(path=PATHS, body=st.binary(max_size=200))
    def byte_bodies(path: str, body: bytes) -> None:
        asked(checked(client.post(path, content=body)))

    json_bodies()
    byte_bodies()


def fuzz_document(
    client: httpx.Client, count: int, asked: Asked = lambda _status: None, *, seed: int = 0
) -> Counter[str]:
    """What schemathesis makes of the server's OpenAPI document, right and wrong: about `count` requests.

    -> how many went to each operation.
    """
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    found: Any = schema.get_all_operations()
    operations = [one.ok() for one in found]  # a document that does not hold together fails here
    posts = [one for one in operations if one.method == "post"]
    sent = Counter(one.label for one in operations if one not in posts)
    for operation in operations:
        if operation not in posts:
            asked(client.get(operation.path).status_code)
    for operation, mode in product(posts, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)):

        @seeded(seed)
        @_examples(count // (2 * len(posts)))
        @given(case=operation.as_strategy(generation_mode=mode))
        def one_case(case: Any) -> None:
            sent[case.operation.label] += 1
            asked(checked(_sent(client, case)))

        one_case()
    return sent


def _sent(client: httpx.Client, case: Any) -> httpx.Response:
    """A case over our own client: its body as JSON, or as the bytes that it is."""
    wire = case.as_transport_kwargs(base_url=str(client.base_url))
    body = {"json": wire["json"]} if wire.get("json") is not None else {"content": wire.get("data") or b""}
    kinds = {name: value for name, value in (wire.get("headers") or {}).items() if name.lower() == "content-type"}
    return client.request(wire["method"], case.formatted_path, headers=kinds, **body)
