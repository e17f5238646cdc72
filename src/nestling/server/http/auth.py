"""API keys. A key is compared in constant time and never written anywhere."""

import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from nestling.server.http.problems import Problem, Respond

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
_NO_KEY = Problem(
    401,
    "Authorization: expected Bearer and one of this server's keys",
    "invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)


class Keys:
    """ASGI middleware: lets a request through that bears one of the keys, or asks for something that needs none."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], respond: Respond) -> None:
        self._app, self._keys, self._respond = app, [key.encode("utf-8") for key in keys], respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(scope):
            await self._app(scope, receive, send)
            return
        await self._respond(scope, _NO_KEY)(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        found = [hmac.compare_digest(key.strip(), known) for known in self._keys]  # all of them: no early end to time
        return scheme.lower() == b"bearer" and any(found)
