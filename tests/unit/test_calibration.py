import re
from pathlib import Path

import numpy as np
import pytest
from tests import tiny_gguf

from nestling._util.files import sha256_file
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.names import EngineName
from nestling.engine.numpy_reference import rms_norm
from nestling.engine.observers import ObserverOptions
from nestling.engine.protocol import TokenIds
from nestling.engine.weights import tensor
from nestling.errors import BuildError, NestlingError
from nestling.evaluation import data
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.pipeline.quantization import calibration as calibrating
from nestling.pipeline.quantization.calibration import CHUNK_TOKENS, Calibration, collect, default_text
from nestling.pipeline.quantization.imatrix import ImportanceMatrix
from nestling.vectors import Floats

ONE_THREAD = ObserverOptions(threads=1)
LINE = "The lock is held while the folder is built, and a killed holder loses it.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(LINE * 3 + f"Paragraph {number}.\n" for number in range(20)))
    return path


def calibration(model: Path, text: Path) -> Calibration:
    return Calibration(tiny_gguf.spec(), Tokenizer.from_gguf(GGUFFile.open(model)), text)


def test_chunks_begin_with_a_prefix_in_turn_and_hold_the_whole_text(tiny_models: dict[str, Path], text: Path) -> None:
    it = calibration(tiny_models["F32"], text)
    chunks = it.chunks()
    assert {len(chunk) for chunk in chunks[:-1]} == {CHUNK_TOKENS}
    words = [it.tokenizer.decode(chunk) for chunk in chunks]
    prefixes = ["Query: ", "Passage: "]
    assert [word.startswith(prefixes[place % 2]) for place, word in enumerate(words)] == [True] * len(words)
    rest = "".join(word.removeprefix(prefixes[place % 2]) for place, word in enumerate(words))
    whole = text.read_text()
    assert whole.startswith(rest)
    assert len(it.tokenizer.encode([whole[len(rest) :]])[0]) < CHUNK_TOKENS // 2
    assert len(it.chunks(2)) == 2


def test_paragraphs_come_from_all_over_the_text(tiny_models: dict[str, Path], text: Path) -> None:
    it = calibration(tiny_models["F32"], text)
    found = [it.tokenizer.decode(ids) for ids in it.texts(4, longest=1000)]
    assert [int(re.findall(r"Paragraph (\d+)", one)[0]) for one in found] == [0, 5, 10, 15]
    assert [one.split(":")[0] for one in found] == ["Query", "Passage"] * 2
    halves = [[it.tokenizer.decode(ids) for ids in it.texts(4, longest=1000, half=half)] for half in (0, 1)]
    numbers = [[int(re.findall(r"Paragraph (\d+)", one)[0]) for one in half] for half in halves]
    assert max(numbers[0]) < 10 <= min(numbers[1])
    assert {len(ids) for ids in it.texts(4, longest=50)} == {50}
    with pytest.raises(BuildError, match="20 paragraphs; 21 are needed"):
        it.texts(21, longest=50)


def test_the_matrix_is_the_mean_square_of_what_the_reference_engine_multiplies(
    tiny_models: dict[str, Path], text: Path
) -> None:
    matrix = collect(tiny_models["F32"], spec=tiny_gguf.spec(), text=text, on=ONE_THREAD)
    file = GGUFFile.open(tiny_models["F32"])
    chunks = calibration(tiny_models["F32"], text).chunks()
    shape, norm = Hyperparameters.of(file), tensor(file, "blk.0.attn_norm.weight")
    rows = np.concatenate([rms_norm(_embedded(file, ids), norm, shape.rms_eps) for ids in chunks])
    entry = matrix.entries["blk.0.attn_q.weight"]
    assert entry.count == len(rows) == sum(map(len, chunks))
    np.testing.assert_allclose(entry.mean_square, (rows.astype(np.float64) ** 2).mean(0), rtol=1e-4)  # float32 sums
    assert entry.mean_square.tolist() == matrix.entries["blk.0.attn_v.weight"].mean_square.tolist()
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (len(chunks), 512, ("words.txt",))
    matrix.check_covers({name: info.shape for name, info in file.tensors.items()})


def _embedded(file: GGUFFile, ids: TokenIds) -> Floats:
    rows: Floats = file.raw("token_embd.weight").view(np.float32)[ids]
    return rows


def test_the_same_text_gives_the_same_bytes(tiny_models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    made = [collect(tiny_models["F16"], spec=tiny_gguf.spec(), text=text, on=ONE_THREAD) for _ in range(2)]
    assert made[0].write(tmp_path / "a.gguf") == made[1].write(tmp_path / "b.gguf")
    assert ImportanceMatrix.read(tmp_path / "a.gguf").chunk_count == made[0].chunk_count


def test_torch_observes_the_same(tiny_models: dict[str, Path], text: Path) -> None:
    """Float32 sums in another order; a GPU that is named or expected is never replaced by the processor."""
    ours = collect(tiny_models["F32"], spec=tiny_gguf.spec(), text=text, on=ObserverOptions(EngineName.TORCH, "cpu", 1))
    theirs = collect(tiny_models["F32"], spec=tiny_gguf.spec(), text=text, on=ONE_THREAD)
    assert ours.entries.keys() == theirs.entries.keys()
    for name, entry in ours.entries.items():
        assert entry.count == theirs.entries[name].count
        np.testing.assert_allclose(entry.mean_square, theirs.entries[name].mean_square, rtol=1e-4)


@pytest.mark.parametrize(
    ("on", "said"),
    [
        (ObserverOptions(EngineName.TORCH), "no GPU: "),
        (ObserverOptions(device="cuda:0"), "device='cuda:0': "),
        (ObserverOptions(EngineName.OPENVINO, "cuda"), "the openvino engine runs on the cpu"),
        (ObserverOptions(EngineName.LLAMACPP), "engine='llamacpp': expected one of auto, openvino, torch"),
        (ObserverOptions(EngineName.REFERENCE), "engine='reference': expected one of auto, openvino, torch"),
    ],
)
def test_where_a_file_cannot_be_observed(
    tiny_models: dict[str, Path], text: Path, on: ObserverOptions, said: str
) -> None:
    with pytest.raises(NestlingError, match=re.escape(said)):
        collect(tiny_models["F32"], spec=tiny_gguf.spec(), text=text, on=on)


def test_progress_counts_tokens(tiny_models: dict[str, Path], text: Path) -> None:
    told: list[tuple[int, int]] = []
    collect(tiny_models["F16"], spec=tiny_gguf.spec(), text=text, on=ONE_THREAD, progress=lambda *one: told.append(one))
    assert told[-1][0] == told[-1][1] == sum(map(len, calibration(tiny_models["F16"], text).chunks()))


@pytest.mark.parametrize("words", ["", "One line of text, and no more.\n"])
def test_too_little_text_is_refused(tiny_models: dict[str, Path], tmp_path: Path, words: str) -> None:
    path = tmp_path / "little.txt"
    path.write_text(words)
    with pytest.raises(BuildError, match=r"little\.txt: \d+ tokens of calibration text; at least 1024 are needed"):
        collect(tiny_models["F32"], spec=tiny_gguf.spec(), text=path, on=ONE_THREAD)


def test_a_file_that_is_no_text_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"abc\xff")
    with pytest.raises(BuildError, match=r"x\.txt: line 1 is not UTF-8"):
        collect(tiny_models["F32"], spec=tiny_gguf.spec(), text=tmp_path / "x.txt", on=ONE_THREAD)


def test_a_quantized_model_is_refused(tiny_models: dict[str, Path], text: Path) -> None:
    with pytest.raises(BuildError, match=r"token_embd\.weight is Q8_0; collect the matrix with the F32, F16 or BF16"):
        collect(tiny_models["Q8_0"], spec=tiny_gguf.spec(), text=text, on=ONE_THREAD)


def test_a_pipelines_matrix_is_that_of_the_files_own_spec(
    tiny_models: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    made = calibrating.for_pipeline(threads=1, text=text)
    assert made.calibration == f"{sha256_file(text)} {calibrating.BUILD_CHUNKS}"
    matrix = made.run(tiny_models["F32"], lambda _done, _total: None)
    other = collect(tiny_models["F32"], spec=tiny_gguf.spec(), text=text, on=ONE_THREAD)
    assert matrix.write(tmp_path / "a.gguf") == other.write(tmp_path / "b.gguf")


# The text in the package.


def _normalised(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


def test_the_packages_text_holds_no_benchmark_text() -> None:
    paragraphs = default_text().read_text("utf-8").split("\n\n")
    pieces = [*paragraphs, *(line for part in paragraphs for line in part.split("\n"))]
    keys = {_normalised(piece) for piece in pieces}
    starts = {key[:80] for key in keys}
    for name in data.SHIPPED:
        one = data.load(name)
        assert isinstance(one, data.RetrievalSet)
        for text in (*one.documents, *one.queries):
            key = _normalised(text)
            assert key not in keys, text
            assert len(key) < 60 or key[:80] not in starts, text


def test_the_packages_text_is_of_many_kinds_and_long_enough() -> None:
    text = default_text().read_text("utf-8")
    assert 300_000 < len(text.encode()) < 700_000
    for kind in ("def ", "文件", "ファイル", "файл", "der ", "les ", "los "):
        assert text.count(kind) > 20, kind
    assert "\r" not in text
