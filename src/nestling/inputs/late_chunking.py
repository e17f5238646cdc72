"""Which tokens of a document belong to which of its chunks, for late chunking (Günther et al. 2024).

A chunk is a span of characters, [start, end) in code points, whose ends lie between user-perceived characters (the
extended grapheme clusters of Unicode's annex 29), so that normalising and tokenizing the whole document takes no
character apart. A token belongs to the chunk that holds its last character: a word's token often begins with the blank
before the word. The prefix, and a token that begins in it, count with the document's first character. So chunks that
cover a document without overlap own each of its tokens once. Knows nothing of models.
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
Places = NDArray[np.int64]
_CHARACTERS = pre_tokenizers.Split(Regex(r"\X"), "isolated")


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of one document: `spans` in characters, `counts` tokens of each, (C, dim) unit `vectors`."""

    spans: tuple[Span, ...]
    counts: tuple[int, ...]
    vectors: Floats


@dataclass(frozen=True, slots=True)
class Cut:
    """How a document is cut: at `spans`, or where sentences end into at most `chunk_tokens` tokens each.

    `overlap` is how many tokens neighbours may share.
    """

    spans: Sequence[Span] | None = None
    chunk_tokens: int | None = None
    overlap: int = 0


@dataclass(frozen=True, slots=True)
class ChunkedIds:
    """A document's (T,) token ids, prefix and all; its C spans, and C arrays of the places of their tokens."""

    ids: NDArray[np.int32]
    spans: tuple[Span, ...]
    places: tuple[Places, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each chunk."""
        return tuple(map(len, self.places))


def chunk(document: str, cut: Cut, *, tokenizer: Tokenizer, prefix: str, limit: int) -> ChunkedIds:
    """Tokenize and cut a document; UsageError for a cut that cannot be made, TextError for more than `limit` tokens."""
    if (cut.spans is None) == (cut.chunk_tokens is None):
        raise UsageError("spans, chunk_tokens: one of them says what the chunks are", param="spans")
    overlap = whole_number(cut.overlap, param="overlap", least=0)
    ids, offsets = tokenizer.encode_with_places(prefix + document)
    if len(ids) > limit:
        raise TextError(f"{len(ids)} tokens, this model sees {limit} at once; late chunking never cuts a text", index=0)
    if cut.spans is not None:
        spans = check_spans(document, cut.spans, overlapping=overlap > 0)
        places = owned(offsets, spans, prefix=len(prefix))
        _check_owned(spans, places, overlap=overlap)
    else:
        assert cut.chunk_tokens is not None
        count = _counter(tokenizer)
        spans = split(document, chunk_tokens=cut.chunk_tokens, overlap=overlap, count=count)
        spans = _merge_unowned(spans, owned(offsets, spans, prefix=len(prefix)))
        places = owned(offsets, spans, prefix=len(prefix))
    return ChunkedIds(ids, spans, tuple(places))


def _counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode([text])[0])


def check_spans(document: str, spans: Sequence[Span], *, overlapping: bool) -> tuple[Span, ...]:
    """The spans: not empty, in order, apart unless `overlapping`; UsageError naming one that is not so."""
    if not isinstance(spans, Iterable) or isinstance(spans, str | bytes):
        raise _refused(f"expected a list of pairs of whole numbers, not {type(spans).__name__}")
    checked = tuple(_span(document, index, span) for index, span in enumerate(spans))
    if not checked:
        raise _refused("none given; at least one is needed")
    for index, (before, span) in enumerate(pairwise(checked), 1):
        if span[0] < before[0] or span[1] < before[1] or span == before:
            raise _refused(f"{index} {span} is out of order after {before}; spans go from left to right")
        if span[0] < before[1] and not overlapping:
            raise _refused(f"{index} {span} overlaps {before}; overlap says how many tokens neighbours may share")
    _check_ends(document, checked)
    return checked


def _span(document: str, index: int, span: Span) -> Span:
    try:
        start, end = (operator.index(place) for place in span)
    except (TypeError, ValueError):
        raise _refused(f"{index} {span!r}: expected a pair of whole numbers, start and end in characters") from None
    if not 0 <= start <= end <= len(document):
        raise _refused(f"{index} {(start, end)}: from 0 to the document's {len(document)} characters")
    if start == end:
        raise _refused(f"{index} {(start, end)} is empty")
    return start, end


def _check_ends(document: str, spans: Sequence[Span]) -> None:
    inside = {place: piece for piece in _combined(document) for place in range(piece[0] + 1, piece[1])}
    for index, span in enumerate(spans):
        for place in span:
            if place in inside:
                start, end = inside[place]
                raise _refused(
                    f"{index} {span}: {place} cuts the combined character {document[start:end]!r}, which goes from "
                    f"{start} to {end}"
                )


def _combined(document: str) -> Iterator[Span]:
    """Characters of several code points."""
    if document.isascii() and "\r" not in document:
        return
    for _, (start, end) in _CHARACTERS.pre_tokenize_str(document):
        if end - start > 1:
            yield start, end


def owned(offsets: NDArray[np.int64], spans: Sequence[Span], *, prefix: int) -> list[Places]:
    """The tokens of each span: offsets (T, 2) in the prefixed document, C spans in the bare one -> C arrays of places.

    `prefix` is the prefix's length in characters. A span may come out without a token.
    """
    last = np.maximum(offsets[:, 1] - 1 - prefix, 0)
    return [np.flatnonzero((last >= start) & (last < end)) for start, end in spans]


def _check_owned(spans: Sequence[Span], places: Sequence[Places], *, overlap: int) -> None:
    """UsageError for a span without a token of its own, and for neighbours that share more than `overlap`."""
    for index, (span, tokens) in enumerate(zip(spans, places, strict=True)):
        if not len(tokens):
            raise _refused(f"{index} {span} has no token of its own: it is part of one that ends in the next chunk")
        shared = len(np.intersect1d(tokens, places[index - 1])) if index else 0
        if shared > overlap:
            raise _refused(
                f"{index} {span} shares {shared} tokens with the one before it, overlap={overlap} allows less"
            )


def split(document: str, *, chunk_tokens: int, overlap: int, count: Callable[[str], int]) -> tuple[Span, ...]:
    """Spans of at most `chunk_tokens` tokens each that cover the document; neighbours share at most `overlap` tokens.

    They end where paragraphs do, else sentences (Unicode's annex 29), else words. `count` tells a text's tokens: a
    chunk's are counted as if it stood alone. By the package semantic-text-splitter, the extra `chunks`.
    """
    chunk_tokens = whole_number(chunk_tokens, param="chunk_tokens")
    if not 0 <= overlap < chunk_tokens:
        raise UsageError(f"overlap={overlap}: from 0 to less than chunk_tokens={chunk_tokens}", param="overlap")
    library = need("semantic_text_splitter", wanted_for="chunk_tokens", extra="chunks", param="chunk_tokens")
    found = library.TextSplitter.from_callback(count, chunk_tokens, overlap, False).chunk_indices(document)  # noqa: FBT003 - no trimming
    return tuple((start, start + len(text)) for start, text in found)


def _merge_unowned(spans: Sequence[Span], places: Sequence[Places]) -> tuple[Span, ...]:
    """The spans with each that owns no token joined to the next, which has the token that it is a part of."""
    merged: list[Span] = []
    start: int | None = None
    for span, tokens in zip(spans, places, strict=True):
        start = span[0] if start is None else start
        if len(tokens):
            merged.append((start, span[1]))
            start = None
    assert start is None, "the document's last character ends its last token"
    return tuple(merged)


def _refused(message: str) -> UsageError:
    return UsageError(f"spans: {message}", param="spans")
