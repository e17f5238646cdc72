"""The bodies that clients send, as models: which fields exist, which values they take.

Follows OpenAI's embeddings API, with the fields of Jina's and vLLM's that clients of those send. A field that is null
is absent. Unknown fields are kept apart, to be logged once and otherwise left alone; unknown values are refused. Knows
nothing of models that are served.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema

from nestling.engine.base import TokenIds
from nestling.errors import TextError
from nestling.serve.problems import Problem, invalid, of_validation, too_large

LARGEST_ID = 2**31 - 1
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
        """Read a JSON body; Problem (400, or 413 for nesting) for anything else."""
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
    """Only false."""
    return_multivector: bool | None = None
    """Only false."""
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

    def refuse_unsupported(self) -> None:
        """Problem for what these models cannot do; it must not be ignored."""
        for name in ("late_chunking", "return_multivector"):
            if getattr(self, name):
                raise invalid(f"{name}: these models answer with one vector a text", param=name, code="unsupported")


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
