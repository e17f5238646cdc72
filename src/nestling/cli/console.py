"""What the commands show: progress bars and tables on standard error and output. Knows no model."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nestling._util.files import is_stream
from nestling._util.progress import Progress as Told

WIDE = 240
"""Columns of a table that goes into a file or a pipe."""
QUIET_S = 2.0
"""A piece of work that is done sooner shows no bar."""
SPEED_S = 600.0
"""What the remaining time is reckoned from: steps of a large model come minutes apart."""
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class Bars:
    """Progress bars on standard error, one a step, for work that takes longer than two seconds.

    There are none when standard error is not a terminal.
    """

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._bars = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=SPEED_S
        )
        self._began, self._shown = time.monotonic(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._bars.stop()

    def step(self, name: str) -> Told:
        """Begin a step; answers with what is to be told of its progress."""
        bar = self._bars.add_task(name, total=None)

        def told(done: int, total: int) -> None:
            if not self._shown and time.monotonic() - self._began > QUIET_S:
                self._bars.start()
                self._shown = True
            self._bars.update(bar, completed=done, total=total, visible=done < total)

        return told


def say_written(out: Path, text: str) -> None:
    """Say what was written, on standard output; on standard error when `out` may itself be standard output."""
    typer.echo(text, err=is_stream(out))


def show_table(title: str, columns: list[str], rows: list[list[str]], *, to_error: bool = False) -> None:
    """A table on standard output or error; columns whose cells are all numbers are set to the right."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for place, name in enumerate(columns):
        numeric = bool(rows) and all(row[place].replace(".", "").replace("-", "").isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell.translate(_CONTROLS) for cell in row))
    width = None if Console(stderr=to_error).is_terminal else WIDE
    Console(width=width, stderr=to_error, markup=False, emoji=False).print(table)
