"""Voyage's dialect: its fields in `/v1/embeddings`, `/v1/multimodalembeddings`, and its shape of `/v1/rerank`.

Facts are those of Voyage's API reference and of its Python client, which always sends `truncation`: that field tells
its bodies from OpenAI's and Jina's on the same paths. Texts that are too long are cut unless `truncation` is false.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator
from enum import StrEnum
from typing import Any, ClassVar

from pydantic_core import to_json

from nestling.server.api import answers, images
from nestling.server.api.answers import Form
from nestling.server.api.bodies import Body, texts_or_ids
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.api.jina import RerankRequest as JinaRerank
from nestling.server.core.refusals import InvalidError
from nestling.server.core.requests import Embedded, Embedding, Ranking, Reading
from nestling.server.http.problems import Problem
from nestling.vectors import Floats


class InputType(StrEnum):
    """What texts are for."""

    QUERY = "query"
    DOCUMENT = "document"


class EmbedRequest(Body):
    """`POST /v1/embeddings`."""

    OWN: ClassVar = frozenset(
        {"input", "model", "input_type", "truncation", "output_dimension", "output_dtype", "encoding_format"}
    )
    """Voyage's fields."""

    input: str | list[str]
    model: str | None = None
    """NAME or NAME/TASK; the first served model by default."""
    input_type: InputType | None = None
    """A prefix that a text begins with is its own without one; texts that have none are queries."""
    truncation: bool | None = None
    """false: refuse texts that are too long; cut on the right by default."""
    output_dimension: int | None = None
    """One of the trained sizes; the full width by default."""
    output_dtype: Form | None = None
    """float, int8, uint8, binary or ubinary."""
    encoding_format: str | None = None
    """base64: the vector's bytes, of the type of output_dtype."""

    def check(self) -> None:
        """InvalidError for what Voyage does not know."""
        _check_fields(self, self.OWN)
        if self.output_dtype is Form.BASE64:
            raise InvalidError("output_dtype=base64: expected one of float, int8, uint8, binary, ubinary")
        if self.encoding_format not in (None, "base64"):
            raise InvalidError("encoding_format: expected base64 or null", param="encoding_format")


class MultimodalRequest(Body):
    """`POST /v1/multimodalembeddings`."""

    OWN: ClassVar = frozenset({"inputs", "model", "input_type", "truncation", "output_encoding", "output_dimension"})
    """Voyage's fields."""

    inputs: list[images.Content]
    """Objects whose `content` is one part of type text, image_url or image_base64."""
    model: str | None = None
    """As for embeddings."""
    input_type: InputType | None = None
    """As for embeddings; images have no role."""
    truncation: bool | None = None
    """false: refuse texts that are too long; cut on the right by default."""
    output_encoding: str | None = None
    """base64: little-endian float32."""
    output_dimension: int | None = None
    """One of the trained sizes; the full width by default."""

    @property
    def form(self) -> Form:
        """The form of the vectors; InvalidError for one that Voyage does not know."""
        if self.output_encoding not in (None, "base64"):
            raise InvalidError("output_encoding: expected base64 or null", param="output_encoding")
        return Form.BASE64 if self.output_encoding else Form.FLOAT


class RerankRequest(JinaRerank):
    """`POST /v1/rerank`."""

    OWN: ClassVar = frozenset({"query", "documents", "model", "top_k", "return_documents", "truncation"})
    """Voyage's fields."""

    top_k: int | None = None
    """How many of the best to answer with; all by default."""
    truncation: bool | None = None
    """false: refuse texts that are too long; cut on the right by default."""


def _check_fields(request: Body, known: frozenset[str]) -> None:
    """InvalidError for a field that Voyage does not know, in its words."""
    for name in sorted({name for name, value in request if value is not None} - known):
        raise InvalidError(f"Argument '{name[:100]}' is not supported by our API", param=name[:100])


async def _embeddings(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(EmbedRequest)
    request.check()
    inputs = texts_or_ids(request.input, most=call.service.settings.max_inputs)
    target = call.service.catalog.target(request.model, roles={"input_type": request.input_type})
    reading = Reading(truncate=request.truncation is not False, typed=True)
    name = request.model or call.service.catalog.default.name
    async with call.service.embedded(Embedding(inputs, target, reading, dimensions=request.output_dimension)) as found:
        call.warnings.extend(found.warnings)
        form, write = request.output_dtype or Form.FLOAT, _packed if request.encoding_format else answers.vector
        rows = (write(row, form) for row in found.values)
        for piece in answers.pieces(_list(rows, name, {"total_tokens": found.tokens})):
            yield piece


async def _multimodal(call: Call) -> AsyncGenerator[bytes, None]:
    request, settings = await call.read(MultimodalRequest), call.service.settings
    _check_fields(request, request.OWN)
    form = request.form
    inputs = images.of_contents(request.inputs, most=settings.max_inputs)
    images.check_texts(inputs, most=settings.max_body_bytes)
    target = call.service.catalog.target(request.model, roles={"input_type": request.input_type})
    reading = Reading(truncate=request.truncation is not False, typed=True)
    name = request.model or call.service.catalog.default.name
    async with call.service.embedded(Embedding(inputs, target, reading, dimensions=request.output_dimension)) as found:
        call.warnings.extend(found.warnings)
        rows = (answers.vector(row, form) for row in found.values)
        for piece in answers.pieces(_list(rows, name, _usage(found))):
            yield piece


def _usage(found: Embedded) -> dict[str, int]:
    return {
        "text_tokens": found.tokens - found.images.tokens,
        "image_pixels": found.images.pixels,
        "total_tokens": found.tokens,
    }


def _list(rows: Iterable[bytes], name: str, usage: dict[str, int]) -> Iterator[bytes]:
    yield b'{"object":"list","data":'
    yield from answers.listed(
        (b'{"object":"embedding","embedding":%b,"index":%d}' % (row, index),) for index, row in enumerate(rows)
    )
    yield b',"model":%b,"usage":%b}' % (to_json(name), to_json(usage))


def _packed(row: Floats, form: Form) -> bytes:
    """The bytes of a vector in base64: float32, or one a number."""
    if form is Form.FLOAT:
        return answers.vector(row, Form.BASE64)
    return answers.in_base64(answers.numbers(row, form))


async def _rerank(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(RerankRequest)
    _check_fields(request, request.OWN)
    texts = request.texts(most=call.service.settings.max_inputs)
    reading = Reading(truncate=request.truncation is not False, typed=True)
    target = call.service.catalog.target(request.model)
    found = await call.service.ranked(Ranking(request.query, texts, target, top_n=request.top_k, reading=reading))
    call.warnings.extend(found.warnings)
    items: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in found.results]
    if request.return_documents:
        items = [{**one, "document": texts[one["index"]]} for one in items]
    name = request.model or call.service.catalog.default.name
    yield to_json({"object": "list", "data": items, "model": name, "usage": {"total_tokens": found.tokens}})


def _error(problem: Problem) -> bytes:
    return to_json({"detail": problem.message})


DIALECT = Dialect(
    name="voyage",
    error=_error,
    routes=(
        Route(
            "/v1/embeddings",
            _embeddings,
            "Voyage: a vector for each text.",
            body=EmbedRequest,
            claims=frozenset({"truncation", "output_dimension", "output_dtype"}),
            preferred_by=frozenset({"input"}),
        ),
        Route(
            "/v1/multimodalembeddings",
            _multimodal,
            "Voyage: a vector for each text or image.",
            body=MultimodalRequest,
            also=("/multimodalembeddings",),
            images=True,
        ),
        Route(
            "/v1/rerank",
            _rerank,
            "Voyage: documents ranked by relevance.",
            body=RerankRequest,
            claims=frozenset({"top_k", "truncation"}),
            preferred_by=frozenset({"documents"}),
        ),
    ),
)
