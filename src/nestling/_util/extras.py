"""Import an optional package when it is needed; if it is missing, a one-line error names the extra to install."""

import importlib
import importlib.util
from typing import Any

from nestling.errors import UsageError

OURS = "nestling"


def need(module: str, *, wanted_for: str, extra: str, param: str | None = None) -> Any:  # noqa: ANN401 - a module
    """Import an optional module, or one of ours that imports it.

    Raises:
        UsageError: A package is not installed; the message names the extra that installs it, and `param` the parameter
            that needs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        if missing == OURS:
            raise  # a module of nestling itself is missing: a bug, not a missing extra
        raise _missing(f"{missing} ({error})", wanted_for, extra, param) from None


def look_for(package: str, *, wanted_for: str, extra: str) -> None:
    """Raise the same error for a package that is not installed, without importing it."""
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # None in sys.modules, or a module without a spec
        found = None
    if found is None:
        raise _missing(package, wanted_for, extra, None)


def _missing(what: str, wanted_for: str, extra: str, param: str | None) -> UsageError:
    return UsageError(f"{wanted_for} needs {what}; install it with: pip install 'nestling[{extra}]'", param=param)
