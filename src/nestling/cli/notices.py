"""What engines say, on standard error: warnings at once, which engine `auto` took when the command has ended well.

Then and not before, so that a command that fails says why in one line.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENGINE_LOG = "nestling.engine"
"""The log of `engine.registry`, which is not imported here: `nestling --help` need not load it."""


class Notices(logging.Handler):
    """Prints warnings and keeps information, each text once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """logging: a record."""
        text = f"nestling: {record.getMessage()}\n"
        if record.levelno < logging.WARNING:
            self._lines[text] = None
        else:
            sys.stderr.write(text)

    def show(self) -> None:
        """Print what was kept."""
        sys.stderr.write("".join(self._lines))


@contextmanager
def kept() -> Iterator[Notices]:
    """The notices of the block."""
    log, notices = logging.getLogger(ENGINE_LOG), Notices()
    log.setLevel(logging.INFO)
    log.addHandler(notices)
    try:
        yield notices
    finally:
        log.removeHandler(notices)
