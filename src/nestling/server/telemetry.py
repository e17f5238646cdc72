"""Loads tracing only if the standard OTEL_* variables ask for traces."""

import os
from collections.abc import Mapping
from typing import Any

from nestling._util.extras import need

ASKING = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def tracing(environ: Mapping[str, str] = os.environ) -> Any:  # noqa: ANN401 - of a module that needs an extra
    """An `http.tracing.Tracing`; None if no traces are asked for. UsageError for unsupported settings."""
    asking = next((name for name in ASKING if environ.get(name)), None)
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if asking is None or off:
        return None
    wanted_for = f"{asking} is set: a trace"
    module = need("nestling.server.http.tracing", wanted_for=wanted_for, extra="otel", param=asking)
    return module.Tracing(module.exporters(environ))
