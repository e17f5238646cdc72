"""Cohere's dialect: `/v1/embed`, `/v2/embed`, `/v2/rerank`, and `/v1/rerank` below its prefix or where it is preferred.

Facts are those of Cohere's API reference. `input_type` is the role: search_document is a passage, search_query,
classification and clustering are queries; images have no role. Texts that are too long are cut at their end unless
`truncate` says otherwise, as Cohere does. Scores are averaged cosines. Fields that Cohere does not know are refused
with its status.
"""

import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

from pydantic_core import to_json

from nestling.server.api import answers, images
from nestling.server.api.answers import Form
from nestling.server.api.bodies import Body
from nestling.server.api.cohere_models import EmbedRequest, EmbedRequestV2, RerankRequest, RerankRequestV1
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.core.refusals import InvalidError
from nestling.server.core.requests import Embedded, Embedding, RankedDocuments, Ranking
from nestling.server.http.problems import Problem
from nestling.vectors import Floats

Asked = TypeVar("Asked", bound=Body)


async def _embedded(call: Call, request: EmbedRequest, *, version: str) -> AsyncGenerator[bytes, None]:
    settings, kind = call.service.settings, request.input_type
    inputs = request.given(most_images=settings.max_inputs)
    images.check_texts(inputs, most=settings.max_body_bytes)
    roles = {"input_type": kind.role if kind else None}
    target = call.service.catalog.target(request.model, roles=roles)
    size = request.output_dimension if isinstance(request, EmbedRequestV2) else None
    async with call.service.embedded(Embedding(inputs, target, request.reading, dimensions=size)) as found:
        call.warnings.extend(found.warnings)
        by_type = version == "2" or request.embedding_types is not None
        types = request.embedding_types or [Form.FLOAT]
        values = _by_type(found.values, types) if by_type else answers.vectors_listed(found.values)
        facts = {
            "id": str(uuid.uuid4()),
            "texts": [one for one in inputs if isinstance(one, str)],
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
            "meta": _meta(version, **_billed(found)),
        }
        for piece in answers.pieces(chain([to_json(facts)[:-1], b',"embeddings":'], values, [b"}"])):
            yield piece


def _by_type(values: Sequence[Floats] | Floats, types: Sequence[Form]) -> Iterator[bytes]:
    def one(kind: Form) -> Iterator[bytes]:
        yield b'"%b":' % kind.encode()
        yield from answers.vectors_listed(values, kind)

    yield b"{"
    yield from answers.separated(one(kind) for kind in dict.fromkeys(types))
    yield b"}"


def _billed(found: Embedded) -> dict[str, int]:
    of_images = {"images": found.images.count, "image_tokens": found.images.tokens} if found.images.count else {}
    return {"input_tokens": found.tokens, **of_images}


def _meta(version: str, **billed: int) -> dict[str, Any]:
    return {"api_version": {"version": version}, "billed_units": billed}


async def _embed_v1(call: Call) -> AsyncGenerator[bytes, None]:
    async for piece in _embedded(call, await _asked(call, EmbedRequest), version="1"):
        yield piece


async def _embed_v2(call: Call) -> AsyncGenerator[bytes, None]:
    async for piece in _embedded(call, await _asked(call, EmbedRequestV2), version="2"):
        yield piece


async def _ranked(call: Call, request: RerankRequest, texts: list[str]) -> RankedDocuments:
    target, reading = call.service.catalog.target(request.model), request.reading
    found = await call.service.ranked(Ranking(request.query, texts, target, top_n=request.top_n, reading=reading))
    call.warnings.extend(found.warnings)
    return found


async def _rerank_v2(call: Call) -> AsyncGenerator[bytes, None]:
    yield await _ranking(call, await _asked(call, RerankRequest), version="2")


async def _rerank_v1(call: Call) -> AsyncGenerator[bytes, None]:
    request = await _asked(call, RerankRequestV1)
    request.check()
    yield await _ranking(call, request, version="1")


async def _ranking(call: Call, request: RerankRequest, *, version: str) -> bytes:
    texts = request.texts(most=call.service.settings.max_inputs)
    found = await _ranked(call, request, texts)
    results: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in found.results]
    if request.return_documents:
        results = [{"document": {"text": texts[one["index"]]}, **one} for one in results]
    return to_json({"id": str(uuid.uuid4()), "results": results, "meta": _meta(version, search_units=1)})


async def _asked(call: Call, model: type[Asked]) -> Asked:
    """The body; InvalidError for a field that Cohere does not know either."""
    request = await call.read(model)
    for name in (name for name, value in (request.model_extra or {}).items() if value is not None):
        said = f"unknown field: parameter '{name[:100]}' is not a valid field"
        raise InvalidError(said, param=name[:100], code=_UNKNOWN)
    if getattr(request, "priority", None):
        call.warnings.append("priority: requests take turns by their tokens here")
    return request


def _error(problem: Problem) -> bytes:
    return to_json({"message": problem.message})


_UNKNOWN = "unknown_field"


def _status(problem: Problem) -> int:
    """Cohere's: a request that is too large is a bad one, one with an unknown field cannot be processed."""
    if problem.code == _UNKNOWN:
        return 422
    return 400 if problem.status == 413 and problem.param else problem.status  # noqa: PLR2004 - HTTP's


DIALECT = Dialect(
    name="cohere",
    error=_error,
    status=_status,
    routes=(
        Route("/v2/embed", _embed_v2, "Cohere: vectors of texts or images.", body=EmbedRequestV2, images=True),
        Route("/v1/embed", _embed_v1, "Cohere: vectors of texts or images.", body=EmbedRequest, images=True),
        Route("/embed", _embed_v1, "The same.", body=EmbedRequest, claims=frozenset({"texts", "images"}), images=True),
        Route("/v2/rerank", _rerank_v2, "Cohere: documents ranked by relevance.", body=RerankRequest),
        Route(
            "/v1/rerank",
            _rerank_v1,
            "Cohere: documents ranked by relevance.",
            body=RerankRequestV1,
            claims=frozenset({"max_tokens_per_doc", "max_chunks_per_doc", "rank_fields"}),
            preferred_by=frozenset({"documents"}),
        ),
    ),
)
