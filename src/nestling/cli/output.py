"""The output formats of `nestling embed`."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from nestling.vectors import Floats


class Format(StrEnum):
    """An output format."""

    TEXT = "text"
    ARRAY = "array"
    JSON = "json"
    JSONL = "jsonl"
    NPY = "npy"


DEFAULT_FORMAT: Final = Format.TEXT


@dataclass(frozen=True, slots=True)
class Embedded:
    """The result of `embed` for B texts, with the model's reference and the token count.

    `vectors` is (B, D), unit rows, or B arrays of (T, P) for multi-vectors.
    """

    texts: Sequence[str]
    vectors: Floats | list[Floats]
    model: str
    tokens: int

    @property
    def rows(self) -> list[list[float]]:
        """The vectors as lists: a list per text, or a list of lists for multi-vectors."""
        return [row.tolist() for row in self.vectors]

    @property
    def kind(self) -> str:
        """The key of a text's vectors in JSON: `embedding`, or `embeddings` for multi-vectors."""
        return "embeddings" if isinstance(self.vectors, list) else "embedding"


def render(embedded: Embedded, form: Format) -> bytes:
    """The result in a format: a line per text (text, jsonl), one JSON document (array, json) or a numpy file (npy).

    In the format `text`, a multi-vector has a line per token, and an empty line follows each text.
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
    assert not isinstance(embedded.vectors, list), "npy holds one array"
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
