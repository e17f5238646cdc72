"""The command line: a table of verbs, each one library call with the same parameter names.

Exit codes: 0 done, 1 it could not be done (the reason in one line on standard error), 2 wrong usage, 130 interrupted.
"""

import sys

from nestling.errors import NestlingError, TextError, UsageError

INTERRUPTED = 130
"""128 + SIGINT, as a shell has it; typer ends with it when it meets a KeyboardInterrupt."""


def main() -> None:
    """Run the command of `sys.argv`; the entry point of `nestling`."""
    try:
        from nestling.cli.commands import app

        app(prog_name="nestling")
    except NestlingError as error:
        sys.stderr.write(f"nestling: {error}\n")
        sys.exit(2 if isinstance(error, UsageError) and not isinstance(error, TextError) else 1)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        sys.stderr.write("nestling: interrupted; run the command again to go on\n")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"nestling: {error.filename or 'a file'}: {error.strerror or error}\n")
        sys.exit(1)
