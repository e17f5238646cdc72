"""The bodies that clients send, as models: which fields exist, which values they take.

Follows OpenAI's embeddings API, with the fields of Jina's and vLLM's that clients of those send. A field that is null
is absent. Unknown fields are kept apart, to be logged once and otherwise left alone; unknown values are refused. Knows
nothing of models that are served.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema

from nestling.engine.protocol import TokenIds
from nestling.errors import TextError
from nestling.server.http.problems import Problem, invalid, of_validation, too_large

LARGEST_ID = 2**31 - 1
MOST_CONTAINERS = 50_000
"""Lists and objects in a body, so that reading it, which lets no other thread run, takes less than 50 ms."""
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
Body = TypeVar("Body", bound="Request")


class Encoding(StrEnum):
    """How a vector travels: `encoding_format`."""

    FLOAT = "float"
    BASE64 = "base64"


class Form(StrEnum):
    """What a vector is made of: `embedding_type`, or `encoding_type` as LlamaIndex spells it."""

    FLOAT = "float"
    BASE64 = "base64"
    INT8 = "int8"
    BINARY = "binary"
    UBINARY = "ubinary"


_TEXTS = {
    "oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}, "minItems": 1},
    ],
    "description": "A text, several texts, or token ids where the server takes them.",
}


class Request(BaseModel):
    """What all bodies share: strict types, unknown fields kept apart."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a JSON body; Problem (400, or 413 for nesting or for too many lists) for anything else."""
        _bound_containers(body)
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise of_validation(error) from None

    @property
    def unknown(self) -> Iterable[str]:
        """Names of the fields that mean nothing here."""
        return self.model_extra or {}


class EmbeddingRequest(Request):
    """`POST /v1/embeddings`."""

    input: Annotated[Any, WithJsonSchema(_TEXTS)]
    model: str | None = None
    """NAME or NAME/TASK or NAME/TASK.ROLE; the first served model by default."""
    dimensions: int | None = None
    """One of the trained sizes; the full width by default."""
    encoding_format: Encoding | None = None
    """Numbers, or little-endian float32 in base64."""
    embedding_type: Form | None = None
    """int8: whole numbers up to 127, compare by cosine; ubinary: signs, eight a byte; binary: ubinary less 128."""
    encoding_type: Form | None = None
    """The same as embedding_type."""
    task: str | None = None
    """retrieval, text-matching or code, or with a role: retrieval.passage."""
    prompt_name: str | None = None
    """query, passage (or document), or raw for no prefix; query by default."""
    input_type: str | None = None
    """The same as prompt_name."""
    truncate: bool | None = None
    """Cut texts on the right that are too long, instead of refusing them."""
    truncate_prompt_tokens: int | None = None
    """Cut texts on the right to so many tokens, the prefix included; -1 is the model's limit."""
    normalized: bool | None = None
    """false: the pooled vector at its own length, cut to the size."""
    late_chunking: bool | None = None
    """true: the inputs are consecutive chunks of one document, joined as they are and embedded in one pass."""
    return_multivector: bool | None = None
    """true: a vector for every token, prefix included, as `embeddings` of each item; not with dimensions."""
    user: str | None = None
    """Left alone."""

    @property
    def form(self) -> Form:
        """The answer's form: an embedding type that is not `float` wins, else `encoding_format`, else float."""
        said = {"embedding_type": self.embedding_type, "encoding_type": self.encoding_type}
        wanted = agreed("embedding_type", said)
        if wanted in (None, Form.FLOAT) and self.encoding_format is Encoding.BASE64:
            return Form.BASE64
        return wanted or Form.FLOAT

    def check_together(self) -> None:
        """Problem for fields that cannot be honoured together; neither is ignored."""
        for one, other in _APART:
            if _given(getattr(self, one), one) and _given(getattr(self, other), other):
                raise invalid(f"{other}: not together with {one}", param=other, code="contradiction")


_APART = (
    ("return_multivector", "dimensions"),
    ("return_multivector", "normalized"),
    ("return_multivector", "late_chunking"),
    ("late_chunking", "truncate_prompt_tokens"),
)
"""Fields that cannot both be set: a token's vector has one size and unit length, a chunked document is whole."""


def _given(value: object, name: str) -> bool:
    """True for a value that asks for something other than the default."""
    return value is False if name == "normalized" else value not in (None, False, -1)


class RerankRequest(Request):
    """`POST /v1/rerank`, in the shape of Jina's and Cohere's."""

    query: str
    documents: list[str | dict[str, Any]]
    """The candidates: texts, or objects with a `text`."""
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

    def texts(self, *, most: int) -> list[str]:
        """The candidates' texts; Problem naming the one that has none, 413 for more than `most`."""
        if not self.documents:
            raise invalid("documents: at least one is expected", param="documents", code="invalid_input")
        if len(self.documents) > most:
            raise too_large(f"documents: {len(self.documents)}, this server takes {most} a request", param="documents")
        found = [one if isinstance(one, str) else one.get("text") for one in self.documents]
        for index, text in enumerate(found):
            if not isinstance(text, str):
                raise invalid(f"documents[{index}].text: a text is expected", param="documents", code="invalid_input")
        return [str(text) for text in found]


class TokenizeRequest(Request):
    """`POST /tokenize`: llama-server's `content` or vLLM's `prompt`; without a prefix unless one is asked for."""

    content: str | list[str] | None = None
    """A text, or several: then `tokens` is a list for each."""
    prompt: str | list[str] | None = None
    """The same as content."""
    model: str | None = None
    """As for embeddings."""
    task: str | None = None
    """As for embeddings."""
    prompt_name: str | None = None
    """query or passage puts that prefix in front; raw by default."""

    @property
    def texts(self) -> str | list[str]:
        """The text or texts."""
        agreed("content", {"content": self.content, "prompt": self.prompt})
        found = self.content if self.prompt is None else self.prompt
        if found is None:
            raise invalid("content: a text or a list of texts is expected", param="content")
        return found


class DetokenizeRequest(Request):
    """`POST /detokenize`."""

    tokens: list[int]
    model: str | None = None


def _bound_containers(body: bytes) -> None:
    """Problem 413 for more lists and objects than can be made while the event loop waits: making one takes 0.3 us."""
    if _brackets(body) <= MOST_CONTAINERS:
        return
    inside = sum(_brackets(text[0]) for text in _STRINGS.finditer(body))  # brackets in texts make nothing
    if (count := _brackets(body) - inside) > MOST_CONTAINERS:
        raise too_large(f"body: {count} lists and objects; at most {MOST_CONTAINERS} are read")


def _brackets(part: bytes) -> int:
    return part.count(b"[") + part.count(b"{")


Value = TypeVar("Value")


def agreed(param: str, said: Mapping[str, Value | None]) -> Value | None:
    """The one value that several fields name, or None if none does; Problem if they contradict each other."""
    values = {name: value for name, value in said.items() if value is not None}
    if any(value != next(iter(values.values())) for value in values.values()):
        listed = ", ".join(f"{name}={value!s:.40}" for name, value in values.items())
        raise invalid(f"{param}: {listed} contradict each other", param=param, code="contradiction")
    return next(iter(values.values()), None)


def texts_or_ids(value: object, *, most: int) -> list[str] | list[TokenIds]:
    """Read `input`: a text or texts -> list of str; ids or lists of ids -> list of (T,) int32.

    Problem naming the index for anything that is neither, 413 for more than `most`.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise invalid("input: a text or a list of at least one text is expected", param="input", code="invalid_input")
    if isinstance(value[0], int):
        return [_ids(value, 0)]
    if len(value) > most:
        raise too_large(f"input: {len(value)} texts, this server takes {most} a request", param="input")
    if isinstance(value[0], list):
        return [_ids(item, index) for index, item in enumerate(value)]
    return [_text(item, index) for index, item in enumerate(value)]


def _text(item: object, index: int) -> str:
    if not isinstance(item, str):
        raise TextError(f"a text is expected, this is {_kind(item)}", index=index)
    return item


def _ids(item: object, index: int) -> TokenIds:
    if not isinstance(item, list) or not item:
        raise TextError(f"a list of token ids is expected, this is {_kind(item)}", index=index)
    for place, number in enumerate(item):
        if type(number) is not int or not 0 <= number <= LARGEST_ID:
            raise TextError(f"token {place} is not a token id (a whole number from 0)", index=index)
    return np.array(item, np.int32)


def _kind(item: object) -> str:
    names = {type(None): "null", dict: "an object", list: "an empty list", bool: "a boolean", str: "a text"}
    return names.get(type(item), "a number")


def token_input_refused() -> Problem:
    """What LangChain's default gets: the ids are another vocabulary's, and its own setting mends it."""
    return invalid(
        "input: token ids are refused, because clients send those of OpenAI's vocabulary, which mean other texts here. "
        "Send texts: LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False. "
        "A server started with --token-input model takes this model's own ids.",
        param="input",
        code="token_input",
    )
