"""What huggingface_hub and the network raise, as one line that says what would help."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from nestling.errors import ModelNotFoundError, UsageError

_PASSING = (408, 425, 429)
"""Refusals that another attempt may not meet."""


class UnreachableError(ModelNotFoundError):
    """The network, or the hub's momentary state: another attempt may succeed."""


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """The library's errors, many lines and many kinds, as one line that says what would help."""
    from huggingface_hub import errors

    check_token()
    failures: tuple[Any, ...] = errors.HfHubHTTPError.__bases__  # the HTTP library's own error, and OSError
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise ModelNotFoundError(f"{what}: the network is switched off (HF_HUB_OFFLINE)") from None
    except errors.GatedRepoError:
        raise ModelNotFoundError(f"{what}: its licence must be accepted on its page, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(f"{what}: no such repository, or a closed one; HF_TOKEN opens your own") from None
    except errors.HFValidationError as error:
        raise UsageError(f"{what}: {_brief(error)}", param="reference") from None
    except failures as error:
        if isinstance(error, OSError) and error.errno:
            raise  # a file of ours, not the network
        status = getattr(getattr(error, "response", None), "status_code", 0)
        final = 400 <= status < 500 and status not in _PASSING  # noqa: PLR2004 - the client's fault
        kind = ModelNotFoundError if final else UnreachableError
        raise kind(f"{what}: {constants.ENDPOINT} does not give it ({_brief(error)})") from None


def check_token() -> None:
    """A token that no header can hold is a UsageError."""
    token = huggingface_hub.get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise UsageError("HF_TOKEN: it holds a character that no token has; copy it again", param="token")


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
