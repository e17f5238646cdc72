"""The server as a Ray Serve application: replicas on one machine or on several behind Ray's HTTP proxies.

    serve run nestling.server.ray_serve:app model=starter preload=1

Arguments are the settings of `nestling serve` by name. Those of the socket have no effect, except `host`: where Ray's
proxies listen, which decides whether names in Host are checked. A replica counts as started once its models are
loaded and tested, and as healthy while its engines' threads live; its threads are the CPUs that Ray gives it. Every
node needs nestling installed, and the model under the same name. Ray's usage reports are off.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray import serve
from starlette.applications import Starlette

from nestling.errors import EngineError
from nestling.server.app import create_app
from nestling.server.settings import ServeSettings, read_settings
from nestling.server.telemetry import tracing


@serve.ingress()
class Nestling:
    """One replica; Ray starts it in its own process."""

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self._settings = _with_assigned_threads(read_settings(flags))

    def __serve_build_asgi_app__(self) -> Starlette:
        """The application, whose startup waits for the models."""
        built = create_app(self._settings, tracing=tracing())
        self._service = built.state.service
        begin = built.router.lifespan_context

        @asynccontextmanager
        async def loaded(started: Starlette) -> AsyncIterator[None]:
            async with begin(started):
                await built.state.service.ready()
                yield

        built.router.lifespan_context = loaded
        return built

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica that raises; EngineError if an engine's thread is dead."""
        if not self._service.scheduler.is_alive:
            raise EngineError("an engine thread has died")


NESTLING: Any = serve.deployment(Nestling, name="nestling", max_ongoing_requests=512)
"""A replica is sent as many requests as it takes before it answers 429."""


def app(flags: Mapping[str, Any]) -> serve.Application:
    """The target of `serve run` and `import_path`; UsageError for an unknown setting."""
    read_settings(flags)
    bound: serve.Application = NESTLING.bind(dict(flags))
    return bound


def _with_assigned_threads(settings: ServeSettings) -> ServeSettings:
    context: Any = ray.get_runtime_context()
    cpus = int(context.get_assigned_resources().get("CPU", 0))
    each = max(1, cpus // max(1, settings.devices.count("cpu")))
    return replace(settings, threads=each) if cpus and settings.threads is None else settings
