"""JSON request bodies, within limits and strictly typed; shared by all dialects.

A field that is null counts as absent. Unknown fields are collected, to be logged once, and otherwise ignored; values
of a wrong type are refused.
"""

import codecs
import re
from collections.abc import Iterable
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema

from nestling.engine.protocol import TokenIds
from nestling.errors import TextError
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Inputs

WRONG_TYPE = "invalid_type"
"""The error code of a field with a value of a wrong type."""
LARGEST_ID = 2**31 - 1
MOST_CONTAINERS = 50_000
"""The most lists and objects in a body, so that parsing it, which holds the GIL, takes less than 50 ms."""
MOST_STRUCTURE = 2_000_000
"""The most bytes of a body outside its strings, for the same reason: numbers take longer to parse than images."""
SHORT_BODY = 64_000
"""Bytes of JSON that parse in about a millisecond."""
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)

_TEXTS: dict[str, Any] = {
    "oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}, "minItems": 1},
    ],
    "description": "A text, several texts, or token ids where the server takes them.",
}
_ITEM = {
    "type": "object",
    "properties": {key: {"type": "string"} for key in ("text", "image", "url", "bytes")},
    "minProperties": 1,
    "maxProperties": 1,
}
_MIXED = {
    "oneOf": [*_TEXTS["oneOf"], {"type": "array", "items": _ITEM, "minItems": 1}],
    "description": "As texts or token ids, or objects: {text}, {image} as base64, data URI or URL, {url}, {bytes}.",
}
Mixed = Annotated[Any, WithJsonSchema(_MIXED)]
"""A field that also takes images."""
TextsOrIds = Annotated[Any, WithJsonSchema(_TEXTS)]
"""A field that `texts_or_ids` reads."""


class Body(BaseModel):
    """A request's JSON object: strict types, unknown fields kept apart."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read it; InvalidError for anything else, TooLargeError for nesting or for too many lists."""
        content = _without_mark(body)
        _bound_containers(content)
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise _of_validation(error) from None

    @property
    def unknown(self) -> Iterable[str]:
        """Names of the unknown fields."""
        return self.model_extra or {}


def _without_mark(body: bytes) -> bytes:
    """The body without UTF-8's byte order mark, which RFC 8259 allows to ignore."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidError("body: UTF-16, by its byte order mark; expected JSON in UTF-8", code="invalid_json")
    return body.removeprefix(codecs.BOM_UTF8)


def _of_validation(error: ValidationError) -> InvalidError | TooLargeError:
    """The first error of pydantic, without the value."""
    first: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return _of_json(str(first["msg"]))
    where = ".".join(map(str, first["loc"])) or "body"
    param = str(first["loc"][0]) if first["loc"] else None
    return InvalidError(f"{where}: {first['msg'][:300]}", param=param, code=WRONG_TYPE)


def _of_json(message: str) -> InvalidError | TooLargeError:
    if "recursion limit" in message:
        return TooLargeError("body: the JSON is nested too deeply")
    if "hex escape" in message:
        message += "; a character beyond U+FFFF takes both halves of its surrogate pair, in one string"
    return InvalidError(f"body: {message}", code="invalid_json")


def _bound_containers(body: bytes) -> None:
    """TooLargeError for more lists and objects than can be made while the event loop waits: making one takes 0.3 us."""
    if len(body) > MOST_STRUCTURE and len(_STRINGS.sub(b"", body)) > MOST_STRUCTURE:
        raise TooLargeError(f"body: more than {MOST_STRUCTURE} bytes in addition to its strings")
    if _brackets(body) <= MOST_CONTAINERS:
        return
    inside = sum(_brackets(text[0]) for text in _STRINGS.finditer(body))  # brackets in texts make nothing
    if (count := _brackets(body) - inside) > MOST_CONTAINERS:
        raise TooLargeError(f"body: {count} lists and objects: expected at most {MOST_CONTAINERS}")


def _brackets(part: bytes) -> int:
    return part.count(b"[") + part.count(b"{")


def texts_or_ids(value: object, *, most: int, name: str = "input") -> Inputs:
    """Read the field `name`: a text or texts -> list of str; ids or lists of ids -> list of (T,) int32.

    UsageError naming the index for anything that is neither, TooLargeError for more than `most`.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        code = "empty" if value in (None, []) else WRONG_TYPE
        raise InvalidError(f"{name}: expected a text or a list of at least one text", param=name, code=code)
    if isinstance(value[0], int):
        return [_ids(value, 0)]
    if len(value) > most:
        raise TooLargeError(f"{name}: {len(value)} texts, this server takes {most} a request", param=name)
    if isinstance(value[0], list):
        return [_ids(item, index) for index, item in enumerate(value)]
    return [_text(item, index) for index, item in enumerate(value)]


Texts = Annotated[
    Any,
    WithJsonSchema({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""A field that `one_or_more_texts` reads."""


def one_or_more_texts(value: object, *, param: str) -> list[str]:
    """Read a field that is a text or a list of texts, empty ones too; InvalidError naming the one that is not."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise InvalidError(f"{param}: expected a string or a list of strings, not {kind_of(value)}", param=param)
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise not_a_text(f"{param}[{index}]", item, param=param)
    return value


def not_a_text(place: str, item: object, *, param: str) -> InvalidError:
    """The error for an item that is not a string; `place` names it."""
    return InvalidError(f"{place}: expected a string, not {kind_of(item)}", param=param, code="invalid_input")


def _text(item: object, index: int) -> str:
    if not isinstance(item, str):
        raise TextError(f"expected a string, not {kind_of(item)}", index=index)
    return item


def _ids(item: object, index: int) -> TokenIds:
    if not isinstance(item, list) or not item:
        found = "an empty list" if item == [] else kind_of(item)
        raise TextError(f"expected a list of token ids, not {found}", index=index)
    for place, number in enumerate(item):
        if type(number) is not int or not 0 <= number <= LARGEST_ID:
            raise TextError(f"token {place} is not a token id (an integer from 0)", index=index)
    return np.array(item, np.int32)


def kind_of(item: object) -> str:
    """The kind of a JSON value, in JSON's words."""
    names = {type(None): "null", dict: "an object", list: "a list", bool: "a boolean", str: "a string"}
    return names.get(type(item), "a number")
