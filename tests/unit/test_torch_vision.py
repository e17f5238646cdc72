"""The torch tower on a CPU, beside the numpy reference: rows, images and texts through Python, faults of a device.

Doors by which a device's fault could be a traceback or a wrong row: loading a tower, running it, running it in half the
memory. What all towers promise is tested with them (test_towers, test_image_embedding, tests/golden).
"""

import asyncio
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pictures import PICTURES
from tests.unit.test_torch import CPU, failing
from tests.unit.test_towers import GRIDS, patches

from nestling.engine import towers
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.names import EngineName
from nestling.engine.numpy_vision import ReferenceTower
from nestling.engine.one_colour import OneColourTower
from nestling.engine.torch import devices, vision
from nestling.engine.torch.arithmetic import FloatArithmetic
from nestling.engine.torch.devices import Placement
from nestling.engine.torch.vision import TorchTower
from nestling.engine.towers import load_tower
from nestling.errors import EngineError
from nestling.formats.mmproj import VisionFile
from nestling.models.embedder import Embedder
from nestling.models.vision import ImageItem
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.server.core.fair_queue import Batch, Job, Limits
from nestling.server.core.replicas import Model
from nestling.spec import Task
from nestling.vectors import paired_cosine

SAME = 0.99999  # float32 sums in another order
BFLOAT16 = 0.9998  # the promise for every bfloat16 tower


@pytest.fixture(scope="module")
def file(tiny_tower: Path) -> VisionFile:
    return VisionFile.open(tiny_tower)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "PIECE", 80)


@pytest.mark.usefixtures("small_pieces")
def test_rows_are_the_references(file: VisionFile) -> None:
    """Windows of several images, cut windows, pieces that end within a window; no images are no rows."""
    tower, given = TorchTower(file, on=CPU), patches(GRIDS)
    expected = ReferenceTower(file).rows(given, GRIDS)
    for ours, theirs in zip(tower.rows(given, GRIDS), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for one, grid, theirs in zip(given, GRIDS, expected, strict=True):
        assert paired_cosine(tower.rows([one], [grid])[0], theirs).min() >= SAME, "alone"
    assert tower.rows([], []) == []


def test_bfloat16_as_on_a_card(file: VisionFile) -> None:
    """The same code on a CPU: an image's mean row, as a vector is made of it."""
    tower, given = TorchTower(file, on=CPU), patches(GRIDS)
    exact = tower.rows(given, GRIDS)
    tower.arithmetic = FloatArithmetic(ArithmeticName.BF16, torch.bfloat16)
    tower._load(file)
    for ours, theirs in zip(tower.rows(given, GRIDS), exact, strict=True):
        assert paired_cosine(ours.mean(0, keepdims=True), theirs.mean(0, keepdims=True)).min() >= BFLOAT16


def test_out_of_memory_is_tried_again_in_half_the_pieces_and_then_one_line(
    file: VisionFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, given, short = TorchTower(file, on=CPU), patches(GRIDS[:2]), torch.OutOfMemoryError("CUDA out of memory")
    expected = tower.rows(given, GRIDS[:2])
    monkeypatch.setattr(tower, "_run", failing([short], tower._run))
    for ours, theirs in zip(tower.rows(given, GRIDS[:2]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tower._piece == vision.PIECE // 2
    monkeypatch.setattr(tower, "_run", failing([short], tower._run))
    with pytest.raises(EngineError, match=r"mmproj-tiny-BF16\.gguf: cpu: out of memory computing \(0 MiB in use\)$"):
        tower.rows(given, GRIDS[:2])


def test_a_card_that_fails_is_one_line(file: VisionFile, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = torch.AcceleratorError("CUDA error: device unplugged.\nCompile with `TORCH_USE_CUDA_DSA`")
    monkeypatch.setattr(TorchTower, "_load", failing([gone], TorchTower._load))
    with pytest.raises(EngineError, match=r"cpu: loading: CUDA error: device unplugged$"):
        TorchTower(file, on=CPU)


def test_the_tower_is_where_the_text_engine_is(file: VisionFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never on the processor in place of a card; on a card, images of one colour are computed in float32."""
    assert isinstance(load_tower(file, name=EngineName.TORCH, device="cpu", threads=1), TorchTower)
    with pytest.raises(EngineError, match="device='cuda:0'"):
        load_tower(file, name=EngineName.TORCH, device="cuda:0", threads=1)
    with pytest.raises(EngineError, match="no GPU: "):
        load_tower(file, name=EngineName.TORCH, threads=1)
    monkeypatch.setattr(devices, "place", lambda *_, threads: Placement(torch.device("meta"), threads))
    monkeypatch.setattr(TorchTower, "_load", lambda *_: None)
    assert isinstance(load_tower(file, name=EngineName.TORCH, threads=1), OneColourTower)
    exact = load_tower(file, name=EngineName.TORCH, threads=1, exact=True)
    assert isinstance(exact, TorchTower)
    assert exact.arithmetic.name == "float32"
    assert towers.load_tower(file, name=EngineName.TORCH, threads=1, exact=True) is exact


def test_a_replica_runs_its_own_tower(vision_checkpoint: Path, tmp_path: Path) -> None:
    """An image's item is made by one replica, and computed by whichever device is free."""
    Pipeline(Checkpoint.open(vision_checkpoint), tmp_path, "tiny", 1).build([Task.CODE], ["F32"])
    path = model_path(tmp_path, family="tiny", task=Task.CODE, file_type="F32")
    first, second = (Embedder.load(path, engine=name, device="cpu", threads=1) for name in ("reference", "torch"))
    model = Model("m", {"cuda:0": first, "cuda:1": second})
    loop = asyncio.new_event_loop()
    job = Job(model, first.items(["a", PICTURES["noise 20x20"]()]), loop.create_future())
    loop.close()
    batch = Batch(model, Limits(64, 64, inf), [(job, 0), (job, 1)])
    for device, replica in model.replicas.items():
        text, image = (work.item for work in batch.works(device))
        assert text is job.items[0]
        assert isinstance(image, ImageItem)
        assert image.vision is replica.vision
    one, other = (model.replicas[device].compute.batch(batch.works(device)) for device in model.replicas)
    assert paired_cosine(np.array(one), np.array(other)).min() >= SAME


@pytest.mark.parametrize("task", [Task.RETRIEVAL])
def test_images_and_texts_through_python(vision_checkpoint: Path, tmp_path: Path, task: Task) -> None:
    """Alone, together, between texts; one vector and one for every token."""
    Pipeline(Checkpoint.open(vision_checkpoint), tmp_path, "tiny", 1).build([task], ["F32"])
    path = model_path(tmp_path, family="tiny", task=task, file_type="F32")
    ours, theirs = (Embedder.load(path, engine=name, device="cpu", threads=1) for name in ("torch", "reference"))
    assert ours.images_refused is None
    images = [make() for make in PICTURES.values()]
    found, expected = ours.encode_image(images), theirs.encode_image(images)
    assert paired_cosine(found, expected).min() >= SAME
    mixed = ["a", images[0], "a longer text of several words", images[4]]
    vectors = ours.embed(ours.items(mixed))
    assert paired_cosine(vectors, theirs.embed(theirs.items(mixed))).min() >= SAME
    assert paired_cosine(vectors[1::2], found[[0, 4]]).min() >= SAME
    tokens, others = (one.encode_image_tokens(images[:1])[0] for one in (ours, theirs))
    assert paired_cosine(tokens, others).min() >= SAME
