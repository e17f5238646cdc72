"""Log messages of engines on standard error: warnings at once, the engine that `auto` chose after the command.

The latter is printed only on success, so that a command that fails prints one line, the reason.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENGINE_LOG = "nestling.engine"
"""The logger of `engine.registry`, which is not imported here, so that `nestling --help` does not load it."""


class Notices(logging.Handler):
    """Prints warnings at once and collects information, without duplicates."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Print or collect a record."""
        text = f"nestling: {record.getMessage()}\n"
        if record.levelno < logging.WARNING:
            self._lines[text] = None
        else:
            sys.stderr.write(text)

    def show(self) -> None:
        """Print the collected messages."""
        sys.stderr.write("".join(self._lines))


@contextmanager
def kept() -> Iterator[Notices]:
    """Collect the notices of the block."""
    log, notices = logging.getLogger(ENGINE_LOG), Notices()
    log.setLevel(logging.INFO)
    log.addHandler(notices)
    try:
        yield notices
    finally:
        log.removeHandler(notices)
