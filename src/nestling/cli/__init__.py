"""The command line: a table of verbs, each one library call with the same parameter names.

Exit codes: 0 done, 1 it could not be done (the reason in one line on standard error), 2 wrong usage, 130 interrupted.
"""

import sys

from nestling.cli import streams
from nestling.errors import NestlingError, TextError, UsageError

INTERRUPTED = 130
"""128 + SIGINT, as a shell has it; typer ends with it when it meets a KeyboardInterrupt."""


def main() -> None:
    """Run the command of `sys.argv`; the entry point of `nestling`."""
    streams.prepare()
    try:
        _run()
    except NestlingError as error:
        sys.stderr.write(f"nestling: {error}\n")
        sys.exit(2 if isinstance(error, UsageError) and not isinstance(error, TextError) else 1)
    except KeyboardInterrupt:
        sys.stderr.write("nestling: interrupted; run the command again to resume\n")
        sys.exit(INTERRUPTED)
    except OSError as error:
        streams.settle_output()
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"nestling: {error.filename or 'a file'}: {error.strerror or error}\n")
        sys.exit(1)


def _run() -> None:
    """Parse and run; typer ends every command with a SystemExit."""
    from nestling.cli.commands import app

    try:
        app(prog_name="nestling")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        sys.stdout.flush()
        raise
