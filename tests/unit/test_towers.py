"""Vision engines beside the recorded rows: runs in pieces, refusals, one copy for all, nothing loaded for texts."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.unit.test_mmproj import changed

from nestling.engine.names import EngineName
from nestling.engine.numpy_vision import ReferenceTower
from nestling.engine.one_colour import OneColourTower
from nestling.engine.openvino import vision as openvino_vision
from nestling.engine.openvino.vision import OpenVINOTower
from nestling.engine.towers import load_tower
from nestling.engine.vision import MOST_PATCHES, Grid, VisionEngine
from nestling.errors import EngineError, UsageError
from nestling.formats.mmproj import VisionFile
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats, paired_cosine

GRIDS: list[Grid] = [(4, 4), (2, 58), (18, 10), (2, 2), (16, 26), (18, 10)]


def patches(grids: list[Grid], seed: int = 0) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows * columns, 1176), np.float32) for rows, columns in grids]


@pytest.fixture(scope="module")
def vision(tiny_tower: Path) -> VisionFile:
    return VisionFile.open(tiny_tower)


@pytest.fixture(scope="module")
def exact(vision: VisionFile) -> VisionEngine:
    return OpenVINOTower(vision, threads=1, exact=True)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these images were as large as real ones: several pieces, and several runs of attention."""
    monkeypatch.setattr(openvino_vision, "PIECE", 80)
    monkeypatch.setattr(openvino_vision, "TOGETHER", 320)


@pytest.mark.usefixtures("small_pieces")
def test_pieces_and_runs_change_nothing(vision: VisionFile, exact: VisionEngine) -> None:
    """Windows of several images share a piece, images a run; the reference takes an image at a time. 1e-4 of values of
    about 2.5 is float32 noise.
    """
    given = patches(GRIDS)
    for ours, theirs in zip(exact.rows(given, GRIDS), ReferenceTower(vision).rows(given, GRIDS), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_rows_do_not_depend_on_the_images_beside(vision: VisionFile) -> None:
    """In bfloat16 too: 0.99999 is the product's promise."""
    tower, given = OpenVINOTower(vision, threads=1), patches(GRIDS)
    together = tower.rows(given, GRIDS)
    for one, grid, rows in zip(given, GRIDS, together, strict=True):
        assert paired_cosine(tower.rows([one], [grid])[0], rows).min() >= 0.99999


def test_images_of_one_colour_beside_others_and_their_cache(vision: VisionFile, exact: VisionEngine) -> None:
    """In any place among others, of any size; equal colours are computed once; another value is another picture."""
    rng = np.random.default_rng(1)
    colours = [np.repeat(rng.standard_normal((1, 1176), np.float32), 4, 0) for _ in range(2)]
    grids: list[Grid] = [(4, 4), (2, 2), (6, 4), (2, 2), (4, 2)]
    given = patches(grids)
    for place, colour in ((0, 0), (2, 1), (4, 0)):
        given[place] = np.repeat(colours[colour][:1], grids[place][0] * grids[place][1], 0)
    almost = given[2].copy()
    almost[-1, -1] += 1
    tower = OneColourTower(exact, vision)
    for found, expected in zip(tower.rows(given, grids), exact.rows(given, grids), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert list(tower._cached) == [colour[0].tobytes() * 4 for colour in colours]
    np.testing.assert_array_equal(tower.rows([almost], [grids[2]])[0], exact.rows([almost], [grids[2]])[0])


def test_the_cache_of_colours_is_bounded(
    vision: VisionFile, exact: VisionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.engine.one_colour.MOST_COLOURS", 2)
    tower = OneColourTower(exact, vision)
    for value in range(4):
        tower.rows([np.full((4, 1176), value, np.float32)], [(2, 2)])
        assert len(tower._cached) <= 2


def test_no_images_have_no_rows(exact: VisionEngine) -> None:
    assert exact.rows([], []) == []


def test_an_image_of_too_many_patches_is_refused(vision: VisionFile, exact: VisionEngine) -> None:
    grid = (2, MOST_PATCHES // 2 + 2)
    one = np.broadcast_to(np.float32(0), (grid[0] * grid[1], 1176))
    for tower in (exact, ReferenceTower(vision)):
        with pytest.raises(UsageError, match="an image of 3212048 pixels; expected at most 3211264") as caught:
            tower.rows([one], [grid])
        assert caught.value.param == "max_pixels"


@pytest.mark.parametrize("name", ["openvino", "torch", "reference"])
def test_rows_that_are_no_numbers_are_an_error(tiny_tower: Path, tmp_path: Path, name: str) -> None:
    """An infinity in the file: never an answer."""
    broken = np.full(64, np.inf, np.float32)
    path = changed(tiny_tower, tmp_path / "mmproj.gguf", tensors={"mm.2.bias": (broken, QuantType.F32)})
    tower = load_tower(VisionFile.open(path), name=EngineName(name), device="cpu")
    with pytest.raises(EngineError, match="image 0: the vision tower answered with NaN or infinity"):
        tower.rows(patches([(2, 2), (4, 4)]), [(2, 2), (4, 4)])


def test_all_who_use_a_file_share_one_tower_and_the_last_frees_it(vision: VisionFile, tiny_tower: Path) -> None:
    first = load_tower(vision, name=EngineName.AUTO, threads=1)
    assert load_tower(VisionFile.open(tiny_tower), name=EngineName.AUTO, threads=1) is first
    assert load_tower(vision, name=EngineName.AUTO, threads=1, exact=True) is not first
    before = id(first)
    del first
    gc.collect()
    from nestling.engine import towers

    assert before not in {id(one) for one in towers._loaded.values()}


def test_llamacpp_says_why_it_takes_no_images(vision: VisionFile) -> None:
    with pytest.raises(
        UsageError, match=r"engine='llamacpp': no images .*; expected one of auto, openvino, torch, reference"
    ):
        load_tower(vision, name=EngineName.LLAMACPP)


def test_texts_load_nothing_of_vision() -> None:
    """Neither Pillow nor a module of the tower is imported by the library and the text engine."""
    code = (
        "import sys, nestling, nestling.models.embedder, nestling.engine.openvino.engine;"
        "heavy = 'openvino.vision', '.vision_graph', '.numpy_vision', 'PIL';"
        "print([name for name in sys.modules if name.endswith(heavy)])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
