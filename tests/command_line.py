"""The command line as its entry point runs it, in this process: exit code, standard output, standard error."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nestling.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        """Standard output as text."""
        return self.raw.decode()


class _Stream(io.TextIOWrapper):
    def __init__(self, content: bytes = b"", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8", write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def nestling(*arguments: str | Path, stdin: bytes | None = None, terminal: bool = False) -> Done:
    """Run `nestling ARGUMENTS`; without `stdin` the input is a terminal, with `terminal` the output is one."""
    out, err = _Stream(terminal=terminal), _Stream()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nestling", *map(str, arguments)])
        patch.setattr(sys, "stdin", _Stream(stdin or b"", terminal=stdin is None))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as caught:
            main()
    written = [stream.buffer.getvalue() for stream in (out, err) if isinstance(stream.buffer, io.BytesIO)]
    return Done(int(caught.value.code or 0), written[0], written[1].decode())
