"""Import what an extra installs, when it is wanted; its absence is one line that says what to do."""

import importlib
from typing import Any

from nestling.errors import UsageError

OURS = "nestling"


def need(module: str, *, wanted_for: str, extra: str, param: str | None = None) -> Any:  # noqa: ANN401 - a module
    """Import an optional module, or one of ours that imports it.

    Raises:
        UsageError: A package is not installed; the message names the extra that installs it, and `param` the parameter
            that asked for it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        if missing == OURS:
            raise  # a module of this package: a fault of ours, no missing extra
        raise UsageError(
            f"{wanted_for} needs {missing} ({error}); install it with: pip install 'nestling[{extra}]'", param=param
        ) from None
