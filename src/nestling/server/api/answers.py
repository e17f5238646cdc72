"""Vectors to the bytes of an answer, in every form that clients ask for. Knows nothing of requests and models.

Rows are written one at a time, so that a thread that writes a large answer lets the others run in between.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from nestling import vectors
from nestling.models.reranking import Ranked, Scoring
from nestling.server.api.requests import Form
from nestling.vectors import Floats

PIECE_BYTES = 1 << 18
"""Size from which on a piece of an answer is closed."""


def rows(pooled: Floats, dimension: int, *, normalised: bool) -> Floats:
    """Pooled states to answers: (B, D) -> (B, dimension); unit rows, or cut as they are."""
    return vectors.finish(pooled, dimension) if normalised else pooled[:, :dimension]


def _to_int8(row: Floats) -> list[int]:
    numbers: list[int] = vectors.to_int8(row).tolist()
    return numbers


def _to_ubinary(row: Floats) -> list[int]:
    packed: list[int] = vectors.to_ubinary(row).tolist()
    return packed


def _to_binary(row: Floats) -> list[int]:
    """Signed bytes: each of `_to_ubinary` less 128, as sentence-transformers has it."""
    return [byte - 128 for byte in _to_ubinary(row)]


def _to_floats(row: Floats) -> list[float]:
    numbers: list[float] = row.tolist()
    return numbers


_FORMS: Mapping[Form, Callable[[Floats], Any]] = {
    Form.FLOAT: _to_floats,
    Form.BASE64: vectors.to_base64,
    Form.INT8: _to_int8,
    Form.BINARY: _to_binary,
    Form.UBINARY: _to_ubinary,
}


def embeddings(values: Floats, *, form: Form, model: str, tokens: int) -> list[bytes]:
    """The answer of `/v1/embeddings` for (B, D) vectors, in pieces: a `list` in the order of the input."""
    write = _FORMS[form]
    items = (
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, to_json(write(row)))
        for index, row in enumerate(values)
    )
    return _list(items, model, tokens)


def multivectors(values: Sequence[Floats], *, form: Form, model: str, tokens: int) -> list[bytes]:
    """The same for B arrays of (T, P) token vectors, under `embeddings`, each of them in the form asked for."""
    write = _FORMS[form]
    items = (
        b'{"object":"embeddings","index":%d,"embeddings":[%b]}'
        % (index, b",".join(to_json(write(row)) for row in rows))
        for index, rows in enumerate(values)
    )
    return _list(items, model, tokens)


def ranking(
    results: Sequence[Ranked], documents: Sequence[str] | None, *, scoring: Scoring, model: str, tokens: int
) -> list[bytes]:
    """The answer of `/v1/rerank`: the best first, with their documents where these are given."""
    items: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in results]
    if documents is not None:
        items = [{**item, "document": {"text": documents[item["index"]]}} for item in items]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "model": model, "scoring": scoring, "results": items, "usage": usage}
    return [to_json(answer)]


def _list(items: Iterable[bytes], model: str, tokens: int) -> list[bytes]:
    """A `list` in pieces. It is never one string: copying 80 MB would hold up every other thread."""
    pieces, piece, comma = list[bytes](), bytearray(b'{"object":"list","data":['), b""
    for item in items:
        piece += comma + item
        comma = b","
        if len(piece) > PIECE_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
    usage = to_json({"prompt_tokens": tokens, "total_tokens": tokens})
    piece += b'],"model":%b,"usage":%b}' % (to_json(model), usage)
    return [*pieces, bytes(piece)]
