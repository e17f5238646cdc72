"""Why the service refuses a request: exceptions with all that a dialect needs for its answer. Knows no HTTP.

`UsageError` and `TextError` are refusals too: a value that cannot be honoured. Messages name fields and indices, never
texts or keys.
"""

from collections.abc import Mapping
from typing import TypeVar

from nestling.errors import ModelNotFoundError, NestlingError, UsageError

LONGEST_ECHO = 100
"""Most characters of a caller's value that an error repeats."""
Value = TypeVar("Value")


class InvalidError(UsageError):
    """A value that cannot be honoured; `code`: the machine-readable reason, `of`: the type of the error it replaces."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        of: type[UsageError] | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.code, self.of = code, of


class TooLargeError(UsageError):
    """A request beyond a size limit."""


class BusyError(NestlingError):
    """A full server; retry after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(NestlingError):
    """A server that is starting, stopping or broken."""


class NotServedError(ModelNotFoundError):
    """A model that this server does not serve."""


def agreed(param: str, said: Mapping[str, Value | None]) -> Value | None:
    """The one value that several fields name, or None if none does; InvalidError if they contradict each other."""
    values = {name: value for name, value in said.items() if value is not None}
    if any(value != next(iter(values.values())) for value in values.values()):
        listed = ", ".join(f"{name}={value!s:.40}" for name, value in values.items())
        raise InvalidError(f"{param}: {listed} contradict each other", param=param, code="contradiction")
    return next(iter(values.values()), None)


def shown(value: object) -> str:
    """A caller's value for an error message: quoted and truncated."""
    text = repr(value)
    return text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO] + "..."
