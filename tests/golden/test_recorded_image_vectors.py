"""From a picture to its vector, every step ours, against transformers and torch (see record_images.py).

0.99999 is the product's promise with a float32 tower and a float text file: float32 sums in another order differ by
about 1e-6. A BF16 file is compared with what the same rounding of the merged matrices gives there, which moves vectors
by up to 1e-4. 0.9998 is the promise with a bfloat16 tower.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.pictures import PICTURES

from nestling.engine.names import EngineName
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.vision import OpenVINOTower
from nestling.engine.protocol import Engine, Item, Rows, plain
from nestling.engine.torch.devices import place
from nestling.engine.torch.engine import TorchEngine
from nestling.engine.torch.vision import TorchTower
from nestling.engine.towers import load_tower
from nestling.engine.vision import VisionEngine
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import VisionFile, tower_path
from nestling.formats.multivector_head import Projector, projector_path
from nestling.inputs import image
from nestling.inputs.tokenizer import Tokenizer
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task
from nestling.vectors import Floats, paired_cosine

HERE = Path(__file__).parent
NAMES = tuple(PICTURES)
EXACT, BFLOAT16, EVERY_TOKEN = 0.99999, 0.9998, 0.9999
FLOATS = ("F32", "F16", "BF16")
Recorded = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    with np.load(HERE / "images-tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def folder(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    Pipeline(Checkpoint.open(vision_checkpoint), made, "tiny", 2).build(list(Task), FLOATS)
    return made


@pytest.fixture(scope="module")
def exact(folder: Path) -> VisionEngine:
    return OpenVINOTower(VisionFile.open(tower_path(folder, "tiny")), threads=2, exact=True)


def items(folder: Path, tower: VisionEngine, names: Sequence[str] = NAMES) -> list[Item]:
    """Pictures as the text engine takes them."""
    return items_of([PICTURES[name]() for name in names], folder, tower)


def items_of(pictures: Sequence[NDArray[np.uint8]], folder: Path, tower: VisionEngine) -> list[Item]:
    spec = VisionFile.open(tower_path(folder, "tiny")).spec
    images = [image.read(picture, spec) for picture in pictures]
    rows = tower.rows([one.patches(spec) for one in images], [one.grid for one in images])
    placed = [image.placed(one.grid, spec) for one in images]
    return [
        Item(place.ids, place.positions, Rows(place.image, one), pooled=place.pooled)
        for place, one in zip(placed, rows, strict=True)
    ]


@pytest.fixture(params=[*product(Task, FLOATS)], ids=lambda pair: f"{pair[0]} {pair[1]}")
def loaded(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, Engine]]:
    """The name of a recording, and an engine."""
    task, file_type = request.param
    file = GGUFFile.open(model_path(folder, family="tiny", task=task, file_type=file_type))
    engine = OpenVINOEngine(file, threads=2)
    yield f"{task}-bf16" if file_type == "BF16" else task.value, engine
    engine.close()


def wanted(recorded: Recorded, kind: str) -> Floats:
    return np.stack([recorded[f"{name}/{kind}"] for name in NAMES])


def test_every_picture_has_the_originals_vector(
    loaded: tuple[str, Engine], folder: Path, exact: VisionEngine, recorded: Recorded
) -> None:
    kind, engine = loaded
    cosines = paired_cosine(engine.pool(items(folder, exact)), wanted(recorded, kind))
    assert cosines.min() >= EXACT, dict(zip(NAMES, cosines.tolist(), strict=True))


def test_a_bfloat16_tower(loaded: tuple[str, Engine], folder: Path, recorded: Recorded) -> None:
    kind, engine = loaded
    tower = load_tower(VisionFile.open(tower_path(folder, "tiny")), name=EngineName.AUTO, threads=2)
    cosines = paired_cosine(engine.pool(items(folder, tower)), wanted(recorded, kind))
    assert cosines.min() >= BFLOAT16, dict(zip(NAMES, cosines.tolist(), strict=True))


@pytest.mark.parametrize("size", [(56, 56), (112, 84), (224, 224)], ids=str)
def test_one_colour_in_bfloat16_is_float32s(folder: Path, exact: VisionEngine, size: tuple[int, int]) -> None:
    """Whatever the colour; by products in bfloat16 these vectors had 0.998. One dot more, and it is a picture."""
    colours = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 20, 20), (20, 30, 220), (10, 160, 40)]
    pictures = [np.full((*size, 3), colour, np.uint8) for colour in colours]
    pictures.append(pictures[1].copy())
    pictures[-1][size[0] // 2, size[1] // 3] = 0
    tower = load_tower(VisionFile.open(tower_path(folder, "tiny")), name=EngineName.AUTO, threads=2)
    engine = OpenVINOEngine(
        GGUFFile.open(model_path(folder, family="tiny", task=Task.RETRIEVAL, file_type="F32")), threads=2
    )
    found, expected = (engine.pool(items_of(pictures, folder, one)) for one in (tower, exact))
    engine.close()
    cosines = paired_cosine(found, expected)
    assert cosines[:-1].min() >= EXACT, cosines
    assert cosines[-1] >= BFLOAT16


def test_every_token_has_the_originals_multi_vector(
    loaded: tuple[str, Engine], folder: Path, exact: VisionEngine, recorded: Recorded
) -> None:
    kind, engine = loaded
    head = Projector.open(projector_path(folder, family="tiny", task=Task(kind.removesuffix("-bf16"))))
    states = engine.token_states(items(folder, exact))
    found = {name: head.project(one) for name, one in zip(NAMES, states, strict=True)}
    small = [name for name in NAMES if f"{name}/{kind}/tokens" in recorded]
    assert len(small) >= 4
    for name in small:
        assert paired_cosine(found[name], recorded[f"{name}/{kind}/tokens"]).min() >= EVERY_TOKEN, name


def test_torch(folder: Path, recorded: Recorded) -> None:
    """Tower and text engine, in float32 as on every CPU."""
    on = place("cpu", threads=1)
    tower = TorchTower(VisionFile.open(tower_path(folder, "tiny")), on=on)
    file = GGUFFile.open(model_path(folder, family="tiny", task=Task.RETRIEVAL, file_type="F32"))
    engine = TorchEngine(file, on=on)
    cosines = paired_cosine(engine.pool(items(folder, tower)), wanted(recorded, Task.RETRIEVAL))
    engine.close()
    assert cosines.min() >= EXACT, dict(zip(NAMES, cosines.tolist(), strict=True))


def test_the_oracle(folder: Path, exact: VisionEngine, recorded: Recorded) -> None:
    file = GGUFFile.open(model_path(folder, family="tiny", task=Task.CODE, file_type="F32"))
    cosines = paired_cosine(ReferenceEngine(file).pool(items(folder, exact)), wanted(recorded, Task.CODE))
    assert cosines.min() >= EXACT


@pytest.mark.parametrize("file_type", ["F32", "BF16"])
def test_alone_together_and_between_texts(folder: Path, exact: VisionEngine, *, file_type: str) -> None:
    """The texts' vectors stay theirs too."""
    file = GGUFFile.open(model_path(folder, family="tiny", task=Task.RETRIEVAL, file_type=file_type))
    engine = OpenVINOEngine(file, threads=2)
    texts = plain(Tokenizer.from_gguf(file).encode(["a", "b" * 300, "A harbour at dusk", "!" * 40]))
    mixed = [one for pair in zip(items(folder, exact)[:4], texts, strict=True) for one in pair]
    alone = np.concatenate([engine.pool([one]) for one in mixed])
    for order in (slice(None), slice(None, None, -1)):
        assert paired_cosine(engine.pool(mixed[order])[order], alone).min() >= EXACT
    again = np.concatenate([engine.pool([one]) for one in items(folder, exact, NAMES[2:4])])
    assert paired_cosine(again, alone[[4, 6]]).min() >= EXACT
    engine.close()
