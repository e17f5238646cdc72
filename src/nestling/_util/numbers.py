"""Checks of numbers that a caller passes. Does not know what they are for."""

import operator

from nestling.errors import UsageError


def whole_number(value: object, *, param: str, least: int = 1) -> int:
    """The value as an int; UsageError naming `param` if it is not an integer, is a bool or is below `least`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise UsageError(f"{param}={value!r}: expected a whole number", param=param)
    if number < least:
        raise UsageError(f"{param}={number}: expected at least {least}", param=param)
    return number
