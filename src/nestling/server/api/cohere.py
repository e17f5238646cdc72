"""Cohere's dialect: `/v1/embed`, `/v2/embed`, `/v2/rerank`, and `/v1/rerank` below its prefix or where it is preferred.

Facts are those of Cohere's API reference. `input_type` is the role: search_document is a passage, search_query,
classification and clustering are queries. Texts that are too long are cut at their end unless `truncate` says
otherwise, as Cohere does. Scores are averaged cosines.
"""

import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from typing import Any

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
    """search_document is a passage, the others are queries; a query by default."""
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
        return Reading(truncate=self.truncate is not Truncate.NONE, from_left=self.truncate is Truncate.START)


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
    """Cut texts to so many tokens, the prefix included."""

    @property
    def reading(self) -> Reading:
        """How texts are read."""
        return replace(super().reading, limit=self.max_tokens)

    def of_inputs(self) -> list[str]:
        """The texts of `inputs`."""
        if self.texts is not None and self.inputs is not None:
            raise InvalidError("inputs: not together with texts", param="inputs", code="contradiction")
        return [one.text(index) for index, one in enumerate(self.inputs or [])]


class RerankRequest(Body):
    """`POST /v2/rerank` and `/v1/rerank`."""

    query: str
    documents: list[str | dict[str, Any]]
    """The candidates: texts, or objects with a `text`."""
    model: str | None = None
    """As for embeddings."""
    top_n: int | None = None
    """How many of the best to answer with; all by default."""
    return_documents: bool | None = None
    """v1: each result has its document."""
    max_tokens_per_doc: int | None = None
    """Cut texts to so many tokens, the prefix included; at the model's limit by default."""

    def texts(self, *, most: int) -> list[str]:
        """The candidates' texts; errors name the one that has none."""
        if not self.documents:
            raise InvalidError("documents: expected at least one", param="documents", code="empty")
        if len(self.documents) > most:
            raise TooLargeError(f"documents: {len(self.documents)}; at most {most} are taken", param="documents")
        found = [one if isinstance(one, str) else one.get("text") for one in self.documents]
        for index, text in enumerate(found):
            if not isinstance(text, str):
                raise InvalidError(f"documents[{index}].text: expected a text", param="documents")
        return [str(text) for text in found]


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
    async for piece in _embedded(call, await call.read(EmbedRequest), version="1"):
        yield piece


async def _embed_v2(call: Call) -> AsyncGenerator[bytes, None]:
    async for piece in _embedded(call, await call.read(EmbedRequestV2), version="2"):
        yield piece


async def _ranked(call: Call, request: RerankRequest, texts: list[str]) -> RankedDocuments:
    reading = Reading(truncate=True, limit=request.max_tokens_per_doc)
    target = call.service.catalog.target(request.model)
    found = await call.service.ranked(Ranking(request.query, texts, target, top_n=request.top_n, reading=reading))
    call.warnings.extend(found.warnings)
    return found


async def _rerank(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(RerankRequest)
    texts = request.texts(most=call.service.settings.max_inputs)
    found = await _ranked(call, request, texts)
    results: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in found.results]
    if request.return_documents:
        results = [{**one, "document": {"text": texts[one["index"]]}} for one in results]
    meta = _meta("2", search_units=1)
    yield to_json({"id": str(uuid.uuid4()), "results": results, "meta": meta})


def _error(problem: Problem) -> bytes:
    return to_json({"message": problem.message})


def _status(problem: Problem) -> int:
    """Cohere's: a request that is too large is a bad one."""
    return 400 if problem.status == 413 and problem.param else problem.status  # noqa: PLR2004 - HTTP's


DIALECT = Dialect(
    name="cohere",
    error=_error,
    status=_status,
    routes=(
        Route("/v2/embed", _embed_v2, "Cohere: vectors of texts, by type.", body=EmbedRequestV2),
        Route("/v1/embed", _embed_v1, "Cohere: vectors of texts.", body=EmbedRequest),
        Route("/embed", _embed_v1, "The same.", body=EmbedRequest, claims=frozenset({"texts"})),
        Route("/v2/rerank", _rerank, "Cohere: documents by nearness.", body=RerankRequest),
        Route(
            "/v1/rerank",
            _rerank,
            "Cohere: documents by nearness.",
            body=RerankRequest,
            claims=frozenset({"max_tokens_per_doc", "max_chunks_per_doc", "rank_fields"}),
        ),
    ),
)
