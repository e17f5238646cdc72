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
    """What `embed` made of B texts, the model's reference and the tokens used.

    `vectors` is (B, D), unit rows, or for multi-vectors B arrays of (T, P).
    """

    texts: Sequence[str]
    vectors: Floats | list[Floats]
    model: str
    tokens: int

    @property
    def rows(self) -> list[list[float]]:
        """The numbers of each text: a list, or a list of lists."""
        return [row.tolist() for row in self.vectors]

    @property
    def kind(self) -> str:
        """What a text has: an `embedding`, or `embeddings`."""
        return "embeddings" if isinstance(self.vectors, list) else "embedding"


def render(embedded: Embedded, form: Format) -> bytes:
    """The bytes of the result: text and jsonl one line a text, array and json one document, npy a numpy file.

    As text, a multi-vector is a line a token and an empty line after each text.
    """
    return _RENDERERS[form](embedded)


def _text(embedded: Embedded) -> bytes:
    if isinstance(embedded.vectors, list):
        return "".join("".join(map(_line, rows)) + "\n" for rows in embedded.vectors).encode()
    return "".join(map(_line, embedded.vectors)).encode()


def _line(row: Floats) -> str:
    return " ".join(f"{x:.8g}" for x in row.tolist()) + "\n"


def _array(embedded: Embedded) -> bytes:
    return (json.dumps(embedded.rows) + "\n").encode()


def _json(embedded: Embedded) -> bytes:
    kind = embedded.kind
    data = [{"object": kind, "index": i, kind: row} for i, row in enumerate(embedded.rows)]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return (json.dumps({"object": "list", "model": embedded.model, "data": data, "usage": usage}) + "\n").encode()


def _jsonl(embedded: Embedded) -> bytes:
    pairs = zip(embedded.texts, embedded.rows, strict=True)
    lines = [
        json.dumps({"index": i, "text": text, embedded.kind: row}, ensure_ascii=False)
        for i, (text, row) in enumerate(pairs)
    ]
    return "".join(line + "\n" for line in lines).encode()


def _npy(embedded: Embedded) -> bytes:
    assert not isinstance(embedded.vectors, list), "several arrays are no array"
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
