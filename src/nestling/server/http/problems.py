"""What goes wrong in a request, with its HTTP status and headers. How it is written is the dialect's.

Knows which exception is whose fault: a caller's (4xx), ours (5xx).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from starlette.responses import Response
from starlette.types import Scope

from nestling.errors import EngineError, ImageSizeError, InputError, ModelNotFoundError, NestlingError, UsageError
from nestling.server.core.refusals import BusyError, InvalidError, TooLargeError, UnavailableError

CLIENT_LEFT = 499
"""nginx's status for a client that closed its connection before it had its whole answer."""
RETRY_AFTER_S = 5
"""When to ask a server again that is starting or stopping."""


@dataclass(eq=False)
class Problem(Exception):
    """One refused or failed request.

    `param` is the field at fault, `code` the machine-readable reason, `kind` the exception that said so, for dialects
    that tell more apart.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: type[Exception] = Exception


Respond = Callable[[Scope, Problem], Response]
"""Writes a problem as the dialect of the request's path has it."""


def problem_of(error: Exception) -> Problem:
    """What to answer for an exception; an unknown one is a 500 that says nothing of its inside."""
    if isinstance(error, Problem):
        return error
    for kind, make in _PROBLEMS.items():
        if isinstance(error, kind):
            return replace(make(error), kind=getattr(error, "of", None) or type(error))
    return Problem(500, "internal error; the server's log has its place", "internal_error")


def _retry(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}


_PROBLEMS: dict[type[Exception], Callable[..., Problem]] = {  # the first that fits: special ones before general ones
    InvalidError: lambda error: Problem(400, str(error), error.code, error.param),
    TooLargeError: lambda error: Problem(413, str(error), "request_too_large", error.param),
    ImageSizeError: lambda error: Problem(413, str(error), "request_too_large", error.param),
    InputError: lambda error: Problem(400, str(error), "invalid_input", error.param),
    UsageError: lambda error: Problem(400, str(error), "invalid_value", error.param),
    BusyError: lambda error: Problem(429, str(error), "overloaded", headers=_retry(error.retry_after_s)),
    UnavailableError: lambda error: Problem(503, str(error), "unavailable", headers=_retry(RETRY_AFTER_S)),
    ModelNotFoundError: lambda error: Problem(404, str(error), "model_not_found", "model"),
    EngineError: lambda error: Problem(500, f"the engine failed: {error}", "engine_error"),
    NestlingError: lambda error: Problem(500, f"the model cannot be used: {error}", "model_error"),
}
