"""`nestling embed`, `similarity` and `rerank` with images among texts."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.command_line import Done, nestling
from tests.picture_files import png
from tests.pictures import gradient, page

from nestling.models.embedder import Embedder
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task
from nestling.vectors import paired_cosine


@pytest.fixture(scope="module")
def model(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    Pipeline(Checkpoint.open(vision_checkpoint), folder, "tiny", 1).build([Task.RETRIEVAL], ["F32"])
    return model_path(folder, family="tiny", task=Task.RETRIEVAL, file_type="F32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "a page.png", folder / "b.png"]
    for path, pixels in zip(paths, (page(280, 300), gradient(56, 56)), strict=True):
        path.write_bytes(png(pixels))
    return paths


def run(verb: str, model: Path, *arguments: str | Path, stdin: bytes | None = None) -> Done:
    return nestling(verb, "--model", model, "--engine", "reference", *arguments, stdin=stdin)


def test_texts_come_first_then_images(model: Path, pictures: list[Path]) -> None:
    done = run("embed", model, "-i", pictures[0], "a text", "--image", pictures[1], "--format", "jsonl")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["text"] for line in lines] == ["a text", *map(str, pictures)]
    loaded = Embedder.load(model, engine="reference")
    expected = np.concatenate([loaded.encode(["a text"]), loaded.encode_image(pictures)])
    assert paired_cosine(np.array([line["embedding"] for line in lines], np.float32), expected).min() > 0.999999


def test_images_alone_do_not_wait_for_standard_input(model: Path, pictures: list[Path]) -> None:
    usage = json.loads(run("embed", model, "-i", pictures[1], "--format", "json", stdin=b"not read\n").out)["usage"]
    assert usage["prompt_tokens"] == 4 + 20
    rows = run("embed", model, "-i", pictures[1], "--multivector").out.strip().splitlines()
    assert len(rows) == 4 + 20


def test_similarity_and_rerank_take_both(model: Path, pictures: list[Path]) -> None:
    found = json.loads(run("similarity", model, "a text", "-i", pictures[0], "-i", pictures[1], "--json").out)
    assert found["texts"] == ["a text", *map(str, pictures)]
    np.testing.assert_allclose(np.diag(found["cosine"]), 1, atol=1e-6)
    for scoring in ("maxsim", "cosine"):
        best = json.loads(
            run("rerank", model, "asked", "a text", "-i", pictures[0], "--scoring", scoring, "--json").out
        )
        assert {one["text"] for one in best["results"]} == {"a text", str(pictures[0])}


@pytest.mark.parametrize("verb", ["embed", "similarity", "rerank"])
def test_a_bad_image_is_one_line_with_its_path(verb: str, model: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(b"nonsense")
    for path, said in (
        (tmp_path / "c.png", f"{tmp_path}/c.png: cannot be read as an image; expected one of PNG"),
        (tmp_path, f"{tmp_path}: not a regular file"),
        (tmp_path / "d.png", f"{tmp_path}/d.png: cannot be read: No such file"),
    ):
        done = run(verb, model, "a text", "-i", pictures[0], "-i", path)
        assert done.code == 1
        assert said in done.err
        assert done.err.count("\n") == 1
