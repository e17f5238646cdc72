"""Fixtures of every suite: a cache folder of the session's own, and small models that are made once."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads spin while they wait for each other

import pytest
from huggingface_hub import constants
from hypothesis import settings
from tests import tiny_gguf
from tests.hub_server import HubServer, use
from tests.hub_server import running as hub_running
from tests.tiny import SMALL_VOCAB, write_tiny_checkpoint
from tests.tiny_vision import write_vision_checkpoint

from nestling._util import files
from nestling.formats.mmproj import tower_path
from nestling.formats.quant_types import FLOAT_FILE_TYPES
from nestling.models import local
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.vision import write_tower
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize_many
from nestling.spec import Task

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background has it ignored

QUANTIZED = ("Q8_0", "Q4_K_M", "Q3_K_M")

# The same examples on every machine, no folder of earlier ones, and no clock: the machine may be busy.
settings.register_profile("nestling", deadline=None, derandomize=True, database=None)
settings.load_profile("nestling")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model cache of this session: no test sees the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(files.CACHE_VARIABLE, str(folder))
        patch.setenv("HF_HOME", str(folder / "hub"))  # for other processes; this one has read it already
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub" / "hub"))
        yield folder


@pytest.fixture(scope="module")
def hub_server() -> Iterator[HubServer]:
    """A hub on loopback, a module's own; `hub_cache` makes it this process's hub."""
    with hub_running() as one:
        yield one


@pytest.fixture
def hub_cache(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a hub cache of the test's own, not made yet; the hub on loopback is emptied and used."""
    use(hub_server, tmp_path / "hub", monkeypatch)
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """File type -> a tiny random GGUF model (`tests.tiny_gguf`); the quantized ones are made from the F32 file."""
    folder = tmp_path_factory.mktemp("tiny-models")
    models = {kind: tiny_gguf.write(folder / f"tiny-{kind}.gguf", kind) for kind in FLOAT_FILE_TYPES}
    mixes = {folder / f"tiny-{kind}.gguf": Mix(kind) for kind in QUANTIZED}
    quantize_many(models["F32"], mixes, threads=1)
    return models | dict(zip(QUANTIZED, mixes, strict=True))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint (`tests.tiny`); copy it before changing anything in it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny-checkpoint"))


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a small vocabulary, which reads and converts in a blink; copy it before changing anything in it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("small-checkpoint"), vocab=SMALL_VOCAB)


@pytest.fixture(scope="session")
def vision_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small one with a whole vision tower (`tests.tiny_vision`); copy it before changing anything in it."""
    return write_vision_checkpoint(tmp_path_factory.mktemp("vision-checkpoint"))


@pytest.fixture(scope="session")
def tiny_tower(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its mmproj file."""
    path = tower_path(tmp_path_factory.mktemp("tiny-tower"), "tiny")
    write_tower(Checkpoint.open(vision_checkpoint), out=path, family="tiny")
    return path


@pytest.fixture(scope="session")
def starter_q8(cache_folder: Path) -> Path:
    """The starter's retrieval model as Q8_0, built into the session's cache."""
    assert cache_folder.is_dir()
    return local.resolve(f"{local.STARTER}-{Task.RETRIEVAL}:Q8_0")
