"""Import what an extra installs, when it is wanted; its absence is one line that says what to do."""

import importlib
from typing import Any

from nestling.errors import UsageError


def need(module: str, *, wanted_for: str, extra: str) -> Any:  # noqa: ANN401 - a module
    """Import an optional module; UsageError naming the extra that installs it when it is not here."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"{wanted_for} needs {package} ({error}); install it with: pip install 'nestling[{extra}]'"
        ) from None
