"""What is no file yet, or only a piece of one, is said in one line at every door.

A Git LFS pointer: model, adapter, head and matrix (GGUF), weights (safetensors), tokenizer.json, config.json, a
specification, calibration text, images, the sources of `bulk` (compressed ones too). A piece of a split GGUF: quantize,
embed, show, verify, imatrix; `inspect` shows it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import tiny_gguf
from tests.command_line import nestling

from nestling.errors import ImageError, NestlingError
from nestling.formats.gguf import Field, GGUFFile, write_gguf
from nestling.formats.gguf.fields import ValueKind
from nestling.formats.safetensors import read_header
from nestling.inputs.image import read_all
from nestling.models.families import read_spec
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.tokenizer_fields import tokenizer_fields

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.mark.parametrize(
    "door",
    [GGUFFile.open, read_header, read_spec, lambda path: tokenizer_fields(path, vocab_size=9)],
    ids=["gguf", "safetensors", "spec", "tokenizer"],
)
def test_a_pointer_is_called_one(tmp_path: Path, door: Callable[[Path], object]) -> None:
    (tmp_path / "x").write_bytes(POINTER)
    with pytest.raises(NestlingError, match=r"x: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"):
        door(tmp_path / "x")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "adapters/adapter_model.safetensors"]
)
def test_a_checkpoint_of_pointers(small_checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(small_checkpoint, tmp_path / "checkpoint")
    (folder / name).write_bytes(POINTER)
    out = tmp_path / "out.gguf"
    done = nestling("convert", folder, "--task", "code", "--family", "s", "--out", out)
    assert (done.code, done.err.count("\n"), out.exists()) == (1, 1, False)
    assert f"{folder / name}: a Git LFS pointer" in done.err


def test_a_calibration_text_of_a_pointer(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(POINTER)
    done = nestling("imatrix", tiny_models["F32"], "--calibration", tmp_path / "x.txt", "--out", tmp_path / "i.gguf")
    assert done.code != 0
    assert "x.txt: a Git LFS pointer" in done.err


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.csv", "x.jsonl.gz", "x.csv.zst"])
def test_a_source_of_bulk_that_is_a_pointer(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    done = nestling("bulk", tmp_path / name, "--model", tiny_models["F32"], "--out", tmp_path / "out")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"{name}: a Git LFS pointer" in done.err


def test_an_image_that_is_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(POINTER)
    with pytest.raises(ImageError, match=r"^input 0: cannot be read as an image: this is a Git LFS pointer"):
        list(read_all([tmp_path / "x.png"]))


@pytest.fixture
def piece(tmp_path: Path) -> Path:
    """The first of two files, as llama-gguf-split writes it: all fields, half of the tensors."""
    split = {
        "split.no": Field(ValueKind.UINT16, 0),
        "split.count": Field(ValueKind.UINT16, 2),
        "split.tensors.count": Field(ValueKind.INT32, len(tiny_gguf.shapes())),
    }
    write_gguf(tmp_path / "m-00001-of-00002.gguf", tiny_gguf.metadata("F32") | split, [])
    return tmp_path / "m-00001-of-00002.gguf"


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "PIECE", "Q8_0", "--out", "OUT"],
        ["imatrix", "PIECE", "--out", "OUT"],
        ["embed", "hi", "--model", "PIECE"],
        ["show", "PIECE"],
        ["verify", "PIECE"],
        ["serve", "--model", "PIECE", "--port", "0"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_piece_of_a_model_is_refused(piece: Path, tmp_path: Path, arguments: list[str]) -> None:
    places = {"PIECE": piece, "OUT": tmp_path / "out.gguf"}
    done = nestling(*(places.get(word, word) for word in arguments))
    assert done.code != 0
    said = " ".join((done.out + done.err).split())
    assert "piece 1 of 2 of a split model; merge them with `llama-gguf-split --merge" in said
    assert not (tmp_path / "out.gguf").exists()


def test_inspect_shows_a_piece(piece: Path) -> None:
    done = nestling("inspect", piece)
    assert (done.code, "split.count" in done.out) == (0, True)
    assert "piece 1 of 2 of a split model" in done.err


def test_a_model_split_into_one_is_whole(tmp_path: Path) -> None:
    fields = {"split.no": Field(ValueKind.UINT16, 0), "split.count": Field(ValueKind.UINT16, 1)}
    write_gguf(tmp_path / "m.gguf", tiny_gguf.metadata("F32") | fields, [])
    assert not GGUFFile.open(tmp_path / "m.gguf").piece


def test_heads_of_a_base_are_made_once(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nestling.pipeline import pipeline

    made: list[object] = []
    checked = pipeline.Pipeline._projector

    def counted(self: pipeline.Pipeline, task: object) -> object:
        made.append(task)
        return checked(self, task)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline.Pipeline, "_projector", counted)
    pipeline.Pipeline(Checkpoint.open(small_checkpoint), tmp_path, "s", 1).build_base(["F16"])
    assert len(made) == len(set(made)) == 3
