"""What goes wrong in a request, as the JSON that OpenAI's clients expect: `{"error": {message, type, param, code}}`.

Knows which exception is whose fault: a caller's (4xx), ours (5xx). Messages name fields and places, never texts or
keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from nestling.errors import EngineError, ModelNotFoundError, NestlingError, TextError, UsageError

LONGEST_ECHO = 100
"""Characters of a caller's own value that an error repeats."""


@dataclass(eq=False)
class Problem(Exception):
    """One refused or failed request."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """OpenAI's `type` for this status."""
        return _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")  # noqa: PLR2004 - HTTP's border

    def body(self) -> bytes:
        """The answer, as JSON."""
        inner = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return to_json({"error": inner})


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def invalid(message: str, *, param: str | None = None, code: str = "invalid_value") -> Problem:
    """A request that cannot be honoured: 400."""
    return Problem(400, message, code, param)


def too_large(message: str, *, param: str | None = None) -> Problem:
    """A request beyond a limit of size: 413."""
    return Problem(413, message, "request_too_large", param)


def busy(message: str, *, retry_after_s: int = 1) -> Problem:
    """A server that is full: 429, with the time after which another try makes sense."""
    return Problem(429, message, "overloaded", headers={"retry-after": str(retry_after_s)})


def unavailable(message: str, *, retry_after_s: int = 5) -> Problem:
    """A server that is starting or stopping: 503."""
    return Problem(503, message, "unavailable", headers={"retry-after": str(retry_after_s)})


def problem_of(error: Exception) -> Problem:
    """What to answer for an exception; an unknown one is a 500 that says nothing of its inside."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, UsageError):
        return invalid(str(error), param=error.param, code=_CODES.get(type(error), "invalid_value"))
    for kind, (status, start, code) in _FAILURES.items():
        if isinstance(error, kind):
            return Problem(status, f"{start}{error}", code, "model" if status == NOT_FOUND else None)
    return Problem(500, "internal error; the server's log has its place", "internal_error")


NOT_FOUND = 404
_CODES: dict[type[Exception], str] = {TextError: "invalid_input"}
_FAILURES: dict[type[Exception], tuple[int, str, str]] = {
    ModelNotFoundError: (NOT_FOUND, "", "model_not_found"),
    EngineError: (500, "the engine failed: ", "engine_error"),
    NestlingError: (500, "the model cannot be used: ", "model_error"),
}


def of_validation(error: ValidationError) -> Problem:
    """The first complaint of pydantic, without the value that it complains of."""
    first: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return _of_json(str(first["msg"]))
    where = ".".join(map(str, first["loc"])) or "body"
    param = str(first["loc"][0]) if first["loc"] else None
    return invalid(f"{where}: {first['msg'][:300]}", param=param)


def _of_json(message: str) -> Problem:
    if "recursion limit" in message:
        return too_large("body: the JSON is nested too deeply")
    if "hex escape" in message:
        message += "; a character beyond U+FFFF takes both halves of its surrogate pair, in one text"
    return invalid(f"body: {message}", code="invalid_json")


def shown(value: object) -> str:
    """A caller's value as an error may repeat it: quoted, cut."""
    text = repr(value)
    return text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO] + "..."
