"""What a misspelt word was meant to be. Knows no words."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

NEAR: Final = 0.7
"""difflib's ratio from which on an unknown word is taken for a misspelt one."""


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean WORD?` with the known word that is nearest, `prefix` before it; empty when none is near."""
    near = get_close_matches(word, list(known), 1, NEAR)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
