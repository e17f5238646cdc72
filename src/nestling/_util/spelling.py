"""Closed sets of words: what a word must be one of, and suggestions for misspelt ones."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from enum import StrEnum
from typing import Final, TypeVar

from nestling.errors import UsageError

NEAR: Final = 0.7
"""The lowest difflib ratio at which a known word is suggested."""
_Member = TypeVar("_Member", bound=StrEnum)


def nearest(word: object, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean WORD?` with the nearest known word, case ignored; empty when none is similar."""
    words = {one.casefold(): one for one in known}
    near = get_close_matches(word.casefold(), words, 1, NEAR) if isinstance(word, str) else []
    return f"; did you mean {prefix}{words[near[0]]}?" if near else ""


def one_of(known: Collection[str], word: object) -> str:
    """`expected one of A, B`, with the nearest known word for a misspelt one."""
    return f"expected one of {', '.join(known)}{nearest(word, known)}"


def unknown(word: object, known: Collection[str], *, param: str) -> UsageError:
    """The error for a word that is not one of `known`."""
    return UsageError(f"{param}={word!r:.80}: {one_of(known, word)}", param=param)


def member(kind: type[_Member], word: object, *, param: str) -> _Member:
    """The member of a closed set with this name; UsageError for any other word."""
    try:
        return kind(word)  # type: ignore[arg-type] # whatever a caller gave
    except ValueError:
        raise unknown(word, list(kind), param=param) from None
