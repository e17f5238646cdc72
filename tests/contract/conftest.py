"""The starter behind `nestling serve`, as a user would start it."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NESTLING = Path(sys.executable).with_name("nestling")


@dataclass(frozen=True)
class Served:
    """A running `nestling serve`: its address and the command that it proposed."""

    url: str
    proposed: str


@pytest.fixture(scope="session")
def served(starter_q8: Path) -> Iterator[Served]:
    assert starter_q8.exists()
    with serving() as one:
        yield one


@contextmanager
def serving(*options: str) -> Iterator[Served]:
    """A server with these options on a free port; it ends by itself when told to."""
    with subprocess.Popen([NESTLING, "serve", "--port", "0", *options], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        try:
            found = re.search(r"http://[\d.:]+", child.stdout.readline())
            assert found
            yield Served(found[0], child.stdout.readline())
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0
        finally:
            child.kill()
