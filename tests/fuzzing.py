"""Random and malformed requests for a server: from its own OpenAPI document, and bodies that only look like one."""

import json
import re
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

from nestling.server.api.registry import DIALECTS
from nestling.server.api.routing import Spoken, speakers

ALLOWED = frozenset({200, 400, 404, 405, 408, 413, 415, 422, 429})
"""422 is TEI's and, for a field that it does not know, Cohere's."""
SHAPES = ({"error"}, {"error", "error_type"}, {"message"}, {"detail"})
"""Keys of an error: OpenAI's (an object of four) and Ollama's (a text), TEI's, Cohere's, Voyage's."""
INNER = ({"message", "type", "param", "code"}, {"message", "type", "code"})
"""Keys inside of an error: OpenAI's, llama-server's."""
HOLE = re.compile(r"NaN|Infinity|[\[,]null[,\]]")
"""What no list of numbers has."""
Asked = Callable[[int], None]
"""Told the status of every answer."""

NUMBERS = st.integers() | st.floats(allow_nan=True)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
)
WORDS = st.text(max_size=20) | st.sampled_from(["a", "Query: a", "Passage: a", " ", ""])
RIGHT = st.sampled_from(["a", "some words", ["a"], ["a", "Query: b", "海滩"]])
TEXTS = RIGHT | RIGHT | WORDS | st.lists(WORDS, max_size=5) | ANYTHING
IDS = st.lists(st.integers(-1, 300), max_size=5) | SCALARS
NAMES = ["fake", "fake-code", "starter", "starter/code.passage", "fake:Q8_0", "starter:latest", "x", "", "/"]
LIKELY = {
    **dict.fromkeys(("input", "inputs", "content", "prompt", "texts", "documents", "text_1", "text_2"), TEXTS),
    "tokens": IDS,
    "ids": IDS | st.lists(IDS, max_size=3),
    "query": WORDS | SCALARS,
    "model": st.sampled_from(NAMES) | SCALARS,
    "dimensions": st.sampled_from([16, 32, 64, 0]) | SCALARS,
    "output_dimension": st.sampled_from([16, 32, 64, 0]) | SCALARS,
    "encoding_format": st.sampled_from(["float", "base64"]) | SCALARS,
    "embedding_type": st.sampled_from(["int8", "binary", "ubinary"]) | SCALARS,
    "embedding_types": st.lists(st.sampled_from(["float", "int8", "uint8", "base64", "x"]), max_size=3) | SCALARS,
    "output_dtype": st.sampled_from(["int8", "binary", "ubinary", "base64"]) | SCALARS,
    "input_type": st.sampled_from(["query", "document", "search_query", "search_document", "image"]) | SCALARS,
    "task": st.sampled_from(["code", "retrieval.query"]) | SCALARS,
    "prompt_name": st.sampled_from(["query", "document", "raw"]) | SCALARS,
    "truncate": st.sampled_from(["NONE", "START", "END"]) | SCALARS,
    "truncation_direction": st.sampled_from(["Left", "Right"]) | SCALARS,
    "truncate_prompt_tokens": st.integers(-2, 20) | SCALARS,
    "embd_normalize": st.integers(-2, 3) | SCALARS,
    "options": st.fixed_dictionaries({}, optional={"num_ctx": st.integers(-1, 20) | SCALARS}) | ANYTHING,
    "top_n": st.integers(-1, 5) | SCALARS,
    "top_k": st.integers(-1, 5) | SCALARS,
}
"""Values near the right ones, by the field's name; other fields have anything."""
POSTS = [(path, route) for (path, method), said in speakers(DIALECTS).items() if method == "POST" for route in said]
"""Each path, below its dialect's prefix too, with each route that a body can mean there."""


def _bodies(path: str, spoken: Spoken) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Some of a route's own fields: all of them at random, or the texts and a few others."""
    fields = spoken.route.body.model_fields if spoken.route.body else {}
    values = {name: LIKELY.get(name, ANYTHING) for name in fields}
    needed = {name: value for name, value in values.items() if fields[name].is_required() or value is TEXTS}
    few = st.one_of(*(st.fixed_dictionaries({}, optional={name: value}) for name, value in values.items()))
    likely = st.builds(lambda left, right: left | right, st.fixed_dictionaries(needed), few)
    return st.tuples(st.just(path), likely | likely | st.fixed_dictionaries({}, optional=values))


REQUESTS = st.one_of(*(_bodies(path, spoken) for path, spoken in POSTS))
PATHS = st.sampled_from([path for path, _ in POSTS])


def checked(answer: httpx.Response) -> int:
    """The status of an answer that has its right shape: a dialect's error, or numbers without a hole."""
    assert answer.status_code in ALLOWED, f"{answer.status_code}: {answer.text[:300]}"
    if answer.status_code == 200:
        assert not HOLE.search(answer.text), answer.text[:300]
    else:
        body = answer.json()
        assert set(body) in SHAPES, answer.text[:300]
        assert (answer.status_code == 422) <= bool({"error_type", "message"} & body.keys())
        error = next(iter(body.values()))
        if isinstance(error, dict):
            assert set(error) in INNER, answer.text[:300]
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
    @given(request=REQUESTS)
    def json_bodies(request: tuple[str, dict[str, Any]]) -> None:
        path, body = request
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
