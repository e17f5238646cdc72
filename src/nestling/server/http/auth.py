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


class KeyRing:
    """The keys that open the server; they can be replaced while it runs."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.replace(keys)

    def replace(self, keys: Sequence[str]) -> None:
        """Replace all keys."""
        self._keys = [key.encode("utf-8") for key in keys]

    def knows(self, given: bytes) -> bool:
        """True for one of the keys; compares with all of them, so that timing tells nothing."""
        return any([hmac.compare_digest(given, known) for known in self._keys])


class Keys:
    """ASGI middleware: lets a request through if it bears one of the keys, or its path needs none."""

    def __init__(self, app: ASGIApp, keys: KeyRing, respond: Respond) -> None:
        self._app, self._keys, self._respond = app, keys, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(scope):
            await self._app(scope, receive, send)
            return
        await self._respond(scope, _NO_KEY)(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        return self._keys.knows(key.strip()) and scheme.lower() == b"bearer"
