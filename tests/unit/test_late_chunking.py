"""Late chunking: which token is whose, what is refused, and that chunks add up to the document."""

import sys
import unicodedata
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny_gguf

from nestling.engine.protocol import plain
from nestling.errors import TextError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.inputs import late_chunking
from nestling.inputs.late_chunking import Cut
from nestling.inputs.tokenizer import Tokenizer
from nestling.models.embedder import Embedder

FAMILY = "👨‍👩‍👧‍👦"
DOCUMENT = f"Cafe\u0301 in the rain. 海滩上美丽的日落。 غروبٌ جميل {FAMILY} \u1112\u1161\u11ab 🇯🇵🇫🇷 and क्षि,\r\nthe end."
SAME = 1e-5
"""Float32 sums in another order."""


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path]) -> Embedder:
    return Embedder.load(tiny_models["F32"], engine="reference")


@pytest.fixture(scope="module")
def tokenizer(tiny_models: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile.open(tiny_models["F32"]))


def characters(text: str) -> list[int]:
    """Indices between user-perceived characters, the ends among them."""
    inside = {place for start, end in late_chunking._combined(text) for place in range(start + 1, end)}
    return [place for place in range(len(text) + 1) if place not in inside]


@pytest.mark.parametrize("role", ["query", "passage", "raw"])
def test_one_chunk_of_everything_has_the_documents_vector(model: Embedder, role: str) -> None:
    chunks = model.encode_chunks(DOCUMENT, spans=[(0, len(DOCUMENT))], prompt_name=role)
    np.testing.assert_allclose(chunks.vectors, model.encode([DOCUMENT], prompt_name=role), atol=SAME)
    assert chunks.counts == (len(model.tokenize([DOCUMENT], prompt_name=role)[0]),)
    small = model.encode_chunks(DOCUMENT, spans=[(0, len(DOCUMENT))], prompt_name=role, truncate_dim=64)
    np.testing.assert_allclose(small.vectors, model.encode([DOCUMENT], prompt_name=role, truncate_dim=64), atol=SAME)


@pytest.mark.parametrize("place", characters(DOCUMENT)[2:-2:5])
def test_the_weighted_mean_of_two_chunks_is_the_documents(model: Embedder, place: int) -> None:
    found = model.chunk(DOCUMENT, Cut(spans=[(0, place), (place, len(DOCUMENT))]))
    pooled = model.pool_chunks(found.ids, found.indices)
    counts = np.array(found.counts)
    mean = (pooled * counts[:, None]).sum(0) / counts.sum()
    np.testing.assert_allclose(mean, model.pool(plain([found.ids]))[0], atol=SAME)


def test_a_chunk_is_seen_in_its_context(model: Embedder) -> None:
    text = "the end"
    alone = model.encode([text], prompt_name="passage")
    whole = "in another the " + text
    late = model.encode_chunks(whole, spans=[(15, len(whole))]).vectors
    assert float((alone * late).sum()) < 0.99


texts = st.text(
    st.one_of(
        st.sampled_from("ae \u0301\u0327\u0300\u0958\u1112\u1161\u11ab\u200d👨👩🏽🇯🇵\r\n海م\u064e क्ष"),
        st.characters(codec="utf-8"),
    ),
    min_size=1,
    max_size=30,
)


@given(texts, st.data())
def test_chunks_share_out_the_tokens_as_their_bytes_say(tokenizer: Tokenizer, text: str, data: Any) -> None:
    """An oracle without offsets: byte-level tokens are so many bytes of the normalised text each."""
    prefix = "Passage: "
    places = characters(text)
    cuts = sorted(data.draw(st.sets(st.sampled_from(places), max_size=4)) | {0, len(text)})
    spans = list(pairwise(cuts))
    ids, offsets = tokenizer.encode_with_offsets(prefix + text)
    owned = late_chunking.owned(offsets, spans, prefix=len(prefix))
    assert sorted(np.concatenate(owned).tolist()) == list(range(len(ids)))
    ends = [len(unicodedata.normalize("NFC", prefix + text[:cut]).encode()) for cut in cuts[1:]]
    if ends[-1] != (sizes := _byte_ends(tokenizer, ids))[-1]:
        return  # a character that one of the two Unicode versions does not know
    expected = [int(np.searchsorted(ends, size)) for size in sizes]
    found = [next(chunk for chunk, mine in enumerate(owned) if token in mine) for token in range(len(ids))]
    assert found == expected


def _byte_ends(tokenizer: Tokenizer, ids: Any) -> list[int]:
    names = tiny_gguf.tokens()
    lengths = [len(names[number]) for number in ids.tolist()]  # byte symbols are one character a byte
    return list(accumulate(lengths))


def test_offsets_are_those_of_the_text_before_it_is_normalised(tokenizer: Tokenizer) -> None:
    text = "e\u0301e"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert len(ids) == 3, "two bytes of the composed letter, and one"
    assert offsets[-1].tolist() == [2, 3]
    assert [len(one) for one in late_chunking.owned(offsets, [(0, 2), (2, 3)], prefix=0)] == [2, 1]


SPAN_ERRORS: dict[str, tuple[str, list[Any], str]] = {
    "out of order": (
        "abc def",
        [(4, 7), (0, 3)],
        r"spans\[1\]=\(0, 3\): expected ascending spans, this one follows \(4, 7\)",
    ),
    "overlapping": ("abc def", [(0, 5), (4, 7)], r"spans\[1\]=\(4, 7\): overlaps \(0, 5\); overlap=N"),
    "twice": ("abc def", [(0, 5), (0, 5)], "expected ascending"),
    "within the other": ("abc def", [(0, 7), (2, 5)], "expected ascending"),
    "empty": ("abc def", [(0, 3), (3, 3)], r"spans\[1\]=\(3, 3\): expected start < end, this span is empty"),
    "none": ("abc def", [], "at least one"),
    "behind the end": ("abc def", [(0, 8)], "expected 0 <= start < end <= 7, the document's length"),
    "before the start": ("abc def", [(-1, 3)], "expected 0 <= start"),
    "backwards": ("abc def", [(3, 1)], "expected 0 <= start"),
    "no pair": ("abc def", [(1, 2, 3)], r"expected \[start, end\]"),
    "no number": ("abc def", [("a", 3)], r"expected \[start, end\]"),
    "a fraction": ("abc def", [(0.0, 3.0)], r"expected \[start, end\]"),
    "a letter and its accent": (
        "cafe\u0301",
        [(0, 4), (4, 5)],
        "4 splits the character 'e\u0301' .3 to 5.",
    ),
    "a family": (f"a {FAMILY}", [(0, 4)], "4 splits the character"),
    "a flag": ("🇯🇵🇫🇷", [(0, 1)], "1 splits"),
    "a Hangul syllable": ("\u1112\u1161\u11ab", [(0, 2)], "2 splits"),
    "an Arabic vowel": ("\u0628\u064e", [(0, 1)], "1 splits"),
    "a line's end": ("a\r\nb", [(0, 2)], "2 splits"),
    "half of a token": ("the", [(0, 1), (1, 3)], r"spans\[0\]=\(0, 1\): it has no token"),
}


@pytest.mark.parametrize("name", SPAN_ERRORS)
def test_spans_that_are_none_are_refused(model: Embedder, name: str) -> None:
    document, spans, message = SPAN_ERRORS[name]
    with pytest.raises(UsageError, match=message) as caught:
        model.encode_chunks(document, spans=spans, prompt_name="raw")
    assert caught.value.param == "spans"


def test_half_of_a_surrogate_pair_is_refused(model: Embedder) -> None:
    pair = "\ud83d\ude00"
    with pytest.raises(TextError, match=r"surrogate U\+D83D"):
        model.encode_chunks(pair, spans=[(0, 1), (1, 2)])


def test_neighbours_share_as_many_tokens_as_was_said(model: Embedder) -> None:
    document, spans = "a b c d e f", [(0, 6), (4, 11)]
    chunks = model.encode_chunks(document, spans=spans, overlap=2, prompt_name="raw")
    assert sum(chunks.counts) - len(model.tokenize([document], prompt_name="raw")[0]) == 2
    with pytest.raises(UsageError, match="shares 2 tokens with the span before it, more than overlap=1"):
        model.encode_chunks(document, spans=spans, overlap=1, prompt_name="raw")
    with pytest.raises(UsageError, match="overlap=-1: expected at least 0"):
        model.encode_chunks(document, spans=spans, overlap=-1)


def test_gaps_are_left_out(model: Embedder) -> None:
    chunks = model.encode_chunks("abc def ghi", spans=[(8, 11)])
    assert chunks.counts == (3,)
    assert chunks.spans == ((8, 11),)


def test_a_document_that_is_too_long_is_not_cut(model: Embedder) -> None:
    document = "x " * model.spec.max_tokens
    with pytest.raises(TextError, match=rf"this model takes {model.spec.max_tokens}; late chunking never truncates"):
        model.encode_chunks(document, spans=[(0, 2)])


@pytest.mark.parametrize("arguments", [{}, {"spans": [(0, 1)], "chunk_tokens": 4}])
def test_one_thing_says_what_the_chunks_are(model: Embedder, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="one of them"):
        model.encode_chunks("a b", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens=0: expected at least 1"),
        ({"chunk_tokens": 4, "overlap": 4}, "overlap=4: expected less than chunk_tokens=4"),
    ],
)
def test_sizes_that_cannot_be_are_refused(model: Embedder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.encode_chunks("a b", **arguments)


SENTENCES = (
    "Berlin is the capital. It has 3.6 million people.\n\nThe city lies on the Spree. "
    "海滩上美丽的日落。让人忘记了时间。"
)


@pytest.mark.parametrize("size", [1, 2, 7, 30, 1000])
def test_chunks_by_size_cover_the_document(model: Embedder, size: int) -> None:
    chunks = model.encode_chunks(SENTENCES, chunk_tokens=size)
    assert "".join(SENTENCES[start:end] for start, end in chunks.spans) == SENTENCES
    assert sum(chunks.counts) == len(model.tokenize([SENTENCES], prompt_name="passage")[0])
    assert min(chunks.counts) > 0


def test_cuts_are_where_sentences_end(model: Embedder) -> None:
    pieces = [SENTENCES[start:end] for start, end in model.encode_chunks(SENTENCES, chunk_tokens=30).spans]
    assert [piece.rstrip()[-1] in ".。" for piece in pieces] == [True] * len(pieces)
    assert len(pieces) > 2


def test_chunks_by_size_overlap_as_asked(model: Embedder) -> None:
    document = "One two. Three four. Five six. Seven eight. Nine ten. Eleven twelve."
    found = model.chunk(document, Cut(chunk_tokens=30, overlap=15))
    shared = [len(np.intersect1d(*pair)) for pair in pairwise(found.indices)]
    assert all(0 < count <= 15 for count in shared)
    assert len(shared) > 1


def test_without_the_splitter_the_error_names_the_extra(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "semantic_text_splitter", None)
    with pytest.raises(UsageError, match=r"nestling\[chunks\]"):
        model.encode_chunks("a b", chunk_tokens=4)
