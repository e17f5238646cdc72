"""Images in JSON, as the clients of every dialect write them. Nothing is decoded here."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeGuard

from pydantic import WithJsonSchema

from nestling.errors import ImageError, InputError, TextError, UsageError
from nestling.formats.tower_shape import PROMPT
from nestling.server.api.bodies import Body, kind_of, texts_or_ids
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Inputs, Picture

KEYS = ("text", "image", "url", "bytes")
"""Of an item: a text, or an image as base64, data URI or URL (Jina), a URL or base64 (LlamaIndex)."""
INSTRUCTION = PROMPT.partition("<|vision_end|>")[2].partition("<|im_end|>")[0]
"""The text that the model's own prompt has after every image."""
_PARTS = ("text", "image_url", "image_base64")
_URL = re.compile(r"https?://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:image/", re.IGNORECASE)


def inputs_of(value: object, messages: object, *, most: int) -> Inputs:
    """Read `input`, or vLLM's `messages` in its place: texts, ids, or texts and images mixed.

    UsageError naming the index for anything else, TooLargeError for more than `most`.
    """
    if messages is not None:
        if value is not None:
            raise InvalidError("messages: not together with input", param="messages", code="contradiction")
        return [of_messages(messages)]
    listed = value if isinstance(value, list) else [value]
    if not any(isinstance(one, dict) or (isinstance(one, str) and _DATA_URI.match(one)) for one in listed):
        return texts_or_ids(value, most=most)
    if len(listed) > most:
        raise TooLargeError(f"input: {len(listed)} items, this server takes {most} a request", param="input")
    return [_entry(one, index) for index, one in enumerate(listed)]


def of_texts(value: object, *, most: int) -> list[str | Picture]:
    """Images alone, each written as a text; errors as `inputs_of`."""
    found = texts_or_ids(value, most=most)
    for index, one in enumerate(found):
        if not isinstance(one, str):
            raise ImageError("expected a data URI, base64 or a URL, not token ids", index=index)
    return [picture(str(one), "image", index) for index, one in enumerate(found)]


def has_image(document: object) -> TypeGuard[dict[str, Any]]:
    """True for a document of a ranking that means an image, whatever else it has."""
    return isinstance(document, dict) and any(document.get(key) is not None for key in KEYS if key != "text")


def of_document(document: Mapping[str, Any], index: int) -> str | Picture:
    """A ranking's image; InvalidError naming the document that is none."""
    try:
        return of_object(document, index)
    except InputError as error:
        message = f"documents[{index}]: {error.reason}"
        raise InvalidError(message, param="documents", code="invalid_input") from None


def check_texts(inputs: Sequence[object], *, most: int) -> None:
    """TooLargeError for more characters of text than a body without images may have bytes."""
    if (total := sum(len(one) for one in inputs if isinstance(one, str))) > most:
        raise TooLargeError(f"body: {total} characters of text; this server's limit is {most}", param="input")


def _entry(item: object, index: int) -> str | Picture:
    if isinstance(item, dict):
        return of_prompt(item, index) if item.keys() & {"prompt_string", "content"} else of_object(item, index)
    if not isinstance(item, str):
        raise TextError(f"expected a string or an object with text or image, not {kind_of(item)}", index=index)
    return of_text(item)


def of_prompt(item: Mapping[str, Any], index: int) -> str | Picture:
    """llama-server's object: a `prompt_string`, or a `content` of parts, of which texts are joined as they are."""
    text = item.get("prompt_string")
    if isinstance(text, str) and not item.get("multimodal_data"):
        return text
    try:
        parts = [_part(part) for part in _objects(item.get("content"))]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else _only(parts)
    except UsageError as error:
        said = error.reason if isinstance(error, InputError) else error
        raise TextError(f"expected a prompt_string or a content of parts: {said}", index=index) from None


def of_text(text: str) -> str | Picture:
    """A text, or the image that a bare data URI is."""
    return Picture(text) if _DATA_URI.match(text) else text


def of_object(item: Mapping[str, Any], index: int) -> str | Picture:
    """An item's text or image; TextError or ImageError for an object that is neither, or both."""
    named = [key for key, value in item.items() if value is not None]
    odd = next((key for key in item if key not in KEYS), None)
    if odd is not None or len(named) != 1:
        found = f"the key {odd[:40]!r}" if odd is not None else " and ".join(named) or "none"
        raise TextError(f"expected one of the keys {', '.join(KEYS)}, found {found}", index=index)
    [key], value = named, item[named[0]]
    if not isinstance(value, str):
        raise TextError(f"{key}: expected a string, not {kind_of(value)}", index=index)
    return value if key == "text" else picture(value, key, index)


_MESSAGES = {"type": "array", "items": {"type": "object"}, "minItems": 1}
Messages = Annotated[Any, WithJsonSchema(_MESSAGES)]
"""A field that `of_messages` reads."""


class Content(Body):
    """One of Cohere's or Voyage's `inputs`."""

    content: list[Any]
    """One part: a text or an image."""


def of_contents(inputs: Sequence[Content], *, most: int) -> list[str | Picture]:
    """Cohere's and Voyage's `inputs`, each one text or one image; errors name the input that is neither."""
    if not inputs:
        raise InvalidError("inputs: expected at least one", param="inputs", code="empty")
    if len(inputs) > most:
        raise TooLargeError(f"inputs: {len(inputs)}, this server takes {most} a request", param="inputs")
    return [_of_content(one, index) for index, one in enumerate(inputs)]


def _of_content(one: Content, index: int) -> str | Picture:
    try:
        return _only([_part(part) for part in _objects(one.content)])
    except UsageError as error:
        raise _refused(f"inputs[{index}].content", error, param="inputs") from None


def of_messages(value: object) -> str | Picture:
    """VLLM's `messages`: one user's text, or one image; InvalidError for anything else."""
    try:
        return _only([part for message in _objects(value) for part in _parts(message)])
    except UsageError as error:
        raise _refused("messages", error, param="messages") from None


def _refused(place: str, error: UsageError, *, param: str) -> InvalidError:
    said = error.reason if isinstance(error, InputError) else error
    return InvalidError(f"{place}: {said}", param=param, code="invalid_input")


def _only(parts: Sequence[str | Picture]) -> str | Picture:
    """The single text or image of some parts; next to an image, only the text of the model's prompt is allowed."""
    pictures = [part for part in parts if isinstance(part, Picture)]
    texts = [part for part in parts if isinstance(part, str)]
    if len(pictures) == 1 and set(texts) <= {INSTRUCTION}:
        return pictures[0]
    if len(texts) == 1 and not pictures:
        return texts[0]
    raise UsageError(
        f"expected one text or one image for a vector, found {len(texts)} and {len(pictures)}; with an image,"
        f" the only text allowed is {INSTRUCTION!r}"
    )


def picture(value: str, key: str, index: int) -> Picture:
    """The image that a text means; ImageError naming the place of one that is empty."""
    if not value:
        raise ImageError(f"{key}: empty; expected base64, a data URI or a URL", index=index)
    return Picture(value, is_url=key != "bytes" and bool(_URL.match(value)))


def _parts(message: Mapping[str, Any]) -> list[str | Picture]:
    if message.get("role", "user") != "user":
        raise UsageError("role: expected user")
    content = message.get("content")
    return [content] if isinstance(content, str) else [_part(one) for one in _objects(content)]


def _part(part: Mapping[str, Any]) -> str | Picture:
    kind = part.get("type")
    value = part.get(kind) if kind in _PARTS else None
    if kind == "image_url" and isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str):
        raise UsageError(f"expected parts of type {', '.join(_PARTS)}, each with its value under that name")
    return value if kind == "text" else picture(value, str(kind), 0)


def _objects(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise UsageError("expected a list of at least one object")
    return value
