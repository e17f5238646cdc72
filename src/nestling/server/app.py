"""The routes. Each reads a body, hands it to the service and sends what comes back; nothing is decided here."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from nestling._util.version import __version__
from nestling.errors import NestlingError
from nestling.server.api.requests import DetokenizeRequest, EmbeddingRequest, RerankRequest, TokenizeRequest
from nestling.server.core.model_pool import Load
from nestling.server.core.service import Service
from nestling.server.http.guards import Bodies, Journal, Keys, admitted, respond, unless_gone
from nestling.server.http.problems import Problem, problem_of, unavailable
from nestling.server.settings import ServeSettings

PAGES = Path(__file__).parent / "playground"
POLICY = (
    "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
)
Work = Callable[[bytes], Coroutine[Any, Any, list[bytes]]]


def create_app(settings: ServeSettings, load: Load | None = None) -> FastAPI:
    """The application; `load` replaces how models are loaded. The service is at `app.state.service`."""
    service = Service(settings, load)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="nestling", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    _add_guards(app, service)
    _add_embedding(app, service)
    _add_watching(app, service)
    _add_pages(app)
    return app


def _add_guards(app: FastAPI, service: Service) -> None:
    if service.settings.api_key:
        app.add_middleware(Keys, keys=service.settings.api_key)
    if service.settings.cors_origin:
        origins = list(service.settings.cors_origin)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Journal, service=service)
    app.add_exception_handler(Problem, _answer)
    app.add_exception_handler(NestlingError, _answer)
    app.add_exception_handler(HTTPException, _answer_http)


async def _answer(_request: Request, error: Exception) -> Response:
    return respond(problem_of(error))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return respond(Problem(error.status_code, what, "not_found", headers=error.headers or {}))


def _add_embedding(app: FastAPI, service: Service) -> None:
    bodies = Bodies(service.settings.max_body_bytes)

    def post(path: str, work: Work, model: type[Any], text: str = "") -> None:
        async def handle(request: Request) -> Response:
            return await _worked(request, service, bodies, work)

        extra = {"requestBody": _body_schema(model)}
        shown = bool(text)
        app.post(path, description=text, include_in_schema=shown, openapi_extra=extra, responses=_ERRORS)(handle)

    post("/v1/embeddings", service.embed, EmbeddingRequest, "A vector for each text. Also at /embeddings.")
    post("/embeddings", service.embed, EmbeddingRequest)
    post("/v1/rerank", service.rerank, RerankRequest, "Candidates in the order of their nearness. Also at /rerank.")
    post("/rerank", service.rerank, RerankRequest)
    post("/tokenize", service.tokenize, TokenizeRequest, "The model's token ids of texts.")
    post("/detokenize", service.detokenize, DetokenizeRequest, "The text of token ids.")


async def _worked(request: Request, service: Service, bodies: Bodies, work: Work) -> Response:
    with admitted(service):
        async with bodies.read(request) as body:
            await service.ready()
            answer = await unless_gone(request, asyncio.ensure_future(work(body)))
    if answer is None:
        return Response(status_code=499)
    return Pieces(answer)


class Pieces(Response):
    """A JSON answer that is sent piece by piece, each once the client has taken the one before."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(headers={"content-length": str(sum(map(len, pieces)))}, media_type="application/json")
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for left, piece in zip(reversed(range(len(self._pieces))), self._pieces, strict=True):
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})


def _body_schema(model: type[Any]) -> dict[str, Any]:
    schema = model.model_json_schema()
    whole = _inlined(schema, schema.pop("$defs", {}))
    return {"required": True, "content": {"application/json": {"schema": whole}}}


def _inlined(part: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """A schema without `#/$defs/NAME`, which leads nowhere once the schema is a part of an OpenAPI document."""
    if isinstance(part, list):
        return [_inlined(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].removeprefix("#/$defs/")], definitions)
    return {name: _inlined(one, definitions) for name, one in part.items()}


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "a value that cannot be honoured"},
    401: {"description": "a missing or wrong key"},
    404: {"description": "a model that is not served"},
    413: {"description": "a body or a number of texts beyond the limit"},
    415: {"description": "a compressed body"},
    429: {"description": "a full queue; see Retry-After"},
    500: {"description": "an engine that failed"},
    503: {"description": "a server that is starting or stopping"},
}


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    @app.get("/models", include_in_schema=False)
    async def models() -> Response:
        """What is served: names, longest text in tokens, vector sizes, tasks."""
        return Response(await service.list_models(), media_type="application/json")

    @app.get("/health")
    async def health() -> Response:
        """200 while the process and its engine thread live."""
        if service.scheduler.is_alive:
            return Response(b'{"status":"ok"}', media_type="application/json")
        return respond(unavailable("the engine thread has died"))

    @app.get("/ready")
    async def ready() -> Response:
        """200 once the models are loaded and tested, 503 before that and while the server drains."""
        if service.is_ready:
            return Response(b'{"status":"ready"}', media_type="application/json")
        return respond(unavailable("draining" if service.draining else "loading"))

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.render(), media_type=service.metrics.content_type)


def _add_pages(app: FastAPI) -> None:
    def page(path: str, file: str) -> None:
        async def show() -> Response:
            return Response((PAGES / file).read_bytes(), headers=_PAGE_HEADERS, media_type="text/html; charset=utf-8")

        app.get(path, include_in_schema=False)(show)

    page("/", "index.html")
    page("/docs", "docs.html")


_PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
