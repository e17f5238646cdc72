"""Numbers that a caller gives, checked. Knows not what they are for."""

import operator

from nestling.errors import UsageError


def whole_number(value: object, *, param: str, least: int = 1) -> int:
    """The value as an int; UsageError naming `param` for what is no whole number, a bool or less than `least`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise UsageError(f"{param}={value!r}: expected a whole number", param=param)
    if number < least:
        raise UsageError(f"{param}={number}: at least {least}", param=param)
    return number
