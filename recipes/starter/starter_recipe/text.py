"""Text normalisation shared by the sources and the benchmark exclusion."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_OTHER = re.compile(r"[\W_]+")
# anchors are truncated here: longer ones cost the teacher time and add little
ANCHOR_CHARS = 320
# passages of pairs are longer: about what a benchmark document holds
PASSAGE_CHARS = 700
_RATIOS = (0.5, 2.2)
_SPACE = re.compile(r"\s+")
_CJK = re.compile(r"[぀-ヿ㐀-鿿가-힯]")


def normalise(text: str) -> str:
    """Keep letters and digits of the NFKC lower-case form: the key under which two texts count as equal."""
    return _OTHER.sub("", unicodedata.normalize("NFKC", text).lower())


def squeeze(text: str) -> str:
    """Replace every run of white space by one space and strip the ends."""
    return _SPACE.sub(" ", text).strip()


def weight_chars(text: str) -> int:
    """Length in characters, with a CJK character counted as three."""
    return len(text) + 2 * len(_CJK.findall(text))


def is_prose(text: str, *, shortest: int = 8, longest: int = 400) -> bool:
    """Tell whether a text has a usable length and consists mostly of letters."""
    if not shortest <= weight_chars(text) <= longest:
        return False
    letters = sum(char.isalpha() or char.isspace() for char in text)
    return letters >= 0.75 * len(text)


def plausible(original: str, translation: str) -> bool:
    """Tell whether two texts could be translations of each other by their lengths."""
    ratio = (weight_chars(translation) + 8) / (weight_chars(original) + 8)
    return _RATIOS[0] <= ratio <= _RATIOS[1]


def aligned(originals: Sequence[str], translations: Sequence[str]) -> bool:
    """Tell whether two pages align block by block: equally many blocks, nearly all of plausible length."""
    if not originals or len(originals) != len(translations):
        return False
    good = sum(plausible(left, right) for left, right in zip(originals, translations, strict=True))
    return good >= 0.9 * len(originals)
