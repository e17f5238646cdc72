"""How the values of the server's settings are read from a flag's or a variable's text.

A reader raises ValueError with what it expected. Knows no setting by name.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from nestling._util.spelling import one_of
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.names import EngineName, parse_devices
from nestling.errors import UsageError


class TokenInput(StrEnum):
    """What is done with an `input` of token ids: refused, taken as this model's ids, or read as OpenAI's cl100k ids."""

    REJECT = "reject"
    MODEL = "model"
    CL100K = "cl100k"


Choice = TypeVar("Choice", bound=StrEnum)


def whole(low: int, high: int = 1 << 40) -> Callable[[Any], int]:
    """A reader of whole numbers from `low` to `high`."""

    def read(value: Any) -> int:  # noqa: ANN401 - a text, or already a number
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = low - 1
        if not low <= number <= high:
            upper = f"to {high}" if high < 1 << 40 else "up"
            raise ValueError(f"expected a whole number from {low} {upper}")
        return number

    return read


def several(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - a flag's list or a variable's text
    """Values separated by commas, or a list of them; at least one."""
    parts = value.split(",") if isinstance(value, str) else [str(part) for part in value]
    kept = tuple(part.strip() for part in parts if part.strip())
    if not kept:
        raise ValueError("expected at least one value")
    return kept


def yes(value: Any) -> bool:  # noqa: ANN401 - a flag's bool or a variable's text
    """A switch."""
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in known:
        raise ValueError("expected 1 or 0")
    return known[str(value).lower()]


def choice(text: str, known: type[Choice]) -> Choice:
    """A member of a closed set; the nearest one is named for what is none."""
    if text not in set(known):
        raise ValueError(one_of(list(known), text))
    return known(text)


def engine(value: Any) -> str:  # noqa: ANN401 - a text
    """The name of an engine."""
    return choice(str(value), EngineName)


def arithmetic(value: Any) -> str:  # noqa: ANN401 - a text
    """The name of an arithmetic."""
    return choice(str(value), ArithmeticName)


def device(value: Any) -> str:  # noqa: ANN401 - a text
    """Devices of the torch engine, separated by commas."""
    try:
        return ",".join(parse_devices(str(value)))
    except UsageError as error:
        raise ValueError(str(error).partition(": ")[2]) from None


def token_input(value: Any) -> TokenInput:  # noqa: ANN401 - a text
    """What is done with token ids."""
    return choice(str(value), TokenInput)
