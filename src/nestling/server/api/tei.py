"""text-embeddings-inference's dialect: `/embed`, `/embed_all`, `/rerank`, `/tokenize`, `/decode`, `/info`.

Facts are those of its OpenAPI document and of `router/src/http/server.rs` (statuses of errors). `/rerank` and
`/tokenize` are other dialects' paths too; `texts` and `inputs` tell a body apart. A prefix that a text begins with is
its own where no `prompt_name` is given, since that is how its users have to write them.
"""

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Any

from pydantic_core import to_json

from nestling._util.version import __version__
from nestling.models.reranking import Scoring
from nestling.server.api import answers
from nestling.server.api.bodies import WRONG_TYPE, Body, TextsOrIds, texts_or_ids
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Embedding, Inputs, Output, Ranking, Reading, Token
from nestling.server.http.problems import Problem


class Direction(StrEnum):
    """Which end of a text that is too long is cut off."""

    LEFT = "Left"
    RIGHT = "Right"


class Cutting(Body):
    """How long texts are cut."""

    truncate: bool | None = None
    """true: cut texts that are too long, instead of refusing them."""
    truncation_direction: Direction | None = None
    """Right by default; Left cuts behind the prefix."""

    @property
    def reading(self) -> Reading:
        """How texts are read."""
        from_left = self.truncation_direction is Direction.LEFT
        return Reading(truncate=bool(self.truncate), from_left=from_left, typed=True)


class EmbedRequest(Cutting):
    """`POST /embed`."""

    inputs: TextsOrIds
    prompt_name: str | None = None
    """query, passage (or document), or raw."""
    normalize: bool | None = None
    """false: the pooled vector at its own length."""
    dimensions: int | None = None
    """One of the trained sizes; the full width by default."""


class EmbedAllRequest(Cutting):
    """`POST /embed_all`."""

    inputs: TextsOrIds
    prompt_name: str | None = None
    """query, passage (or document), or raw."""


class RerankRequest(Cutting):
    """`POST /rerank`."""

    query: str
    texts: list[str]
    raw_scores: bool | None = None
    """Left alone: scores are averaged cosines either way, and need no squeezing into 0 to 1."""
    return_text: bool | None = None
    """true: each result has its text."""


class TokenizeRequest(Body):
    """`POST /tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool | None = None
    """false: without the ending that some models want behind a text."""
    prompt_name: str | None = None
    """query or passage puts that prefix in front; none by default."""


class DecodeRequest(Body):
    """`POST /decode`."""

    ids: list[int] | list[list[int]]
    skip_special_tokens: bool | None = None
    """false: special tokens are written out."""


async def _embedding(call: Call, request: EmbedRequest | EmbedAllRequest, **more: Any) -> Embedding:  # noqa: ANN401 - fields of Embedding
    inputs = await call.run(_inputs, request.inputs, call)
    target = call.service.catalog.target(None, roles={"prompt_name": request.prompt_name})
    return Embedding(inputs, target, request.reading, **more)


def _inputs(value: object, call: Call) -> Inputs:
    return texts_or_ids(value, most=call.service.settings.max_inputs, name="inputs")


async def _embed(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(EmbedRequest)
    normalized = request.normalize is not False
    wanted = await _embedding(call, request, dimensions=request.dimensions, normalized=normalized)
    async with call.service.embedded(wanted) as found:
        call.warnings.extend(found.warnings)
        for piece in answers.pieces(answers.vectors_listed(found.values)):
            yield piece


async def _embed_all(call: Call) -> AsyncGenerator[bytes, None]:
    wanted = await _embedding(call, await call.read(EmbedAllRequest), output=Output.STATES)
    async with call.service.embedded(wanted) as found:
        call.warnings.extend(found.warnings)
        for piece in answers.pieces(answers.listed(map(answers.vectors_listed, found.values))):
            yield piece


async def _rerank(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(RerankRequest)
    if not request.texts:
        raise InvalidError("texts: expected at least one text", param="texts", code="empty")
    if len(request.texts) > (most := call.service.settings.max_inputs):
        raise TooLargeError(f"texts: {len(request.texts)}, this server takes {most} a request", param="texts")
    target = call.service.catalog.target(None)
    wanted = Ranking(request.query, request.texts, target, scoring=Scoring.MAXSIM, reading=request.reading)
    found = await call.service.ranked(wanted)
    call.warnings.extend(found.warnings)
    items: list[dict[str, Any]] = [{"index": one.index, "score": one.score} for one in found.results]
    if request.return_text:
        items = [{**item, "text": request.texts[item["index"]]} for item in items]
    yield to_json(items)


async def _tokenize(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(TokenizeRequest)
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    target = call.service.catalog.target(None, roles={"prompt_name": request.prompt_name})
    closed = request.add_special_tokens is not False
    yield to_json([[_token(one) for one in text] for text in await call.service.tokens(texts, target, closed=closed)])


def _token(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "text": token.piece.decode("utf-8", "replace"),
        "special": token.special,
        "start": token.start,
        "stop": token.stop,
    }


async def _decode(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(DecodeRequest)
    lists = [one for one in request.ids if isinstance(one, list)] or [[one for one in request.ids if type(one) is int]]
    skip = request.skip_special_tokens is not False
    target = call.service.catalog.target(None)
    yield to_json([await call.service.detokenized(ids, target, skip_special=skip) for ids in lists])


async def _info(call: Call) -> AsyncGenerator[bytes, None]:
    settings, embedder = call.service.settings, await call.service.loaded(call.service.catalog.target(None))
    yield to_json(
        {
            "model_id": call.service.catalog.default.name,
            "model_sha": None,
            "model_dtype": "gguf",
            "model_type": {"embedding": {"pooling": embedder.spec.pooling}},
            "max_concurrent_requests": settings.max_in_flight,
            "max_input_length": embedder.spec.max_tokens,
            "max_batch_tokens": settings.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_inputs,
            "auto_truncate": False,
            "tokenization_workers": 2,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


_STATUSES = {
    "invalid_input": 422,
    "invalid_json": 422,
    WRONG_TYPE: 422,
    "empty": 400,
    "overloaded": 429,
    "unavailable": 503,
}
_TYPES = {400: "Empty", 413: "Validation", 422: "Tokenizer", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


def _status(problem: Problem) -> int:
    """TEI's: 413 for what its validation refuses, 422 for what cannot be tokenized, 424 for its backend."""
    if problem.status in (401, 403, 404, 405, 408, 415):
        return problem.status
    if problem.status >= 500 and problem.status != 503:  # noqa: PLR2004 - HTTP's
        return 424
    return _STATUSES.get(problem.code, 413)


def _error(problem: Problem) -> bytes:
    return to_json({"error": problem.message, "error_type": _TYPES.get(_status(problem), "Validation")})


DIALECT = Dialect(
    name="tei",
    error=_error,
    status=_status,
    routes=(
        Route("/embed", _embed, "TEI: a vector for each text.", body=EmbedRequest, also=("/",)),
        Route("/embed_all", _embed_all, "TEI: each token's final hidden state.", body=EmbedAllRequest),
        Route("/rerank", _rerank, "TEI: texts by nearness.", body=RerankRequest, claims=frozenset({"texts"})),
        Route("/tokenize", _tokenize, "TEI: tokens.", body=TokenizeRequest, claims=frozenset({"inputs"})),
        Route("/decode", _decode, "TEI: the texts of token ids.", body=DecodeRequest),
        Route("/info", _info, "TEI: what is served and its limits."),
    ),
)
