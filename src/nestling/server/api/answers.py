"""Vectors and errors to the bytes of an answer, in the forms that several dialects share.

Rows are written one at a time, when they are asked for: no answer is ever whole in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray
from pydantic_core import to_json

from nestling import vectors
from nestling.server.http.problems import Problem
from nestling.vectors import Floats

Numbers = NDArray[Any]
PIECE_BYTES = 1 << 17
"""Size of a piece of an answer, which is written in about a millisecond."""


class Form(StrEnum):
    """What a vector is made of: `embedding_type`, or `encoding_type` as LlamaIndex spells it."""

    FLOAT = "float"
    BASE64 = "base64"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"


def _to_uint8(row: Floats) -> Numbers:
    """Each of int8's numbers plus 128."""
    return (vectors.to_int8(row).astype(np.int16) + 128).astype(np.uint8)


def _to_binary(row: Floats) -> Numbers:
    """Signed bytes: each of ubinary's less 128, as sentence-transformers has it."""
    return (vectors.to_ubinary(row).astype(np.int16) - 128).astype(np.int8)


_NUMBERS: Mapping[Form, Callable[[Floats], Numbers]] = {
    Form.FLOAT: np.ascontiguousarray,
    Form.INT8: vectors.to_int8,
    Form.UINT8: _to_uint8,
    Form.BINARY: _to_binary,
    Form.UBINARY: vectors.to_ubinary,
}


def numbers(row: Floats, form: Form) -> Numbers:
    """One vector's numbers: (D,) -> (D,) float32 or bytes, (D / 8,) for bits, of a form that is not base64."""
    return _NUMBERS[form](row)


def vector(row: Floats, form: Form = Form.FLOAT) -> bytes:
    """One vector as JSON: (D,) -> a list of numbers, or a text of base64.

    A float is written with the digits that tell it from its neighbours in float32: exact once read as float32 again.
    """
    if form is Form.BASE64:
        return in_base64(np.ascontiguousarray(row, "<f4"))
    return orjson.dumps(numbers(row, form), option=orjson.OPT_SERIALIZE_NUMPY)


def in_base64(numbers: Numbers) -> bytes:
    """The bytes of an array as a JSON text in base64."""
    return b'"%b"' % pybase64.b64encode(numbers.data)


def separated(items: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """The parts of items, with a comma between two items."""
    comma = b""
    for item in items:
        yield comma
        yield from item
        comma = b","


def listed(items: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """The parts of a JSON list of items."""
    yield b"["
    yield from separated(items)
    yield b"]"


def vectors_listed(rows: Iterable[Floats], form: Form = Form.FLOAT) -> Iterator[bytes]:
    """The parts of a JSON list of vectors: (B, D) or B arrays of (D,)."""
    return listed((vector(row, form),) for row in rows)


def pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Small parts -> pieces of about `PIECE_BYTES`, each made when it is asked for."""
    piece, size = list[bytes](), 0
    for part in parts:
        piece.append(part)
        size += len(part)
        if size >= PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


def usage(tokens: int) -> dict[str, int]:
    """What a request took, as OpenAI and Jina say it."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error(problem: Problem) -> bytes:
    """An error as OpenAI's clients expect it: `{"error": {message, type, param, code}}`."""
    kind = _KINDS.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")  # noqa: PLR2004 - HTTP's border
    inner = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
    return to_json({"error": inner})
