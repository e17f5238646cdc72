"""Which tokens of a document belong to which of its chunks, for late chunking (Günther et al. 2024).

A chunk is a span of characters, [start, end) in code points. Its ends must lie between user-perceived characters
(extended grapheme clusters, Unicode Standard Annex 29), so that no chunk splits a character that NFC or a token joins.
A token belongs to the chunk with its last character, because a word's token usually begins with the space before the
word. The prefix, and a token that begins in it, belong to the document's first character. So every token belongs to
exactly one of the chunks that cover a document without overlap. Does not know models.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

from nestling._util.extras import need
from nestling._util.numbers import whole_number
from nestling.errors import TextError, UsageError
from nestling.inputs.tokenizer import Tokenizer
from nestling.vectors import Floats

Span = tuple[int, int]
Indices = NDArray[np.int64]
_CHARACTERS = pre_tokenizers.Split(Regex(r"\X"), "isolated")


@dataclass(frozen=True, slots=True)
class Chunks:
    """The C chunks of one document, as `Embedder.encode_chunks` returns them.

    Args:
        spans: [start, end) of each chunk, in characters (code points).
        counts: tokens of each chunk.
        vectors: (C, dim) float32, unit rows.

    Example:
        chunks = model.encode_chunks(document, chunk_tokens=256)
        first = document[slice(*chunks.spans[0])], chunks.vectors[0]
    """

    spans: tuple[Span, ...]
    counts: tuple[int, ...]
    vectors: Floats


@dataclass(frozen=True, slots=True)
class Cut:
    """How to chunk a document: at given `spans`, or at sentence ends into at most `chunk_tokens` tokens each.

    `overlap` is the most tokens that neighbouring chunks may share.
    """

    spans: Sequence[Span] | None = None
    chunk_tokens: int | None = None
    overlap: int = 0


@dataclass(frozen=True, slots=True)
class ChunkedIds:
    """A document's (T,) token ids with its prefix, its C spans, and each span's token indices (C arrays)."""

    ids: NDArray[np.int32]
    spans: tuple[Span, ...]
    indices: tuple[Indices, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each chunk."""
        return tuple(map(len, self.indices))


def chunk(document: str, cut: Cut, *, tokenizer: Tokenizer, prefix: str, limit: int) -> ChunkedIds:
    """Tokenize and chunk a document; UsageError for impossible chunks, TextError for more than `limit` tokens."""
    if (cut.spans is None) == (cut.chunk_tokens is None):
        raise UsageError("spans, chunk_tokens: expected exactly one of them", param="spans")
    overlap = whole_number(cut.overlap, param="overlap", least=0)
    ids, offsets = tokenizer.encode_with_offsets(prefix + document)
    if len(ids) > limit:
        raise TextError(f"{len(ids)} tokens, this model takes {limit}; late chunking never truncates", index=0)
    if cut.spans is not None:
        spans = check_spans(document, cut.spans, overlapping=overlap > 0)
        indices = owned(offsets, spans, prefix=len(prefix))
        _check_owned(spans, indices, overlap=overlap)
    else:
        assert cut.chunk_tokens is not None
        count = _counter(tokenizer)
        spans = split(document, chunk_tokens=cut.chunk_tokens, overlap=overlap, count=count)
        spans = _merge_unowned(spans, owned(offsets, spans, prefix=len(prefix)))
        indices = owned(offsets, spans, prefix=len(prefix))
    return ChunkedIds(ids, spans, tuple(indices))


def _counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode([text])[0])


def check_spans(document: str, spans: Sequence[Span], *, overlapping: bool) -> tuple[Span, ...]:
    """Check that spans are in range, not empty, ascending, and disjoint unless `overlapping`; UsageError naming one."""
    if not isinstance(spans, Iterable) or isinstance(spans, str | bytes):
        raise _refused(f"expected a list of [start, end] pairs, not {type(spans).__name__}")
    checked = tuple(_span(document, index, span) for index, span in enumerate(spans))
    if not checked:
        raise _refused("expected at least one span")
    for index, (before, span) in enumerate(pairwise(checked), 1):
        if span[0] < before[0] or span[1] < before[1] or span == before:
            raise _wrong(index, span, f"expected ascending spans, this one follows {before}")
        if span[0] < before[1] and not overlapping:
            raise _wrong(index, span, f"overlaps {before}; overlap=N allows N shared tokens")
    _check_ends(document, checked)
    return checked


def _span(document: str, index: int, span: Span) -> Span:
    try:
        start, end = (operator.index(place) for place in span)
    except (TypeError, ValueError):
        raise _wrong(index, span, "expected [start, end], two integers (characters)") from None
    if not 0 <= start <= end <= len(document):
        raise _wrong(index, (start, end), f"expected 0 <= start < end <= {len(document)}, the document's length")
    if start == end:
        raise _wrong(index, (start, end), "expected start < end, this span is empty")
    return start, end


def _check_ends(document: str, spans: Sequence[Span]) -> None:
    inside = {place: piece for piece in _combined(document) for place in range(piece[0] + 1, piece[1])}
    for index, span in enumerate(spans):
        for place in span:
            if place in inside:
                start, end = inside[place]
                raise _wrong(index, span, f"{place} splits the character {document[start:end]!r} ({start} to {end})")


def _combined(document: str) -> Iterator[Span]:
    """The spans of user-perceived characters of several code points."""
    if document.isascii() and "\r" not in document:
        return
    for _, (start, end) in _CHARACTERS.pre_tokenize_str(document):
        if end - start > 1:
            yield start, end


def owned(offsets: NDArray[np.int64], spans: Sequence[Span], *, prefix: int) -> list[Indices]:
    """The token indices of each span: (T, 2) offsets in the prefixed document, C spans in the bare one -> C arrays.

    `prefix` is the prefix's length in characters. A span may have no token.
    """
    last = np.maximum(offsets[:, 1] - 1 - prefix, 0)
    return [np.flatnonzero((last >= start) & (last < end)) for start, end in spans]


def _check_owned(spans: Sequence[Span], indices: Sequence[Indices], *, overlap: int) -> None:
    """UsageError for a span without tokens, and for neighbours that share more than `overlap` tokens."""
    for index, (span, tokens) in enumerate(zip(spans, indices, strict=True)):
        if not len(tokens):
            raise _wrong(index, span, "it has no token: it is part of one that ends after it")
        shared = len(np.intersect1d(tokens, indices[index - 1])) if index else 0
        if shared > overlap:
            raise _wrong(index, span, f"shares {shared} tokens with the span before it, more than overlap={overlap}")


def split(document: str, *, chunk_tokens: int, overlap: int, count: Callable[[str], int]) -> tuple[Span, ...]:
    """Cover the document with spans of at most `chunk_tokens` tokens; neighbours share at most `overlap` tokens.

    They end at paragraph ends, else at sentence ends (Unicode Standard Annex 29), else at word ends. `count` returns
    a text's tokens; each chunk is counted on its own. Uses the package semantic-text-splitter (extra `chunks`).
    """
    chunk_tokens = whole_number(chunk_tokens, param="chunk_tokens")
    if not 0 <= overlap < chunk_tokens:
        raise UsageError(f"overlap={overlap}: expected less than chunk_tokens={chunk_tokens}", param="overlap")
    library = need("semantic_text_splitter", wanted_for="chunk_tokens", extra="chunks", param="chunk_tokens")
    found = library.TextSplitter.from_callback(count, chunk_tokens, overlap, False).chunk_indices(document)  # noqa: FBT003 - no trimming
    return tuple((start, start + len(text)) for start, text in found)


def _merge_unowned(spans: Sequence[Span], indices: Sequence[Indices]) -> tuple[Span, ...]:
    """Join every span without a token to the next span, which has the token that it is part of."""
    merged: list[Span] = []
    start: int | None = None
    for span, tokens in zip(spans, indices, strict=True):
        start = span[0] if start is None else start
        if len(tokens):
            merged.append((start, span[1]))
            start = None
    assert start is None, "the document's last character ends its last token"
    return tuple(merged)


def _refused(message: str) -> UsageError:
    return UsageError(f"spans: {message}", param="spans")


def _wrong(index: int, span: object, message: str) -> UsageError:
    return UsageError(f"spans[{index}]={span!r}: {message}", param="spans")
