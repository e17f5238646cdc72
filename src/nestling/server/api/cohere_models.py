"""What Cohere's clients send: the bodies of its routes, with the fields of Cohere's API reference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from nestling.server.api import images
from nestling.server.api.answers import Form
from nestling.server.api.bodies import Body
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Picture, Reading
from nestling.spec import Role

MOST_INPUTS = 96
"""Texts, or inputs of v2, in a request, by Cohere's reference; its clients send no more. Images are not limited so."""


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
    """In place of texts: data URIs, bare base64, or URLs where the server fetches them."""
    model: str | None = None
    """NAME or NAME/TASK; the first served model by default."""
    input_type: InputType | None = None
    """search_document is a passage, the others are queries; without it a text keeps a prefix that it begins with."""
    embedding_types: list[Form] | None = None
    """float, int8, uint8, binary, ubinary, base64, each a separate list in the response."""
    truncate: Truncate | None = None
    """NONE refuses texts that are too long; END (default) and START cut them."""

    @property
    def said(self) -> dict[str, Sequence[object] | None]:
        """The fields that inputs may stand in."""
        return {"texts": self.texts, "images": self.images}

    def given(self, *, most_images: int) -> list[str | Picture]:
        """The inputs; InvalidError when there are none or in several fields, TooLargeError for too many."""
        fields = [name for name, value in self.said.items() if value is not None]
        if len(fields) > 1:
            raise InvalidError(f"{fields[1]}: not together with {fields[0]}", param=fields[1], code="contradiction")
        if self.images is not None:
            return _pictures(self.images, most=most_images)
        if self.input_type is InputType.IMAGE and self.texts is not None:
            raise InvalidError("input_type=image: expected images, not texts", param="input_type")
        return self.others()

    def others(self) -> list[str | Picture]:
        """What is not in `images`."""
        if not self.texts:
            raise InvalidError("texts: expected at least one text", param="texts", code="empty")
        if len(self.texts) > MOST_INPUTS:
            raise TooLargeError(f"texts: {len(self.texts)}; at most {MOST_INPUTS} are taken", param="texts")
        return list(self.texts)

    @property
    def reading(self) -> Reading:
        """How texts are read."""
        cut, from_left = self.truncate is not Truncate.NONE, self.truncate is Truncate.START
        return Reading(truncate=cut, from_left=from_left, typed=True)


def _pictures(values: Sequence[str], *, most: int) -> list[str | Picture]:
    if not values:
        raise InvalidError("images: expected at least one", param="images", code="empty")
    if len(values) > most:
        raise TooLargeError(f"images: {len(values)}, this server takes {most} a request", param="images")
    return [images.picture(value, "images", index) for index, value in enumerate(values)]


class EmbedRequestV2(EmbedRequest):
    """`POST /v2/embed`."""

    inputs: list[images.Content] | None = None
    """In place of texts: objects whose `content` is one part of type text or image_url."""
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

    @property
    def said(self) -> dict[str, Sequence[object] | None]:
        """The fields that inputs may stand in."""
        return {**super().said, "inputs": self.inputs}

    def others(self) -> list[str | Picture]:
        """The inputs of `inputs` or `texts`."""
        return super().others() if self.inputs is None else images.of_contents(self.inputs, most=MOST_INPUTS)


def _check_count(value: int | None, name: str) -> None:
    if value is not None and value < 1:
        raise InvalidError(f"{name}={value}: expected an integer from 1", param=name)


class RerankRequest(Body):
    """`POST /v2/rerank`. Its reference has no `return_documents` any more, but LiteLLM always sends it."""

    query: str
    documents: list[str | dict[str, Any]]
    """The candidates: texts, or objects with a `text`."""
    model: str | None = None
    """As for embeddings."""
    top_n: int | None = None
    """How many of the best to answer with; all by default."""
    return_documents: bool | None = None
    """true: each result has its document."""
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
        raise InvalidError(f"documents[{index}].{name}: expected a string", param="documents")
    return text


class RerankRequestV1(RerankRequest):
    """`POST /v1/rerank`."""

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
