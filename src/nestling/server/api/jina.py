"""Jina's dialect: `/v1/rerank`, in the shape of Cohere's too, and the fields that Jina adds to `/v1/embeddings`."""

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from pydantic import WithJsonSchema
from pydantic_core import to_json

from nestling.models.reranking import Scoring
from nestling.server.api import answers, images
from nestling.server.api.answers import Form
from nestling.server.api.bodies import Body, not_a_text
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Picture, RankedDocuments, Ranking, Reading

_DOCUMENTS = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}}


class JinaFields(Body):
    """The fields of Jina's embeddings API that OpenAI's lacks."""

    embedding_type: Form | None = None
    """int8: whole numbers up to 127, compare by cosine; ubinary: signs, eight a byte; binary: ubinary less 128."""
    task: str | None = None
    """retrieval, text-matching or code, or with a role: retrieval.passage."""
    truncate: bool | None = None
    """Cut texts on the right that are too long, instead of refusing them."""
    normalized: bool | None = None
    """false: the pooled vector at its own length, cut to the size."""
    late_chunking: bool | None = None
    """true: the inputs are consecutive chunks of one document, joined as they are and embedded in one pass."""
    return_multivector: bool | None = None
    """true: a vector for every token, prefix included, as `embeddings` of each item; not with dimensions."""


class RerankRequest(Body):
    """`POST /v1/rerank`."""

    query: str
    documents: Annotated[list[Any], WithJsonSchema(_DOCUMENTS)]
    """The candidates: texts, or objects with a `text` or an `image` (base64, data URI or URL)."""
    model: str | None = None
    """As for embeddings, without a role."""
    task: str | None = None
    """As for embeddings, without a role."""
    top_n: int | None = None
    """How many of the best to answer with; all by default."""
    return_documents: bool | None = None
    """true: each result has its document."""
    scoring: str | None = None
    """maxsim: the vectors of all tokens, averaged over the query's (default); cosine: one vector a text."""
    truncate: bool | None = None
    """Cut texts on the right that are too long, instead of refusing them."""
    truncate_prompt_tokens: int | None = None
    """Cut texts on the right to so many tokens, the prefix included; -1 is the model's limit."""

    def candidates(self, *, most: int) -> list[str | Picture]:
        """The candidates; InvalidError naming the one that is neither, TooLargeError for more than `most`."""
        return [_candidate(one, index) for index, one in enumerate(self._counted(most))]

    def texts(self, *, most: int) -> list[str]:
        """The same of a dialect that has no images."""
        return [_text(one, f"documents[{index}]") for index, one in enumerate(self._counted(most))]

    def _counted(self, most: int) -> list[Any]:
        if not self.documents:
            raise InvalidError("documents: expected at least one", param="documents", code="invalid_input")
        if len(self.documents) > most:
            message = f"documents: {len(self.documents)}, this server takes {most} a request"
            raise TooLargeError(message, param="documents")
        return self.documents


def _candidate(document: object, index: int) -> str | Picture:
    if images.has_image(document):
        return images.of_document(document, index)
    return images.of_text(_text(document, f"documents[{index}]"))


def _text(document: object, place: str) -> str:
    """The text of a document: itself, or its `text`."""
    found, place = (document.get("text"), f"{place}.text") if isinstance(document, dict) else (document, place)
    if not isinstance(found, str):
        raise not_a_text(place, found, param="documents")
    return found


async def rerank(call: Call) -> AsyncGenerator[bytes, None]:
    """The handler of `/v1/rerank`, which llama-server has by another path too."""
    request = await call.read(RerankRequest)
    scoring = Scoring.parse(request.scoring or Scoring.MAXSIM)
    settings = call.service.settings
    candidates = request.candidates(most=settings.max_inputs)
    images.check_texts([request.query, *candidates], most=settings.max_body_bytes)
    target = call.service.catalog.target(request.model, task=request.task)
    if target.role is not None:
        message = "model: a role has no meaning here: the query is one, the documents passages"
        raise InvalidError(message, param="model")
    wanted = Ranking(
        request.query,
        candidates,
        target,
        scoring=scoring,
        top_n=request.top_n,
        reading=Reading(truncate=bool(request.truncate), limit=request.truncate_prompt_tokens),
    )
    found = await call.service.ranked(wanted)
    call.warnings.extend(found.warnings)
    name = request.model or call.service.catalog.default.name
    yield ranking(found, candidates if request.return_documents else None, scoring=scoring, model=name)


def ranking(
    found: RankedDocuments, documents: Sequence[str | Picture] | None, *, scoring: Scoring, model: str
) -> bytes:
    """The answer: the best first, with their documents where these are given."""
    items: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in found.results]
    if documents is not None:
        items = [{**item, "document": _echo(documents[item["index"]])} for item in items]
    usage = answers.usage(found.tokens)
    return to_json({"object": "list", "model": model, "scoring": scoring, "results": items, "usage": usage})


def _echo(document: str | Picture) -> dict[str, str]:
    return {"image": document.text} if isinstance(document, Picture) else {"text": document}


DIALECT = Dialect(
    name="jina",
    error=answers.error,
    routes=(
        Route(
            "/v1/rerank",
            rerank,
            "Documents ranked by relevance to the query. Also at /rerank.",
            body=RerankRequest,
            also=("/rerank",),
            images=True,
        ),
    ),
)
