"""Checks the Host header against DNS rebinding, by which a web page could reach a server on loopback.

An IP address (`127.0.0.1`, `[::1]`) cannot be rebound, so it is always allowed; so is `localhost`.
"""

import ipaddress
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from nestling.server.http.problems import Problem, Respond
from nestling.server.settings import ServeSettings


def guarded(settings: ServeSettings) -> bool:
    """Whether names are checked: if some are configured, or the server is on loopback without keys."""
    open_to_pages = not settings.api_key and not settings.uds and _is_loopback(settings.host)
    return bool(settings.allowed_host) or open_to_pages


class Hosts:
    """ASGI middleware: refuses a request whose Host is none of the allowed names, with 403."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str], respond: Respond) -> None:
        self._app, self._respond = app, respond
        self._allowed = {"localhost", *(name.lower() for name in allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or all(self._knows(value) for name, value in scope["headers"] if name == b"host"):
            await self._app(scope, receive, send)
            return
        message = "Host: this server does not answer requests for that name; allow it with --allowed-host NAME"
        await self._respond(scope, Problem(403, message, "host_not_allowed"))(scope, receive, send)

    def _knows(self, header: bytes) -> bool:
        name = header.decode("latin-1").lower()
        host = name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]
        return host in self._allowed or _is_address(host.strip("[]"))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
