"""Images through a loaded model: Python's surface, in any company. Exactness is in `tests/golden`.

The doors by which an image could become another's vector: its neighbours in a group, texts beside it, the order of a
list, another task's model, equal sizes and so equal ids.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.picture_files import png, saved
from tests.pictures import PICTURES, gradient, noise
from tests.unit.test_mmproj import changed

from nestling.errors import EngineError, FileFormatError, ImageError, NestlingError, TextError, UsageError
from nestling.formats.gguf import Field, GGUFFile
from nestling.formats.mmproj import OURS
from nestling.models.embedder import Embedder
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task
from nestling.vectors import paired_cosine

SAME = 0.99999  # float32 sums in another order
IMAGES = [make() for make in PICTURES.values()]


@pytest.fixture(scope="module")
def folder(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("family")
    Pipeline(Checkpoint.open(vision_checkpoint), made, "tiny", 1).build([Task.RETRIEVAL, Task.CODE], ["F32"])
    return made


def path_of(folder: Path, task: Task = Task.RETRIEVAL) -> Path:
    return model_path(folder, family="tiny", task=task, file_type="F32")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Embedder]:
    loaded = Embedder.load(path_of(folder), threads=1, exact_images=True)
    yield loaded
    loaded.close()


def test_company_and_order_change_nothing(model: Embedder) -> None:
    alone = np.concatenate([model.encode_image([one]) for one in IMAGES])
    assert paired_cosine(model.encode_image(IMAGES), alone).min() >= SAME
    assert paired_cosine(model.encode_image(IMAGES[::-1])[::-1], alone).min() >= SAME
    assert alone.shape == (len(IMAGES), 64)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("engine", ["openvino", "torch", "reference"])
def test_the_smallest_the_longest_and_one_colour_have_vectors(folder: Path, engine: str) -> None:
    small = [gradient(*size) for size in ((1, 1), (1, 200), (200, 1))]
    plains = [np.full((40, 60, 3), colour, np.uint8) for colour in ((0, 0, 0), (255, 255, 255), (0, 128, 0))]
    loaded = Embedder.load(path_of(folder), engine=engine, device="cpu", threads=1)
    found = loaded.encode_image([png(one) for one in [*small, *plains]])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert len(np.unique(found.round(6), axis=0)) == len(found)
    loaded.close()


def test_texts_are_embedded_without_pillow_and_without_the_tower(folder: Path) -> None:
    """Though both are there; a server that offers images does not load them before the first one either."""
    code = (
        "import sys; from nestling.models.embedder import Embedder;"
        f"model = Embedder.load({str(path_of(folder))!r}, threads=1);"
        "model.encode(['a text']); assert model.images_refused is None;"
        "heavy = 'openvino.vision', '.vision_graph', 'PIL', '.inputs.image.pillow';"
        "print([name for name in sys.modules if name.endswith(heavy)], 'vision' in vars(model))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[] False"


def test_texts_and_images_share_a_batch(model: Embedder) -> None:
    texts = ["a", "a longer text of several words"]
    inputs = [texts[0], IMAGES[0], texts[1], png(IMAGES[4])]
    found = model.embed(model.items(inputs, prompt_name="passage"))
    apart = np.concatenate([model.encode_document(texts), model.encode_image([IMAGES[0], IMAGES[4]])])[[0, 2, 1, 3]]
    assert paired_cosine(found, apart).min() >= SAME
    rows = model.multivectors(model.items(inputs, prompt_name="passage"))
    for one, other in zip(rows[1::2], model.encode_image_tokens([IMAGES[0], IMAGES[4]]), strict=True):
        assert paired_cosine(one, other).min() >= SAME


def test_images_of_equal_size_and_so_equal_ids_are_told_apart(model: Embedder) -> None:
    first, second = model.items([noise(56, 56), gradient(56, 56)])
    assert np.array_equal(first.ids, second.ids)
    assert first.identity != second.identity
    assert paired_cosine(model.embed([first]), model.embed([second])).max() < SAME


def test_dimensions_and_pixels_are_chosen(model: Embedder) -> None:
    whole, short = model.encode_image(IMAGES[:2]), model.encode_image(IMAGES[:2], truncate_dim=16)
    assert paired_cosine(short, whole[:, :16]).min() >= SAME
    assert len(model.encode_image_tokens(IMAGES[:1], max_pixels=9 * 784)[0]) <= 9 + 20
    for default in (None, 0):
        assert paired_cosine(model.encode_image(IMAGES[:2], max_pixels=default), whole).min() >= SAME
    for bad in (1, -1, 783, True, 1.5, "9"):
        with pytest.raises(UsageError, match=r"max_pixels=.*: expected an integer from 784"):
            model.encode_image(IMAGES[:1], max_pixels=bad)  # type: ignore[arg-type]


def test_no_images_are_no_vectors(model: Embedder) -> None:
    assert model.encode_image([]).shape == (0, 64)
    assert model.encode_image_tokens([]) == []
    assert model.items([]) == []


def test_one_pass_iterables_are_taken(model: Embedder) -> None:
    assert model.encode_image(one for one in IMAGES[:2]).shape == (2, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["a.png", png(), Path("a.png"), None, 3], ids=lambda one: type(one).__name__)
def test_one_image_for_a_list_is_refused(model: Embedder, value: Any) -> None:
    with pytest.raises(UsageError, match="images: expected a list of images, not"):
        model.encode_image(value)


def test_a_bad_image_is_named_by_its_place(model: Embedder) -> None:
    with pytest.raises(ImageError, match="input 1: cannot be read as an image") as caught:
        model.encode_image([IMAGES[0], b"nonsense"])
    assert caught.value.index == 1
    with pytest.raises(ImageError, match=r"input 2: missing\.png: cannot be read: No such file"):
        model.items(["a", IMAGES[0], Path("missing.png"), "b"])
    with pytest.raises(TextError, match="input 3: the text is empty"):
        model.items(["a", IMAGES[0], "b", ""])


def test_more_tokens_than_the_model_takes_are_refused_before_the_tower_runs(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model.vision.tower), "rows", None)
    wide = gradient(2000, 2000)
    with pytest.raises(ImageError, match=r"input 0: \d+ tokens, this model takes \d+; lower max_pixels"):
        model.encode_image([wide] * 2, max_pixels=(model.spec.max_tokens + 1) * 784 * 2)


def test_one_tower_for_all_tasks(folder: Path, model: Embedder) -> None:
    other = Embedder.load(path_of(folder, Task.CODE), threads=1, exact_images=True)
    assert other.vision.tower is model.vision.tower
    assert paired_cosine(other.encode_image(IMAGES[:2]), model.encode_image(IMAGES[:2])).max() < SAME
    other.close()


def test_a_base_with_adapters_takes_images_for_each_task(
    vision_checkpoint: Path, folder: Path, tmp_path: Path, model: Embedder
) -> None:
    built = Pipeline(Checkpoint.open(vision_checkpoint), tmp_path, "tiny", 1).build_base(["F32"])
    base = Embedder.load(built[0].path, threads=1, exact_images=True)
    assert paired_cosine(base.encode_image(IMAGES), model.encode_image(IMAGES)).min() >= 0.9999  # unmerged sums
    other = Embedder.load(path_of(folder, Task.CODE), threads=1, exact_images=True)
    assert paired_cosine(base.for_task("code").encode_image(IMAGES), other.encode_image(IMAGES)).min() >= 0.9999
    base.close()
    other.close()


def test_a_model_without_a_tower_says_which_file_is_missing(folder: Path, tmp_path: Path) -> None:
    alone = Embedder.load(shutil.copy(path_of(folder), tmp_path), threads=1)
    with pytest.raises(UsageError, match=r"no vision tower \(mmproj-tiny-BF16.gguf\)") as caught:
        alone.encode_image(IMAGES[:1])
    assert caught.value.param == "image"
    assert alone.encode(["texts go on"]).shape == (1, 64)
    alone.close()


def test_a_tower_of_another_checkpoint_is_refused(folder: Path, tmp_path: Path, tiny_tower: Path) -> None:
    path = Path(shutil.copy(path_of(folder), tmp_path))
    data = tiny_tower.read_bytes()
    source = Embedder.load(path, engine="reference").spec.source.encode()
    (tmp_path / "mmproj-tiny-BF16.gguf").write_bytes(data.replace(source, b"x" * len(source)))
    with pytest.raises(FileFormatError, match="made for another model: its checkpoint is xxx"):
        Embedder.load(path, engine="reference").encode_image(IMAGES[:1])


def test_a_published_tower_says_nothing_of_ours_and_gives_the_same(
    folder: Path, tmp_path: Path, model: Embedder
) -> None:
    """Prompt, pixels and window come from the text model's tokenizer and the published defaults."""
    tower = folder / "mmproj-tiny-BF16.gguf"
    ours: dict[str, Field | None] = {key: None for key in GGUFFile.open(tower).metadata if key.startswith(OURS)}
    assert len(ours) >= 5
    path = Path(shutil.copy(path_of(folder), tmp_path))
    changed(tower, tmp_path / tower.name, fields=ours)
    published = Embedder.load(path, threads=1, exact_images=True)
    assert paired_cosine(published.encode_image(IMAGES), model.encode_image(IMAGES)).min() >= SAME
    published.close()


def test_llama_cpp_takes_no_images_and_says_why(folder: Path) -> None:
    with pytest.raises(NestlingError, match="expected one of auto, openvino, torch, reference"):
        Embedder.load(path_of(folder), engine="llamacpp").encode_image(IMAGES[:1])


def test_rows_that_are_no_numbers_are_an_error(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(_self: object, patches: Any, grids: Any) -> list[Any]:
        del patches
        return [np.full((grid[0] * grid[1] // 4, 64), np.nan, np.float32) for grid in grids]

    monkeypatch.setattr(type(model.vision.tower), "rows", rows)
    with pytest.raises(EngineError, match="zero or not finite"):
        model.encode_image(IMAGES[:1])


def test_many_images_are_not_held_together(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = type(model.vision.tower).rows

    def rows(self: Any, patches: Any, grids: Any) -> list[Any]:
        asked.append(len(grids))
        return real(self, patches, grids)

    monkeypatch.setattr(type(model.vision.tower), "rows", rows)
    monkeypatch.setattr("nestling.models.vision.TOGETHER", 40)
    small = saved(noise(56, 56), "PNG")
    assert model.encode_image([small] * 7).shape == (7, 64)
    assert asked == [3, 3, 1]


def test_the_tower_runs_with_the_batch_and_once_for_all_of_its_images(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = type(model.vision.tower).rows

    def rows(self: Any, patches: Any, grids: Any) -> list[Any]:
        asked.append(len(grids))
        return real(self, patches, grids)

    monkeypatch.setattr(type(model.vision.tower), "rows", rows)
    items = model.items(["a", IMAGES[3], IMAGES[4], "b"])
    assert asked == []
    assert [item.work for item in items] == [len(items[0]), 24 + 4, 24 + 4, len(items[3])]
    assert model.embed(items).shape == (4, 64)
    assert asked == [2]
    with pytest.raises(EngineError, match="dimensions"):
        model.engine.pool(items)  # an engine never takes an image for its placeholder tokens
