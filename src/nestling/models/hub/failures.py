"""Errors of huggingface_hub and the network as one-line errors with advice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from nestling.errors import ModelNotFoundError, UsageError

_PASSING = (408, 425, 429)
"""Client errors that may be temporary."""


class UnreachableError(ModelNotFoundError):
    """A temporary failure of the network or the hub: another attempt may succeed."""


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Convert the library's errors to one line with advice."""
    from huggingface_hub import errors

    check_token()
    failures: tuple[Any, ...] = errors.HfHubHTTPError.__bases__  # the HTTP library's error, and OSError
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise ModelNotFoundError(f"{what}: offline mode is on (HF_HUB_OFFLINE)") from None
    except errors.GatedRepoError:
        raise ModelNotFoundError(f"{what}: accept its licence on its page, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(f"{what}: no such repository, or a private one; set HF_TOKEN for your own") from None
    except errors.HFValidationError as error:
        raise UsageError(f"{what}: {_brief(error)}", param="reference") from None
    except failures as error:
        if isinstance(error, OSError) and error.errno:
            raise  # a local file, not the network
        status = getattr(getattr(error, "response", None), "status_code", 0)
        final = 400 <= status < 500 and status not in _PASSING  # noqa: PLR2004 - the client's fault
        kind = ModelNotFoundError if final else UnreachableError
        raise kind(f"{what}: {constants.ENDPOINT} refuses it ({_brief(error)})") from None


def check_token() -> None:
    """UsageError for an HF_TOKEN with characters that an HTTP header cannot hold."""
    token = huggingface_hub.get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise UsageError("HF_TOKEN: expected printable ASCII characters; copy the token again", param="token")


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
