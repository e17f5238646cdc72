"""Errors of requests, with their HTTP status and headers. The dialect writes the body.

Maps each exception to a status: the caller's fault (4xx) or ours (5xx).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from starlette.responses import Response
from starlette.types import Scope

from nestling.errors import EngineError, ImageSizeError, InputError, ModelNotFoundError, NestlingError, UsageError
from nestling.server.core.refusals import BusyError, InvalidError, TooLargeError, UnavailableError

CLIENT_LEFT = 499
"""nginx's status for a client that closed its connection before the answer was complete."""
RETRY_AFTER_S = 5
"""Seconds after which to retry while the server is starting or stopping."""


@dataclass(eq=False)
class Problem(Exception):
    """One refused or failed request.

    `param` is the field at fault, `code` the machine-readable reason, `kind` the type of the exception, for dialects
    with finer distinctions.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: type[Exception] = Exception


Respond = Callable[[Scope, Problem], Response]
"""Writes a problem in the dialect of the request's path."""


def problem_of(error: Exception) -> Problem:
    """The problem for an exception; an unknown one is a 500 without internals."""
    if isinstance(error, Problem):
        return error
    for kind, make in _PROBLEMS.items():
        if isinstance(error, kind):
            return replace(make(error), kind=getattr(error, "of", None) or type(error))
    return Problem(500, "internal error; the server's log has its place", "internal_error")


def _retry(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}


_PROBLEMS: dict[type[Exception], Callable[..., Problem]] = {  # the first match counts: subclasses before their bases
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
