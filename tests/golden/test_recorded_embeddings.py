"""`Embedder.encode_image` against transformers and torch (see record_images.py).

0.99999 is the product's promise for images with a float32 tower and a float file. A Q8_0 text file has 0.998: the
random tower's rows are larger than embeddings, and int8 rounds to steps of the largest. Multi-vectors: 0.9999 a token.
Engines and types of files have more in `test_recorded_image_vectors.py`.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.pictures import PICTURES

from nestling.models.embedder import Embedder
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task
from nestling.vectors import Floats, paired_cosine

HERE = Path(__file__).parent
EXACT, INT8, TOKENS = 0.99999, 0.998, 0.9999


@pytest.fixture(scope="session")
def family(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictured")
    Pipeline(Checkpoint.open(vision_checkpoint), folder, "tiny", 2).build(list(Task), ["F32", "Q8_0"])
    return folder


@pytest.fixture(scope="module")
def recorded() -> dict[str, NDArray[np.float32]]:
    with np.load(HERE / "images-tiny.npz") as arrays:
        return dict(arrays)


def load(family: Path, task: Task, kind: str, *, engine: str = "openvino") -> Embedder:
    path = model_path(family, family="tiny", task=task, file_type=kind)
    return Embedder.load(path, engine=engine, exact_images=True)


def lowest(found: Floats, recorded: dict[str, NDArray[np.float32]], task: Task) -> float:
    wanted = np.stack([recorded[f"{name}/{task}"] for name in PICTURES])
    return float(paired_cosine(found, wanted).min())


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize(("kind", "needed"), [("F32", EXACT), ("Q8_0", INT8)])
def test_every_picture_has_the_originals_vector(
    family: Path, recorded: dict[str, NDArray[np.float32]], *, task: Task, kind: str, needed: float
) -> None:
    images = [Image.fromarray(make()) for make in PICTURES.values()]
    assert lowest(load(family, task, kind).encode_image(images), recorded, task) >= needed


@pytest.mark.slow
def test_the_oracle_too(family: Path, recorded: dict[str, NDArray[np.float32]]) -> None:
    found = load(family, Task.RETRIEVAL, "F32", engine="reference").encode_image([make() for make in PICTURES.values()])
    assert lowest(found, recorded, Task.RETRIEVAL) >= EXACT


@pytest.mark.parametrize("task", Task)
def test_every_token_of_a_picture_has_the_originals_vector(
    family: Path, recorded: dict[str, NDArray[np.float32]], task: Task
) -> None:
    names = [name for name in PICTURES if f"{name}/{task}/tokens" in recorded]
    found = load(family, task, "F32").encode_image_tokens([PICTURES[name]() for name in names])
    for name, rows in zip(names, found, strict=True):
        assert paired_cosine(rows, recorded[f"{name}/{task}/tokens"]).min() >= TOKENS
