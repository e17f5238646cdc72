"""Progress bars and tables of the commands, on standard error and standard output."""

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
"""Width of a table that is written to a file or a pipe."""
QUIET_S = 2.0
"""Steps that take less time show no progress bar."""
SPEED_S = 600.0
"""The period from which the remaining time is estimated: steps of a large model take minutes."""
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class Bars:
    """Progress bars on standard error, one per step that takes longer than two seconds; only on a terminal."""

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
        """Begin a step; returns its progress callback."""
        bar = self._bars.add_task(name, total=None)

        def told(done: int, total: int) -> None:
            if not self._shown and time.monotonic() - self._began > QUIET_S:
                self._bars.start()
                self._shown = True
            self._bars.update(bar, completed=done, total=total, visible=done < total)

        return told


def say_written(out: Path, text: str) -> None:
    """Print a line on standard output, or on standard error if `out` may be standard output itself."""
    typer.echo(text, err=is_stream(out))


def show_table(title: str, columns: list[str], rows: list[list[str]], *, to_error: bool = False) -> None:
    """Print a table on standard output or error; columns of numbers are right-aligned."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for place, name in enumerate(columns):
        numeric = bool(rows) and all(row[place].replace(".", "").replace("-", "").isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell.translate(_CONTROLS) for cell in row))
    width = None if Console(stderr=to_error).is_terminal else WIDE
    Console(width=width, stderr=to_error, markup=False, emoji=False).print(table)
