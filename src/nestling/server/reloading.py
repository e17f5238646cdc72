"""Reloads keys and aliases while the server runs, on SIGHUP. All or nothing; the result is logged."""

import logging
from collections.abc import Callable

from nestling.errors import NestlingError
from nestling.server.core.service import Service
from nestling.server.http.auth import KeyRing
from nestling.server.settings import ServeSettings

LOG = logging.getLogger("nestling.server")
Reread = Callable[[], ServeSettings]
"""Reads the settings again, from the same flags and variables."""


def reload(service: Service, keys: KeyRing, reread: Reread) -> None:
    """Apply the keys and aliases that the files have now; an error leaves everything unchanged."""
    try:
        fresh = reread()
        service.catalog.rename(fresh.aliases)
    except NestlingError as error:
        LOG.warning("not reloaded", extra={"fields": {"error": f"{error!s:.300}"}})
        return
    keys.replace(fresh.api_key)
    LOG.info("reloaded", extra={"fields": {"keys": len(fresh.api_key), "aliases": len(fresh.aliases)}})
