"""Checks of arguments: lists, texts and token ids."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.errors import EmptyTextError, TextError, UsageError
from nestling.inputs.tokenizer import check_text


def listed(values: object, param: str, expected: str) -> list[Any]:
    """The values as a list; UsageError for anything else, such as None, a number, a single text or image."""
    if isinstance(values, str | bytes | bytearray | Path) or not isinstance(values, Iterable):
        kind = "None" if values is None else "a single text" if isinstance(values, str) else type(values).__name__
        raise UsageError(f"{param}: expected {expected}, not {kind}", param="input")
    return list(values)  # also of an iterator


def token_ids(ids: object, index: int) -> NDArray[Any]:
    """Token ids as an array of integers; TextError for anything else."""
    try:
        found = np.asarray(ids)
    except ValueError:  # lists of unequal lengths
        found = np.empty((), object)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise TextError("expected a list of token ids (integers)", index=index)
    return found


def check_document(text: object, index: int) -> None:
    """EmptyTextError for an empty text, TextError for a value that is not a string."""
    if isinstance(text, str) and not text.strip():
        raise EmptyTextError("the text is empty", index=index)
    check_text(text, index)
