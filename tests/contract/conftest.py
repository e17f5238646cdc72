"""The starter behind `nestling serve`, as a user would start it; a tiny model with a vision tower and its server."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.contract.serving import Running, running

from nestling.models.embedder import Embedder
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task

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


@pytest.fixture(scope="session")
def vision_path(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its vision tower beside it."""
    folder = tmp_path_factory.mktemp("family")
    Pipeline(Checkpoint.open(vision_checkpoint), folder, "tiny", 1).build([Task.RETRIEVAL], ["F32"])
    return model_path(folder, family="tiny", task=Task.RETRIEVAL, file_type="F32")


@pytest.fixture(scope="session")
def vision_model(vision_path: Path) -> Iterator[Embedder]:
    """The same in memory."""
    loaded = Embedder.load(vision_path, threads=1)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def vision_server(vision_path: Path) -> Iterator[Running]:
    """The same behind a server, with the default settings."""
    with running(lambda _reference: Embedder.load(vision_path, threads=1)) as one:
        yield one
