"""The ASGI application: routes of the dialects, of monitoring and of the pages, behind the middleware."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from nestling._util.spelling import unknown
from nestling.errors import NestlingError
from nestling.server.api.dialect import Dialect
from nestling.server.api.endpoint import Endpoint
from nestling.server.api.openapi import document
from nestling.server.api.registry import DIALECTS
from nestling.server.api.routing import speakers
from nestling.server.core.model_pool import Load
from nestling.server.core.refusals import UnavailableError
from nestling.server.core.service import Service
from nestling.server.http.access_log import AccessLog
from nestling.server.http.auth import KeyRing, Keys
from nestling.server.http.hosts import Hosts, guarded
from nestling.server.http.limits import Bodies
from nestling.server.http.problems import Problem, Respond, problem_of
from nestling.server.pages import PAGES
from nestling.server.settings import ServeSettings

if TYPE_CHECKING:
    from nestling.server.http.tracing import Tracing  # needs an extra

_JSON = "application/json"


def create_app(
    settings: ServeSettings,
    load: Load | None = None,
    *,
    dialects: Sequence[Dialect] = DIALECTS,
    tracing: "Tracing | None" = None,
) -> Starlette:
    """The application; `load` replaces the function that loads models. `app.state` has the `service` and the `keys`.

    `tracing` makes the spans of requests.
    """
    _check_preferred(settings.dialect, [dialect.name for dialect in dialects])
    service = Service(settings, load)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()
        if tracing:
            await asyncio.to_thread(tracing.close)

    respond, keys = _writer(dialects, settings.dialect), KeyRing(settings.api_key)
    pages = [NamedRoute(path, page) for path, page in PAGES.items()]
    routes = [*_watching(service, dialects), *pages, *_spoken(dialects, service)]  # matched in this order
    paths = [(route.path, method) for route in routes for method in route.methods or ()]
    assert len(set(paths)) == len(paths), "two routes have the same path"
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[*_traces(service, tracing), *_guards(service, respond, keys)],
        exception_handlers=dict.fromkeys((Problem, NestlingError, HTTPException), _answer(respond)),
    )
    app.state.service, app.state.keys = service, keys
    return app


def _check_preferred(name: str | None, known: Sequence[str]) -> None:
    """UsageError for an unknown dialect."""
    if name is not None and name not in known:
        raise unknown(name, known, param="dialect")


class NamedRoute(Route):
    """A route that sets `scope["route"]`, for the middleware around it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Starlette's match, with the route itself in the scope."""
        match, child = super().matches(scope)
        return match, {**child, "route": self} if match is not Match.NONE else child


def _writer(dialects: Sequence[Dialect], preferred: str | None) -> Respond:
    by_path = {path: spoken[0].dialect for (path, _), spoken in speakers(dialects, preferred).items()}
    by_name = {dialect.name: dialect for dialect in dialects}

    def respond(scope: Scope, problem: Problem) -> Response:
        route = scope.get("route")
        path: str = route.path if route else scope["path"]
        prefixed = by_name.get(path.split("/")[1], dialects[0])
        dialect: Dialect = scope.get("dialect") or by_path.get(path, prefixed)
        return Response(dialect.error(problem), dialect.status(problem), dict(problem.headers), _JSON)

    return respond


def _answer(respond: Respond) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            what = f"{request.method} {request.url.path[:100]}: {error.detail}"
            code = _CODES.get(error.status_code, "invalid_request")
            error = Problem(error.status_code, what, code, headers=error.headers or {})
        return respond(request.scope, problem_of(error))

    return answer


_CODES = {404: "not_found", 405: "method_not_allowed"}


def _traces(service: Service, tracing: "Tracing | None") -> list[Middleware]:
    if tracing is None:
        return []
    service.trace(tracing.span)
    return [Middleware(tracing.middleware)]


def _guards(service: Service, respond: Respond, keys: KeyRing) -> list[Middleware]:
    """The middleware, outermost first."""
    settings, found = service.settings, [Middleware(AccessLog, service=service, respond=respond)]
    if settings.cors_origin:
        origins = list(settings.cors_origin)
        found.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    if guarded(settings):
        found.append(Middleware(Hosts, allowed=settings.allowed_host, respond=respond))
    if settings.api_key:
        found.append(Middleware(Keys, keys=keys, respond=respond))
    return found


def _spoken(dialects: Sequence[Dialect], service: Service) -> list[NamedRoute]:
    bodies = Bodies(service.settings.max_body_bytes)
    return [
        NamedRoute(path, Endpoint(spoken, service, bodies), methods=[method])
        for (path, method), spoken in speakers(dialects, service.settings.dialect).items()
    ]


def _watching(service: Service, dialects: Sequence[Dialect]) -> list[NamedRoute]:
    async def health(_request: Request) -> Response:
        if not service.scheduler.is_alive:
            raise UnavailableError("an engine thread has died")
        if lost := service.models.lost:
            return Response(to_json({"status": "degraded", "lost": lost}), media_type=_JSON)
        return Response(b'{"status":"ok"}', media_type=_JSON)

    async def ready(_request: Request) -> Response:
        if service.is_ready:
            return Response(b'{"status":"ready"}', media_type=_JSON)
        raise UnavailableError("draining" if service.draining else "loading")

    async def metrics(_request: Request) -> Response:
        return Response(service.metrics.render(), media_type=service.metrics.content_type)

    watching = {
        "/health": (health, "200 while the process and its engine threads live; names devices that were lost."),
        "/ready": (ready, "200 once the models are loaded and tested, 503 before that and while the server drains."),
        "/metrics": (metrics, "Counters for Prometheus."),
    }
    shown = to_json(document(dialects, [(path, text) for path, (_, text) in watching.items()]))

    async def openapi(_request: Request) -> Response:
        return Response(shown, media_type=_JSON)

    return [NamedRoute("/openapi.json", openapi), *(NamedRoute(path, work) for path, (work, _) in watching.items())]
