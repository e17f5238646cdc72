"""text-embeddings-inference's dialect: `/embed`, `/embed_all`, `/rerank`, `/tokenize`, `/decode`, `/info`.

Facts are those of its OpenAPI document (statuses of errors) and of its `router/src`. `/rerank` and `/tokenize` are
other dialects' paths too; `texts` and `inputs` tell a body apart. A prefix that a text begins with is its own where no
`prompt_name` is given, since that is how its users have to write them.
"""

from collections.abc import AsyncGenerator, Sequence, Sized
from enum import StrEnum
from math import exp
from typing import Any

from pydantic_core import to_json

from nestling._util.version import __version__
from nestling.errors import EmptyTextError, TextError, TextLengthError
from nestling.models.reranking import Scoring
from nestling.server.api import answers
from nestling.server.api.bodies import WRONG_TYPE, Body, Texts, TextsOrIds, one_or_more_texts, texts_or_ids
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Embedding, Inputs, Output, Ranking, Reading, Token
from nestling.server.http.problems import Problem


class Direction(StrEnum):
    """Which end of a text that is too long is cut off."""

    LEFT = "Left"
    LEFT_SMALL = "left"
    RIGHT = "Right"
    RIGHT_SMALL = "right"


class Cutting(Body):
    """How long texts are cut."""

    truncate: bool | None = None
    """true: cut texts that are too long; false: refuse them; by default as the server's `--auto-truncate` says."""
    truncation_direction: Direction | None = None
    """Right by default; Left cuts behind the prefix."""

    def reading(self, call: Call) -> Reading:
        """How texts are read."""
        from_left = self.truncation_direction in (Direction.LEFT, Direction.LEFT_SMALL)
        cut = call.service.settings.auto_truncate if self.truncate is None else self.truncate
        return Reading(truncate=cut, from_left=from_left, typed=True)


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
    """true: averaged cosines of token vectors; their sigmoid, between 0 and 1, by default."""

    def score(self, cosine: float) -> float:
        """What the answer has for a text."""
        return cosine if self.raw_scores else 1 / (1 + exp(-cosine))

    return_text: bool | None = None
    """true: each result has its text."""


class TokenizeRequest(Body):
    """`POST /tokenize`."""

    inputs: Texts
    """A text, or several."""
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
    return Embedding(inputs, target, request.reading(call), **more)


def _inputs(value: object, call: Call) -> Inputs:
    return texts_or_ids(value, most=call.service.settings.max_client_batch_size, name="inputs")


def _check_batch(values: Sized, call: Call, *, param: str) -> None:
    """InvalidError for none, TooLargeError for more than a request may have."""
    if not len(values):
        raise InvalidError(f"{param}: expected at least one", param=param, code="empty")
    if len(values) > (most := call.service.settings.max_client_batch_size):
        raise TooLargeError(f"{param}: {len(values)}, this server takes {most} a request", param=param)


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
    _check_batch(request.texts, call, param="texts")
    target = call.service.catalog.target(None)
    wanted = Ranking(request.query, request.texts, target, scoring=Scoring.MAXSIM, reading=request.reading(call))
    found = await call.service.ranked(wanted)
    call.warnings.extend(found.warnings)
    items: list[dict[str, Any]] = [{"index": one.index, "score": request.score(one.score)} for one in found.results]
    if request.return_text:
        items = [{**item, "text": request.texts[item["index"]]} for item in items]
    yield to_json(items)


async def _tokenize(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(TokenizeRequest)
    texts = one_or_more_texts(request.inputs, param="inputs")
    _check_batch(texts, call, param="inputs")
    _check_none_is_empty(texts)
    target = call.service.catalog.target(None, roles={"prompt_name": request.prompt_name})
    closed = request.add_special_tokens is not False
    yield to_json([[_token(one) for one in text] for text in await call.service.tokens(texts, target, closed=closed)])


def _check_none_is_empty(texts: Sequence[str]) -> None:
    if "" in texts:
        raise EmptyTextError("the text is empty", index=texts.index(""))


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
    _check_batch(lists if all(lists) else [], call, param="ids")
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
            "served_model_name": call.service.catalog.default.name,
            "model_type": {"embedding": {"pooling": embedder.spec.pooling}},
            "max_concurrent_requests": settings.max_in_flight,
            "max_input_length": embedder.spec.max_tokens,
            "max_batch_tokens": settings.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": settings.auto_truncate,
            "tokenization_workers": 2,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


class _Fault(StrEnum):
    """TEI's `error_type`."""

    EMPTY = "Empty"
    VALIDATION = "Validation"
    TOKENIZER = "Tokenizer"
    BACKEND = "Backend"
    OVERLOADED = "Overloaded"
    UNHEALTHY = "Unhealthy"


_STATUSES = {
    _Fault.EMPTY: 400,
    _Fault.VALIDATION: 413,
    _Fault.TOKENIZER: 422,
    _Fault.BACKEND: 424,
    _Fault.OVERLOADED: 429,
    _Fault.UNHEALTHY: 503,
}
"""As TEI's OpenAPI document has them."""
_BY_CODE = {"empty": _Fault.EMPTY, "overloaded": _Fault.OVERLOADED, "unavailable": _Fault.UNHEALTHY}
_BY_KIND = {  # the first that fits
    EmptyTextError: _Fault.EMPTY,
    TextLengthError: _Fault.VALIDATION,
    TextError: _Fault.TOKENIZER,
}


def _fault(problem: Problem) -> _Fault:
    if problem.code in _BY_CODE:
        return _BY_CODE[problem.code]
    if problem.status >= 500:  # noqa: PLR2004 - HTTP's
        return _Fault.BACKEND
    return next((fault for kind, fault in _BY_KIND.items() if issubclass(problem.kind, kind)), _Fault.VALIDATION)


def _status(problem: Problem) -> int:
    """TEI's: 422 also for a body that is no request of its, other statuses as they are where TEI has none."""
    if problem.status in (401, 403, 404, 405, 408, 415):
        return problem.status
    return 422 if problem.code in ("invalid_json", WRONG_TYPE) else _STATUSES[_fault(problem)]


def _error(problem: Problem) -> bytes:
    message = problem.message
    if problem.param == "documents":  # what a ranking calls its texts
        message = message.replace("documents[", "texts[", 1)
    return to_json({"error": message, "error_type": _fault(problem)})


DIALECT = Dialect(
    name="tei",
    error=_error,
    status=_status,
    routes=(
        Route("/embed", _embed, "TEI: a vector for each text.", body=EmbedRequest, also=("/", "/invocations")),
        Route("/embed_all", _embed_all, "TEI: each token's final hidden state.", body=EmbedAllRequest),
        Route("/rerank", _rerank, "TEI: texts ranked by relevance.", body=RerankRequest, claims=frozenset({"texts"})),
        Route("/tokenize", _tokenize, "TEI: tokens.", body=TokenizeRequest, claims=frozenset({"inputs"})),
        Route("/decode", _decode, "TEI: the texts of token ids.", body=DecodeRequest),
        Route("/info", _info, "TEI: what is served and its limits."),
    ),
)
