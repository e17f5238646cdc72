"""Making the next value of an iterator while the last one is used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def ahead(values: Iterator[_T]) -> Iterator[_T]:
    """The same values, each made in one other thread while the one before it is used; never more than one ahead."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(_following, values)
        while found := coming.result():
            coming = thread.submit(_following, values)
            yield found[0]


def _following(values: Iterator[_T]) -> tuple[_T, ...]:
    return next(((value,) for value in values), ())
