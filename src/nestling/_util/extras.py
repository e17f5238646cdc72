"""Import an optional package when it is needed; if it is missing, a one-line error names the extra to install."""

import importlib
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
        raise UsageError(
            f"{wanted_for} needs {missing} ({error}); install it with: pip install 'nestling[{extra}]'", param=param
        ) from None
