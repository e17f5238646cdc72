"""Images in JSON, as Jina's, LlamaIndex's, Haystack's and vLLM's clients write them. Nothing is decoded here."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from nestling.errors import ImageError, InputError, TextError
from nestling.formats.tower_shape import PROMPT
from nestling.server.api.bodies import kind_of, texts_or_ids
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Inputs, Picture

KEYS = ("text", "image", "url", "bytes")
"""Of an item: a text, or an image as base64, data URI or URL (Jina), a URL or base64 (LlamaIndex)."""
INSTRUCTION = PROMPT.partition("<|vision_end|>")[2].partition("<|im_end|>")[0]
"""The text that the model itself puts behind every image."""
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
        return of_object(item, index)
    if not isinstance(item, str):
        raise TextError(f"expected a text or an object with one, this is {kind_of(item)}", index=index)
    return of_text(item)


def of_text(text: str) -> str | Picture:
    """A text, or the image that a bare data URI is."""
    return Picture(text) if _DATA_URI.match(text) else text


def of_object(item: Mapping[str, Any], index: int) -> str | Picture:
    """An item's text or image; TextError or ImageError for an object that is neither, or both."""
    named = [key for key, value in item.items() if value is not None]
    odd = next((key for key in item if key not in KEYS), None)
    if odd is not None or len(named) != 1:
        found = f"the key {odd[:40]!r}" if odd is not None else " and ".join(named) or "none"
        raise TextError(f"expected one of the keys {', '.join(KEYS)}, this has {found}", index=index)
    [key], value = named, item[named[0]]
    if not isinstance(value, str):
        raise TextError(f"{key}: expected a text, this is {kind_of(value)}", index=index)
    return value if key == "text" else _picture(value, key, index)


def of_messages(value: object) -> str | Picture:
    """VLLM's `messages`: one user's text, or one image; InvalidError for anything else."""
    parts = [part for message in _objects(value) for part in _parts(message)]
    pictures = [part for part in parts if isinstance(part, Picture)]
    texts = [part for part in parts if isinstance(part, str)]
    if len(pictures) == 1 and set(texts) <= {INSTRUCTION}:
        return pictures[0]
    if len(texts) == 1 and not pictures:
        return texts[0]
    raise _refused(
        f"expected one text or one image, this is {len(texts)} and {len(pictures)}; beside an image no text but"
        f" {INSTRUCTION!r}"
    )


def _picture(value: str, key: str, index: int) -> Picture:
    if not value:
        raise ImageError(f"{key}: empty; expected base64, a data URI or a URL", index=index)
    return Picture(value, is_url=key != "bytes" and bool(_URL.match(value)))


def _parts(message: Mapping[str, Any]) -> list[str | Picture]:
    if message.get("role", "user") != "user":
        raise _refused("role: expected user")
    content = message.get("content")
    return [content] if isinstance(content, str) else [_part(one) for one in _objects(content)]


def _part(part: Mapping[str, Any]) -> str | Picture:
    kind = part.get("type")
    value = part.get(kind) if kind in ("text", "image_url") else None
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise _refused("content: expected parts of type text with a text, or image_url with a url")
    return url if kind == "text" else _picture(url, "image_url", 0)


def _objects(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise _refused("expected a list of objects with role and content")
    return value


def _refused(message: str) -> InvalidError:
    return InvalidError(f"messages: {message}", param="messages", code="invalid_input")
