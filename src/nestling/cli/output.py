"""Vectors in the formats that `nestling embed` writes. Pure functions of texts, vectors and counts."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from nestling.vectors import Floats


class Format(StrEnum):
    """How vectors are written."""

    TEXT = "text"
    ARRAY = "array"
    JSON = "json"
    JSONL = "jsonl"
    NPY = "npy"


@dataclass(frozen=True, slots=True)
class Embedded:
    """What `embed` made: (B, D) unit vectors of B texts, the model's reference and the tokens used."""

    texts: Sequence[str]
    vectors: Floats
    model: str
    tokens: int


def render(embedded: Embedded, form: Format) -> bytes:
    """The bytes of the result: text and jsonl one line a text, array and json one document, npy a numpy file."""
    return _RENDERERS[form](embedded)


def _text(embedded: Embedded) -> bytes:
    return "".join(" ".join(f"{x:.8g}" for x in row.tolist()) + "\n" for row in embedded.vectors).encode()


def _array(embedded: Embedded) -> bytes:
    return (json.dumps(embedded.vectors.tolist()) + "\n").encode()


def _json(embedded: Embedded) -> bytes:
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(embedded.vectors.tolist())]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return (json.dumps({"object": "list", "model": embedded.model, "data": data, "usage": usage}) + "\n").encode()


def _jsonl(embedded: Embedded) -> bytes:
    pairs = zip(embedded.texts, embedded.vectors.tolist(), strict=True)
    lines = [
        json.dumps({"index": i, "text": text, "embedding": row}, ensure_ascii=False)
        for i, (text, row) in enumerate(pairs)
    ]
    return "".join(line + "\n" for line in lines).encode()


def _npy(embedded: Embedded) -> bytes:
    file = io.BytesIO()
    np.save(file, embedded.vectors)
    return file.getvalue()


_RENDERERS: dict[Format, Callable[[Embedded], bytes]] = {
    Format.TEXT: _text,
    Format.ARRAY: _array,
    Format.JSON: _json,
    Format.JSONL: _jsonl,
    Format.NPY: _npy,
}
