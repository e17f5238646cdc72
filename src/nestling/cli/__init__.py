"""The command line: a table of verbs, each one library call with the same parameter names.

Exit codes: 0 done, 1 it could not be done (the reason in one line on standard error), 2 wrong usage.
"""

import sys

from nestling.errors import NestlingError, TextError, UsageError


def main() -> None:
    """Run the command of `sys.argv`; the entry point of `nestling`."""
    from nestling.cli.commands import app

    try:
        app(prog_name="nestling")
    except NestlingError as error:
        sys.stderr.write(f"nestling: {error}\n")
        sys.exit(2 if isinstance(error, UsageError) and not isinstance(error, TextError) else 1)
    except KeyboardInterrupt:
        sys.stderr.write("nestling: interrupted; run the command again to go on\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"nestling: {error.filename or 'a file'}: {error.strerror or error}\n")
        sys.exit(1)
