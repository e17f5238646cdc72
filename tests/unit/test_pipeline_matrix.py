import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nestling._util.files import sha256_file
from nestling._util.progress import Progress
from nestling.errors import BuildError
from nestling.formats.card import SUMS, Card
from nestling.formats.gguf import GGUFFile
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import BuiltFile, Pipeline
from nestling.pipeline.quantization.file_types import is_quantizable
from nestling.pipeline.quantization.imatrix import ColumnSums, ImportanceMatrix
from nestling.pipeline.quantization.kept_imatrix import CollectMatrix, matrix_path
from nestling.spec import Task

KINDS = ["Q8_0", "Q4_K_M", "Q3_K_S", "F32", "Q6_K", "Q5_K_S", "Q4_0"]
HELPED = ["Q4_K_M", "Q3_K_S", "Q6_K", "Q5_K_S", "Q4_0"]


class Collect:
    """Makes a matrix that depends on the file and a text; counts how often it was asked."""

    def __init__(self, text: str = "a") -> None:
        self.asked: list[str] = []
        self.text = text

    def __call__(self, model: Path, progress: Progress) -> ImportanceMatrix:
        self.asked.append(model.name)
        progress(1, 1)
        rng = np.random.default_rng([int(sha256_file(model)[:8], 16), ord(self.text)])
        entries = {
            name: ColumnSums((rng.random(info.shape[-1]) + 0.1).astype(np.float32), 7)
            for name, info in GGUFFile.open(model).tensors.items()
            if is_quantizable(name, info.shape) and name.startswith("blk.")
        }
        return ImportanceMatrix(entries, ("text.txt",), 7, 512)


def build(
    checkpoint: Path, folder: Path, collect: Collect, *, kinds: list[str] = KINDS, told: Progress | None = None
) -> list[BuiltFile]:
    def steps(_name: str) -> Progress:
        return told or (lambda _done, _total: None)

    pipeline = Pipeline(
        Checkpoint.open(checkpoint), folder, "small", 1, steps, CollectMatrix(collect, f"sha of {collect.text}")
    )
    return pipeline.build([Task.CODE], kinds)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fresh(files: list[BuiltFile]) -> list[str]:
    return [file.card.file_type for file in files if file.fresh]


@pytest.fixture(scope="module")
def undisturbed(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    build(small_checkpoint, folder, Collect())
    return folder


@pytest.fixture
def built(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "built"))


def test_one_matrix_a_task_from_the_float16_file(small_checkpoint: Path, tmp_path: Path) -> None:
    collect = Collect()
    files = build(small_checkpoint, tmp_path, collect)
    assert collect.asked == ["small-text-code-F16.gguf"]
    assert [file.card.file_type for file in files] == ["F16", *KINDS]
    path = matrix_path(tmp_path, Task.CODE)
    assert path.name == "imatrix-code.gguf"
    for file in files:
        helped = file.card.file_type in HELPED
        assert file.card.imatrix == (sha256_file(path) if helped else "")
        metadata = GGUFFile.open(file.path).metadata
        assert ("quantize.imatrix.file" in metadata) is helped
        assert not helped or metadata["quantize.imatrix.file"].value == path.name
    assert path.name not in (tmp_path / SUMS).read_text()


def test_the_matrix_makes_other_blocks(small_checkpoint: Path, undisturbed: Path, tmp_path: Path) -> None:
    Pipeline(Checkpoint.open(small_checkpoint), tmp_path, "small", 1).build([Task.CODE], ["Q8_0", "Q4_K_M"])
    same = {
        kind: GGUFFile.open(tmp_path / name).raw("blk.0.ffn_up.weight").tobytes()
        == GGUFFile.open(undisturbed / name).raw("blk.0.ffn_up.weight").tobytes()
        for kind in ("Q8_0", "Q4_K_M")
        if (name := f"small-text-code-{kind}.gguf")
    }
    assert same == {"Q8_0": True, "Q4_K_M": False}


def test_no_matrix_is_made_for_types_that_ignore_it(small_checkpoint: Path, tmp_path: Path) -> None:
    collect = Collect()
    build(small_checkpoint, tmp_path, collect, kinds=["Q8_0", "F16", "BF16", "F32"])
    assert collect.asked == []
    assert not matrix_path(tmp_path, Task.CODE).exists()


def test_the_worst_tensor_is_on_the_card(undisturbed: Path) -> None:
    worst = {kind: Card.read(undisturbed / f"small-text-code-{kind}.gguf") for kind in ("F16", "Q8_0", "Q3_K_S")}
    assert worst["F16"]
    assert worst["Q8_0"]
    assert worst["Q3_K_S"]
    assert (worst["F16"].worst_tensor, worst["F16"].worst_error) == ("", 0.0)
    assert 0 < worst["Q8_0"].worst_error < 1e-4 < worst["Q3_K_S"].worst_error < 0.1
    assert worst["Q3_K_S"].worst_tensor.endswith(".weight")


def test_a_rerun_makes_nothing(small_checkpoint: Path, built: Path) -> None:
    collect, before = Collect(), contents(built)
    assert fresh(build(small_checkpoint, built, collect)) == []
    assert (collect.asked, contents(built)) == ([], before)


def flip(path: Path) -> None:
    place = GGUFFile.open(path).tensors["blk.0.attn_q.weight.in_sum2"].offset
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def flip_padding(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flip, flip_padding, cut, empty, Path.unlink])
def test_a_spoilt_matrix_is_made_again_and_the_files_kept(
    small_checkpoint: Path, built: Path, spoil: Callable[[Path], None]
) -> None:
    collect, before = Collect(), contents(built)
    spoil(matrix_path(built, Task.CODE))
    assert fresh(build(small_checkpoint, built, collect)) == []
    assert len(collect.asked) == (spoil is not flip_padding)
    assert contents(built) == before


def test_another_text_makes_the_helped_files_anew(small_checkpoint: Path, built: Path) -> None:
    assert fresh(build(small_checkpoint, built, Collect("b"))) == HELPED


def test_files_made_without_a_matrix_are_made_anew_with_one(
    small_checkpoint: Path, undisturbed: Path, tmp_path: Path
) -> None:
    Pipeline(Checkpoint.open(small_checkpoint), tmp_path, "small", 1).build([Task.CODE], KINDS)
    assert fresh(build(small_checkpoint, tmp_path, Collect())) == HELPED
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.parametrize("moment", range(1, 60, 6))
def test_an_interrupt_at_any_moment_and_the_rerun_gives_the_same_bytes(
    small_checkpoint: Path, undisturbed: Path, tmp_path: Path, moment: int
) -> None:
    calls = 0

    def told(_done: int, _total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small_checkpoint, tmp_path, Collect(), told=told)
    assert not list(tmp_path.glob("*.part"))
    build(small_checkpoint, tmp_path, Collect())
    assert contents(tmp_path) == contents(undisturbed)


def test_what_the_collection_refuses_stops_the_build_and_keeps_what_was_made(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    def refuse(_model: Path, _progress: Progress) -> ImportanceMatrix:
        raise BuildError("little.txt: 3 tokens of calibration text; at least 1024 are needed")

    pipeline = Pipeline(Checkpoint.open(small_checkpoint), tmp_path, "small", 1, collect=CollectMatrix(refuse, "sha"))
    with pytest.raises(BuildError, match=r"little\.txt"):
        pipeline.build([Task.CODE], ["Q4_K_M"])
    kept = ["small-text-code-F16.gguf", "small-text-code-multivector.gguf"]
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == kept
