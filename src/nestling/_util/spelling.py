"""Suggestions for misspelt words."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

NEAR: Final = 0.7
"""The lowest difflib ratio at which a known word is suggested."""


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean WORD?` with the nearest known word, `prefix` in front; empty when none is similar."""
    near = get_close_matches(word, list(known), 1, NEAR)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
