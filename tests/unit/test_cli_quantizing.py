import json
import shutil
from pathlib import Path

import pytest
from tests.command_line import nestling

from nestling._util.files import sha256_file
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.imatrix import ImportanceMatrix
from nestling.pipeline.quantization.search import search
from nestling.pipeline.quantization.search.recipe_file import MixRecipe

T = QuantType


@pytest.fixture(scope="module")
def folder(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a calibration text and their matrix."""
    folder = tmp_path_factory.mktemp("quantizing")
    shutil.copy(tiny_models["F16"], folder / "model.gguf")
    words = [f"Paragraph {number}: the folder is locked while it is built." for number in range(100)]
    (folder / "words.txt").write_text("\n\n".join(words))
    command = ("imatrix", folder / "model.gguf", "--calibration", folder / "words.txt", "--threads", "1")
    done = nestling(*command, "--out", folder / "m.gguf", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["sha256"] == sha256_file(folder / "m.gguf")
    assert (facts["entries"], facts["chunks"] > 5) == (14, True)
    return folder


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that ggml needs no time to prepare, and few texts."""
    monkeypatch.setattr(search, "CANDIDATES", (T.Q8_0, T.Q6_K, T.Q4_K, T.Q2_K))
    monkeypatch.setattr(search, "PROBE", T.Q4_K)
    monkeypatch.setattr(search, "TEXTS", 8)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_fewer_chunks_can_be_asked_for(folder: Path, tmp_path: Path, engine: str) -> None:
    command = (
        "imatrix",
        folder / "model.gguf",
        "--calibration",
        folder / "words.txt",
        "--chunks",
        "3",
        "--threads",
        "1",
    )
    done = nestling(*command, "--engine", engine, "--device", "cpu", "--out", tmp_path / "m.gguf")
    assert (done.code, "over 3 chunks" in done.out) == (0, True)
    assert ImportanceMatrix.read(tmp_path / "m.gguf").chunk_count == 3


def test_a_file_type_with_a_matrix_and_exceptions(folder: Path, tmp_path: Path) -> None:
    done = nestling(
        "quantize", folder / "model.gguf", "q4_k_m", "--out", tmp_path / "x.gguf", "--imatrix", folder / "m.gguf",
        "--tensor-type", r"blk\.1\.ffn_up=q8_0", "--tensor-type", "ffn_up=Q5_K", "--token-embedding-type", "Q3_K",
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    file = GGUFFile.open(tmp_path / "x.gguf")
    kinds = {name: info.kind for name, info in file.tensors.items()}
    assert (kinds["blk.1.ffn_up.weight"], kinds["blk.0.ffn_up.weight"]) == (T.Q8_0, T.Q5_K)
    assert kinds["token_embd.weight"] is T.Q3_K
    assert file.value("quantize.imatrix.file") == "m.gguf"


def test_a_dry_run_is_exact_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    before = sorted(folder.iterdir())
    shown = json.loads(nestling("quantize", folder / "model.gguf", "Q5_K_M", "--dry-run", "--json").out)
    table = nestling("quantize", folder / "model.gguf", "Q5_K_M", "--dry-run").out
    assert sorted(folder.iterdir()) == before
    made = json.loads(nestling("quantize", folder / "model.gguf", "Q5_K_M", "--out", tmp_path / "x.gguf", "--json").out)
    assert shown["size_bytes"] == made["size_bytes"] == (tmp_path / "x.gguf").stat().st_size
    assert shown["bits_per_weight"] == made["bits_per_weight"]
    assert f"{made['size_bytes']:,} bytes" in table
    assert all(one["name"] in table for one in shown["tensors"])


@pytest.mark.usefixtures("cheap")
def test_a_mix_is_chosen_written_and_reapplied_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    options = ("--imatrix", folder / "m.gguf")
    done = nestling(
        "quantize", folder / "model.gguf", "--target-bpw", "4.2", *options, "--calibration", folder / "words.txt",
        "--keep-embedding", "Q6_K", "--trials", "3", "--recipe-out", tmp_path / "mix.json",
        "--out", tmp_path / "a.gguf",
        "--threads", "1", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert 4.0 < json.loads(done.out)["bits_per_weight"] <= 4.2
    recipe = MixRecipe.read(tmp_path / "mix.json")
    assert recipe.types["token_embd.weight"] is T.Q6_K
    again = nestling(
        "quantize", folder / "model.gguf", "--recipe", tmp_path / "mix.json", *options, "--out", tmp_path / "b.gguf"
    )
    assert again.code == 0, again.err
    assert sha256_file(tmp_path / "a.gguf") == sha256_file(tmp_path / "b.gguf")


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ([], 2, "quant: expected exactly one of a file type, --target-bpw, --target-size, --recipe"),
        (["Q8_0", "--target-bpw", "4"], 2, "--recipe, found a file type and --target-bpw"),
        (["--target-bpw", "4", "--target-size", "9000000"], 2, "found --target-bpw and --target-size"),
        (["--target-bpw", "4"], 2, "choosing a mix needs an importance matrix: --imatrix FILE"),
        (["--target-bpw", "1", "--imatrix", "MATRIX"], 1, "target_bpw=1.0: expected at least 2."),
        (["--target-size", "99", "--imatrix", "MATRIX"], 1, "target_size=99: expected at least"),
        (["--target-bpw", "4", "--imatrix", "MATRIX", "--keep-embedding", "IQ1_S"], 2, "keep_embedding=IQ1_S"),
        (["--target-bpw", "4", "--tensor-type", "a=Q4_K"], 2, "tensor_type: expected only with a file type"),
        (["Q4_K_M", "--recipe-out", "x.json"], 2, "recipe_out: expected only with --target-bpw or --target-size"),
        (["Q4_K_M", "--keep-embedding", "Q6_K"], 2, "keep_embedding: expected only with"),
        (["Q4_K_M", "--tensor-type", "ffn_up"], 2, "expected PATTERN=TYPE"),
        (["Q4_K_M", "--tensor-type", "ffn_dwon=Q4_K"], 2, "expected a match in one of"),
        (["Q4_K_M", "--token-embedding-type", "Q9"], 2, "token_embedding_type='Q9'"),
        (["Q4_K_M", "--imatrix", "MODEL"], 1, "not an importance matrix"),
        (["--recipe", "MODEL"], 1, "not a mix recipe"),
    ],
)
def test_what_cannot_be_quantized_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, arguments: list[str], code: int, part: str
) -> None:
    places = {"MATRIX": str(folder / "m.gguf"), "MODEL": str(folder / "model.gguf")}
    given = [places.get(argument, argument) for argument in arguments]
    if "--target-bpw" in given or "--target-size" in given:
        given += ["--calibration", str(folder / "words.txt")]
    done = nestling("quantize", folder / "model.gguf", *given, "--out", tmp_path / "x.gguf", "--threads", "1")
    assert (done.code, done.raw) == (code, b"")
    assert part in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--target-bpw", "inf"], 2, "target_bpw=inf: expected a number above 0"),
        (["--target-bpw", "nan"], 2, "target_bpw=nan: expected a number above 0"),
        (["--target-bpw", "0"], 2, "target_bpw=0.0: expected a number above 0"),
        (["--target-bpw=-4"], 2, "target_bpw=-4.0: expected a number above 0"),
        (["--target-bpw", "0.1"], 1, "target_bpw=0.1: expected at least"),
        (["--target-size", "0"], 2, "target_size=0: expected a number above 0"),
        (["--target-size", "99"], 1, "target_size=99: expected at least"),
        (["--target-bpw", "4", "--keep-embedding", "IQ1_S"], 2, "keep_embedding=IQ1_S"),
        (["--target-bpw", "4", "--recipe-out", "FOLDER"], 2, "this is a folder"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, part: str
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("measured in vain")

    monkeypatch.setattr(search, "PerturbationProbe", measured)
    given = [str(folder) if word == "FOLDER" else word for word in arguments]
    done = nestling(
        "quantize", folder / "model.gguf", *given, "--imatrix", folder / "m.gguf", "--out", tmp_path / "x.gguf"
    )
    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert part in done.err


def test_a_file_to_write_is_needed(folder: Path) -> None:
    done = nestling("quantize", folder / "model.gguf", "Q8_0")
    assert (done.code, done.err) == (2, "nestling: out: expected --out FILE or --dry-run\n")


def test_requantizing_is_asked_for(folder: Path, tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    refused = nestling("quantize", tiny_models["Q8_0"], "Q4_K_S", "--out", tmp_path / "x.gguf")
    assert (refused.code, "allow_requantize" in refused.err) == (1, True)
    done = nestling("quantize", tiny_models["Q8_0"], "Q4_K_S", "--out", tmp_path / "x.gguf", "--allow-requantize")
    assert (done.code, (tmp_path / "x.gguf").exists()) == (0, True)


@pytest.mark.parametrize("words", ["", "One line, and no more.\n"])
def test_an_empty_or_one_line_calibration_is_refused(folder: Path, tmp_path: Path, words: str) -> None:
    (tmp_path / "w.txt").write_text(words)
    done = nestling("imatrix", folder / "model.gguf", "--calibration", tmp_path / "w.txt", "--out", tmp_path / "m.gguf")
    assert (done.code, done.raw) == (1, b"")
    assert "at least 1024 are needed" in done.err
    assert not (tmp_path / "m.gguf").exists()
