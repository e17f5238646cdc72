"""The OpenAPI document: every route of every dialect, with its request's schema."""

from collections.abc import Iterable
from typing import Any

from nestling._util.version import __version__
from nestling.server.api.dialect import Dialect, Route

_REFUSALS = {
    "400": "a value that cannot be honoured",
    "401": "a missing or wrong key",
    "404": "a model that is not served",
    "413": "a body or a number of texts beyond the limit",
    "415": "a compressed body",
    "429": "a full queue; see Retry-After",
    "500": "an engine that failed",
    "503": "a server that is starting or stopping",
}
_OK = {"200": {"description": "OK", "content": {"application/json": {"schema": {}}}}}


def document(dialects: Iterable[Dialect], watching: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The document; `watching` are (path, description) of GET routes that belong to no dialect."""
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        for route in dialect.routes:
            own = f"/{dialect.name}{route.path}"  # a path that several dialects have is listed below each one's prefix
            paths[_shown(own if route.path in paths else route.path)] = _path(route)
    for path, text in watching:
        paths[path] = {"get": {"description": text, "responses": _OK}}
    return {"openapi": "3.1.0", "info": {"title": "nestling", "version": __version__}, "paths": paths}


def _shown(path: str) -> str:
    return path.replace(":path}", "}")


def _path(route: Route) -> dict[str, Any]:
    refusals = {status: {"description": text} for status, text in _REFUSALS.items()}
    operation: dict[str, Any] = {"description": route.text, "responses": {**_OK, **refusals}}
    if route.body:
        operation["requestBody"] = _body(route.body.model_json_schema())
    return {route.method.lower(): operation}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
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
