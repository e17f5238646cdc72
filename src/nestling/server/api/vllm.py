"""vLLM's dialect: `/pooling`, `/score`, `/rerank` where a body has fields of its alone or the operator prefers it.

Its `/v1/embeddings` is OpenAI's here, its `/tokenize` llama-server's.

Facts are those of vLLM's documentation of its pooling models. A score is the cosine of two vectors, as vLLM has it for
embedding models; `text_1` are queries, `text_2` passages, unless they begin with a prefix.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import partial

import numpy as np
from pydantic_core import to_json

from nestling.server.api import answers, images
from nestling.server.api.answers import Form
from nestling.server.api.bodies import Body, Mixed
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.api.jina import RerankRequest as JinaRerank
from nestling.server.core.refusals import InvalidError, TooLargeError, agreed
from nestling.server.core.requests import Embedding, Ranking, Reading
from nestling.server.http.problems import Problem
from nestling.spec import Role
from nestling.vectors import Floats, paired_cosine


class PoolingRequest(Body):
    """`POST /pooling`."""

    input: Mixed = None
    messages: images.Messages = None
    """In place of input: a user's message whose content is a text or one image_url."""
    model: str | None = None
    """NAME or NAME/TASK.ROLE; the first served model by default."""
    dimensions: int | None = None
    """One of the trained sizes; the full width by default."""
    encoding_format: Form | None = None
    """float or base64."""
    normalize: bool | None = None
    """false: the pooled vectors at their own length."""
    use_activation: bool | None = None
    """The same, by vLLM's newer name."""
    truncate_prompt_tokens: int | None = None
    """Cut texts on the right to so many tokens, the prefix included; -1 is the model's limit."""


class ScoreRequest(Body):
    """`POST /score`: one text against one, one against several, or several in pairs."""

    model: str | None = None
    """NAME or NAME/TASK; the first served model by default."""
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    """The same as text_1."""
    documents: str | list[str] | None = None
    """The same as text_2."""
    data_1: str | list[str] | None = None
    """The same as text_1."""
    data_2: str | list[str] | None = None
    """The same as text_2."""
    truncate_prompt_tokens: int | None = None
    """Cut texts on the right to so many tokens, the prefix included; -1 is the model's limit."""

    def sides(self, *, most: int) -> tuple[list[str], list[str]]:
        """The texts of both sides, of which the first is one or as many as the second."""
        left = _side("text_1", {"text_1": self.text_1, "queries": self.queries, "data_1": self.data_1})
        right = _side("text_2", {"text_2": self.text_2, "documents": self.documents, "data_2": self.data_2})
        if len(left) not in (1, len(right)):
            raise InvalidError(f"text_1: {len(left)} texts, text_2 {len(right)}; expected 1 or as many", param="text_1")
        if len(right) > most:
            raise TooLargeError(f"text_2: {len(right)} texts, this server takes {most} a request", param="text_2")
        return left, right


def _side(name: str, said: dict[str, str | list[str] | None]) -> list[str]:
    found = agreed(name, said)
    if not found:
        raise InvalidError(f"{name}: expected a string or a list of at least one", param=name, code="empty")
    return [found] if isinstance(found, str) else list(found)


async def _pooling(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(PoolingRequest)
    if request.encoding_format not in (None, Form.FLOAT, Form.BASE64):
        raise InvalidError("encoding_format: expected float or base64", param="encoding_format")
    settings = call.service.settings
    inputs = await call.run(partial(images.inputs_of, request.input, request.messages, most=settings.max_inputs))
    images.check_texts(inputs, most=settings.max_body_bytes)
    reading = Reading(limit=request.truncate_prompt_tokens, typed=True)
    target = call.service.catalog.target(request.model)
    said = {"normalize": request.normalize, "use_activation": request.use_activation}
    unit = agreed("normalize", said) is not False
    wanted = Embedding(inputs, target, reading, dimensions=request.dimensions, normalized=unit)
    async with call.service.embedded(wanted) as found:
        call.warnings.extend(found.warnings)
        head = _head(call, request.model, "pool", tokens=found.tokens)
        for piece in answers.pieces(_data(head, found.values, request.encoding_format or Form.FLOAT)):
            yield piece


def _data(head: bytes, rows: Sequence[Floats] | Floats, form: Form) -> Iterator[bytes]:
    yield head
    yield from answers.listed(
        (b'{"index":%d,"object":"pooling","data":%b}' % (index, answers.vector(row, form)),)
        for index, row in enumerate(rows)
    )
    yield b"}"


async def _score(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(ScoreRequest)
    left, right = request.sides(most=call.service.settings.max_inputs)
    queries, counted = await _vectors(call, request, left, Role.QUERY)
    passages, more = await _vectors(call, request, right, Role.PASSAGE)
    scores = paired_cosine(np.broadcast_to(queries, passages.shape), passages)
    items = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores.tolist())]
    yield _head(call, request.model, "score", tokens=counted + more) + to_json(items) + b"}"


async def _vectors(call: Call, request: ScoreRequest, texts: list[str], role: Role) -> tuple[Floats, int]:
    reading = Reading(limit=request.truncate_prompt_tokens, typed=True, default=role)
    target = call.service.catalog.target(request.model)
    async with call.service.embedded(Embedding(texts, target, reading)) as found:
        return np.asarray(found.values), found.tokens


def _head(call: Call, model: str | None, kind: str, *, tokens: int) -> bytes:
    """An answer's fields but for the last one, `data`."""
    facts = {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model or call.service.catalog.default.name,
        "usage": answers.usage(tokens),
    }
    return to_json(facts)[:-1] + b',"data":'


class RerankRequest(JinaRerank):
    """`POST /rerank`."""

    top_n: int | None = None
    """How many of the best to answer with; all by default, and for 0."""
    use_activation: bool | None = None
    """Left alone: cosines need no activation."""
    priority: int | None = None
    """Left alone: requests take turns by their tokens."""


async def _rerank(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(RerankRequest)
    texts = request.texts(most=call.service.settings.max_inputs)
    target, reading = call.service.catalog.target(request.model), Reading(limit=request.truncate_prompt_tokens)
    found = await call.service.ranked(
        Ranking(request.query, texts, target, top_n=request.top_n or None, reading=reading)
    )
    call.warnings.extend(found.warnings)
    facts = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": request.model or call.service.catalog.default.name,
        "usage": answers.usage(found.tokens),
        "results": [
            {"index": one.index, "document": {"text": texts[one.index]}, "relevance_score": one.score}
            for one in found.results
        ],
    }
    yield to_json(facts)


_TYPES = {401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError", 503: "ServiceUnavailableError"}


def _error(problem: Problem) -> bytes:
    kind = _TYPES.get(problem.status, "InternalServerError" if problem.status >= 500 else "BadRequestError")  # noqa: PLR2004 - HTTP's
    inner = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.status}
    return to_json({"error": inner})


DIALECT = Dialect(
    name="vllm",
    error=_error,
    routes=(
        Route("/pooling", _pooling, "vLLM: a vector for each text or image.", body=PoolingRequest, images=True),
        Route(
            "/rerank",
            _rerank,
            "vLLM: documents ranked by relevance.",
            body=RerankRequest,
            also=("/v1/rerank",),
            claims=frozenset({"use_activation", "activation", "softmax", "mm_processor_kwargs"}),
            preferred_by=frozenset({"documents"}),
        ),
        Route("/v1/score", _score, "vLLM: cosines of pairs. Also at /score.", body=ScoreRequest, also=("/score",)),
    ),
)
