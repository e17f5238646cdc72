"""The command line: a table of commands, each one library call with the same parameter names.

Exit codes: 0 success, 1 failure (the reason in one line on standard error), 2 wrong usage, 130 interrupted.
"""

import sys
from typing import Any

from nestling._util.spelling import nearest
from nestling.cli import notices, streams
from nestling.errors import NestlingError, TextError, UsageError

INTERRUPTED = 130
"""128 + SIGINT, as in shells; typer's exit code for a KeyboardInterrupt."""


def main() -> None:
    """Run the command in `sys.argv`; the entry point of `nestling`."""
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
    """Parse and run; errors of the parser become a UsageError in one line."""
    import typer

    from nestling.cli.commands import app

    refusals: Any = typer.BadParameter.__bases__  # the parser's own UsageError, which typer does not export
    try:
        with notices.kept() as said:
            code = app(prog_name="nestling", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except refusals as error:
        raise UsageError(_said(error)) from None
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    sys.stdout.flush()
    if not code:
        said.show()
    sys.exit(code if isinstance(code, int) else 0)


def _said(error: Any) -> str:  # noqa: ANN401 - the parser's UsageError
    """The parser's error as one line, with the nearest right spelling."""
    verb = error.ctx.command if error.ctx else None
    if wrong := getattr(error, "option_name", None) if hasattr(error, "possibilities") else None:
        options = [name for one in verb.params for name in one.opts] if verb else []
        return f"no such option {wrong}{nearest(wrong, options)}"
    text = str(error.format_message()).rstrip(".")
    return text[:1].lower() + text[1:]
