"""Vectors to the bytes of an answer, in every form that clients ask for. Knows nothing of requests and models.

Rows are written one at a time, so that a thread that writes a large answer lets the others run in between.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pydantic_core import to_json

from nestling import vectors
from nestling.serve.wire import Form
from nestling.vectors import Floats

PIECE_BYTES = 1 << 18
"""Size from which on a piece of an answer is closed."""


def rows(pooled: Floats, dimension: int, *, normalised: bool) -> Floats:
    """Pooled states to answers: (B, D) -> (B, dimension); unit rows, or cut as they are."""
    return vectors.finish(pooled, dimension) if normalised else pooled[:, :dimension]


def to_int8(row: Floats) -> list[int]:
    """One vector as whole numbers from -127 to 127, the largest component at an end; compare by cosine."""
    scaled: list[int] = np.rint(row * (127 / np.abs(row).max())).astype(int).tolist()
    return scaled


def to_ubinary(row: Floats) -> list[int]:
    """The signs of a vector, eight a byte, first component in the highest bit, 1 for more than zero: D -> D / 8."""
    packed: list[int] = np.packbits(row > 0).tolist()
    return packed


def to_binary(row: Floats) -> list[int]:
    """`to_ubinary` as signed bytes: each less 128, as sentence-transformers has it."""
    return [byte - 128 for byte in to_ubinary(row)]


def _to_floats(row: Floats) -> list[float]:
    numbers: list[float] = row.tolist()
    return numbers


_FORMS: Mapping[Form, Callable[[Floats], Any]] = {
    Form.FLOAT: _to_floats,
    Form.BASE64: vectors.to_base64,
    Form.INT8: to_int8,
    Form.BINARY: to_binary,
    Form.UBINARY: to_ubinary,
}


def embeddings(values: Floats, *, form: Form, model: str, tokens: int) -> list[bytes]:
    """The answer of `/v1/embeddings` for (B, D) vectors, in pieces: a `list` in the order of the input, and the usage.

    It is never one string: copying 80 MB would hold up every other thread.
    """
    write = _FORMS[form]
    pieces, piece = list[bytes](), bytearray(b'{"object":"list","data":[')
    for index, row in enumerate(values):
        comma = b"," if index else b""
        piece += b'%b{"object":"embedding","index":%d,"embedding":%b}' % (comma, index, to_json(write(row)))
        if len(piece) > PIECE_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
    usage = to_json({"prompt_tokens": tokens, "total_tokens": tokens})
    piece += b'],"model":%b,"usage":%b}' % (to_json(model), usage)
    return [*pieces, bytes(piece)]
