"""BM25, the lexical baseline of visual retrieval. The only module that imports bm25s.

Words are lower-case runs of letters and digits, without stemming or stop words; scores for scripts without spaces
between words are not comparable.
"""

import re
from collections.abc import Sequence

import numpy as np

from nestling.evaluation import extras
from nestling.evaluation.metrics import Doubles

NAME = "BM25"
_WORD = re.compile(r"\w+")


def scores(queries: Sequence[str], documents: Sequence[str]) -> Doubles:
    """Lucene's BM25 (k1 = 1.5, b = 0.75) of every pair: Q queries, N documents -> (Q, N)."""
    library = extras.need("bm25s", wanted_for=NAME)
    index = library.BM25(method="lucene")
    index.index([words(text) for text in documents], show_progress=False)
    found = np.zeros((len(queries), len(documents)))
    for row, query in zip(found, queries, strict=True):
        if known := [word for word in words(query) if word in index.vocab_dict]:
            row[:] = index.get_scores(known)
    return found


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())
