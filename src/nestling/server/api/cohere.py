"""Cohere's dialect: `/v1/embed`, `/v2/embed`, `/v2/rerank`, and `/v1/rerank` below its prefix or where it is preferred.

Facts are those of Cohere's API reference. `input_type` is the role: search_document is a passage, search_query,
classification and clustering are queries. Texts that are too long are cut at their end unless `truncate` says
otherwise, as Cohere does. Scores are averaged cosines. Fields that Cohere does not know are refused with its status.
"""

import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from typing import Any, TypeVar

from pydantic_core import to_json

from nestling.server.api import answers
from nestling.server.api.answers import Form
from nestling.server.api.bodies import Body
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Embedding, RankedDocuments, Ranking, Reading
from nestling.server.http.problems import Problem
from nestling.spec import Role
from nestling.vectors import Floats

MOST_TEXTS = 96
"""Texts in a request, by Cohere's reference; its clients send no more."""

Asked = TypeVar("Asked", bound=Body)


class InputType(StrEnum):
    """What texts are for."""

    SEARCH_DOCUMENT = "search_document"
    SEARCH_QUERY = "search_query"
    CLASSIFICATION = "classification"
    CLUSTERING = "clustering"
    IMAGE = "image"

    @property
    def role(self) -> Role:
        """The role that means the same."""
        return Role.PASSAGE if self is InputType.SEARCH_DOCUMENT else Role.QUERY


class Truncate(StrEnum):
    """Which end of a text that is too long is cut off; NONE refuses it."""

    NONE = "NONE"
    START = "START"
    END = "END"


class EmbedRequest(Body):
    """`POST /v1/embed`."""

    texts: list[str] | None = None
    """At most 96 texts."""
    images: list[str] | None = None
    """Refused here; `/v1/embeddings` takes images."""
    model: str | None = None
    """NAME or NAME/TASK; the first served model by default."""
    input_type: InputType | None = None
    """search_document is a passage, the others are queries; without it a text keeps a prefix that it begins with."""
    embedding_types: list[Form] | None = None
    """float, int8, uint8, binary, ubinary, base64, each a list of its own in the answer."""
    truncate: Truncate | None = None
    """NONE refuses texts that are too long; END (default) and START cut them."""

    def given(self) -> list[str]:
        """The texts; InvalidError when there are none, TooLargeError for more than Cohere's limit."""
        if self.images is not None:
            raise InvalidError("images: expected texts; POST /v1/embeddings takes images", param="images")
        texts = self.of_inputs() or self.texts
        if not texts:
            raise InvalidError("texts: expected at least one text", param="texts", code="empty")
        if len(texts) > MOST_TEXTS:
            raise TooLargeError(f"texts: {len(texts)}; at most {MOST_TEXTS} are taken", param="texts")
        return texts

    def of_inputs(self) -> list[str]:
        """The texts of a field that v1 has not."""
        return []

    @property
    def reading(self) -> Reading:
        """How texts are read."""
        cut, from_left = self.truncate is not Truncate.NONE, self.truncate is Truncate.START
        return Reading(truncate=cut, from_left=from_left, typed=True)


class EmbedInput(Body):
    """One of v2's `inputs`."""

    content: list[dict[str, Any]]

    def text(self, index: int) -> str:
        """Its one part of type text; InvalidError naming the input that has another or none."""
        text = self.content[0].get("text") if len(self.content) == 1 else None
        if not isinstance(text, str):
            raise InvalidError(f"inputs[{index}].content: expected one part of type text", param="inputs")
        return text


class EmbedRequestV2(EmbedRequest):
    """`POST /v2/embed`."""

    inputs: list[EmbedInput] | None = None
    """Instead of texts: objects whose `content` is one part of type text."""
    output_dimension: int | None = None
    """One of the trained sizes; the full width by default."""
    max_tokens: int | None = None
    """Cut texts to so many tokens, the prefix included, or refuse them where `truncate` is NONE."""
    priority: int | None = None
    """Left alone: requests take turns by their tokens."""

    @property
    def reading(self) -> Reading:
        """How texts are read."""
        _check_count(self.max_tokens, "max_tokens")
        return replace(super().reading, longest=self.max_tokens, longest_name="max_tokens")

    def of_inputs(self) -> list[str]:
        """The texts of `inputs`."""
        if self.texts is not None and self.inputs is not None:
            raise InvalidError("inputs: not together with texts", param="inputs", code="contradiction")
        return [one.text(index) for index, one in enumerate(self.inputs or [])]


def _check_count(value: int | None, name: str) -> None:
    if value is not None and value < 1:
        raise InvalidError(f"{name}={value}: expected a whole number from 1", param=name)


class RerankRequest(Body):
    """`POST /v2/rerank`."""

    query: str
    documents: list[str | dict[str, Any]]
    """The candidates: texts, or objects with a `text`."""
    model: str | None = None
    """As for embeddings."""
    top_n: int | None = None
    """How many of the best to answer with; all by default."""
    max_tokens_per_doc: int | None = None
    """Cut texts to so many tokens, the prefix included; at the model's limit by default."""
    priority: int | None = None
    """Left alone: requests take turns by their tokens."""

    @property
    def reading(self) -> Reading:
        """How texts are read."""
        _check_count(self.max_tokens_per_doc, "max_tokens_per_doc")
        return Reading(truncate=True, longest=self.max_tokens_per_doc, longest_name="max_tokens_per_doc")

    def text_of(self, document: Mapping[str, Any], index: int) -> str:
        """What is ranked of a document that is an object; InvalidError where that is no text."""
        return _field(document, "text", index)

    def texts(self, *, most: int) -> list[str]:
        """The candidates' texts; errors name the one that has none."""
        if not self.documents:
            raise InvalidError("documents: expected at least one", param="documents", code="empty")
        if len(self.documents) > most:
            raise TooLargeError(f"documents: {len(self.documents)}; at most {most} are taken", param="documents")
        found = enumerate(self.documents)
        return [one if isinstance(one, str) else self.text_of(one, index) for index, one in found]


def _field(document: Mapping[str, Any], name: str, index: int) -> str:
    if not isinstance(text := document.get(name), str):
        raise InvalidError(f"documents[{index}].{name}: expected a text", param="documents")
    return text


class RerankRequestV1(RerankRequest):
    """`POST /v1/rerank`."""

    return_documents: bool | None = None
    """true: each result has its document."""
    rank_fields: list[str] | None = None
    """Fields of documents that are objects: their texts in this order, a line each, in place of `text`."""
    max_chunks_per_doc: int | None = None
    """Refused: documents are ranked whole."""

    def text_of(self, document: Mapping[str, Any], index: int) -> str:
        """The fields that are asked for."""
        return "\n".join(_field(document, name, index) for name in self.rank_fields or ["text"])

    def check(self) -> None:
        """InvalidError for what cannot be honoured."""
        if self.max_chunks_per_doc is not None:
            message = "max_chunks_per_doc: documents are ranked whole, not in chunks; max_tokens_per_doc cuts them"
            raise InvalidError(message, param="max_chunks_per_doc")


async def _embedded(call: Call, request: EmbedRequest, *, version: str) -> AsyncGenerator[bytes, None]:
    texts, kind = request.given(), request.input_type
    roles = {"input_type": kind.role if kind else None}
    target = call.service.catalog.target(request.model, roles=roles)
    size = request.output_dimension if isinstance(request, EmbedRequestV2) else None
    async with call.service.embedded(Embedding(texts, target, request.reading, dimensions=size)) as found:
        call.warnings.extend(found.warnings)
        by_type = version == "2" or request.embedding_types is not None
        types = request.embedding_types or [Form.FLOAT]
        values = _by_type(found.values, types) if by_type else answers.vectors_listed(found.values)
        facts = {
            "id": str(uuid.uuid4()),
            "texts": texts,
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
            "meta": _meta(version, input_tokens=found.tokens),
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
    request = await _asked(call, RerankRequest)
    found = await _ranked(call, request, request.texts(most=call.service.settings.max_inputs))
    yield _ranking(found, None, version="2")


async def _rerank_v1(call: Call) -> AsyncGenerator[bytes, None]:
    request = await _asked(call, RerankRequestV1)
    request.check()
    texts = request.texts(most=call.service.settings.max_inputs)
    yield _ranking(await _ranked(call, request, texts), texts if request.return_documents else None, version="1")


def _ranking(found: RankedDocuments, texts: Sequence[str] | None, *, version: str) -> bytes:
    results: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in found.results]
    if texts is not None:
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
        Route("/v2/embed", _embed_v2, "Cohere: vectors of texts, by type.", body=EmbedRequestV2),
        Route("/v1/embed", _embed_v1, "Cohere: vectors of texts.", body=EmbedRequest),
        Route("/embed", _embed_v1, "The same.", body=EmbedRequest, claims=frozenset({"texts"})),
        Route("/v2/rerank", _rerank_v2, "Cohere: documents by nearness.", body=RerankRequest),
        Route(
            "/v1/rerank",
            _rerank_v1,
            "Cohere: documents by nearness.",
            body=RerankRequestV1,
            claims=frozenset({"max_tokens_per_doc", "max_chunks_per_doc", "rank_fields"}),
            preferred_by=frozenset({"documents"}),
        ),
    ),
)
