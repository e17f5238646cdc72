import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.small_gguf import small_imatrix, small_tensors, write_small_gguf

from nestling._util.files import sha256_file
from nestling.errors import UsageError
from nestling.formats.ggml import dequantize_rows, quantize_rows
from nestling.formats.gguf import Field, GGUFFile
from nestling.formats.quant_types import FILE_TYPES, QuantType
from nestling.pipeline.quantization import quantize as module
from nestling.pipeline.quantization.plan import Mix, parse_quant_type, parse_tensor_type, plan, plan_file
from nestling.pipeline.quantization.quantize import quantize, quantize_many

T = QuantType


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_gguf(tmp_path_factory.mktemp("quantize") / "source.gguf")


def test_blocks_are_ggmls_on_the_same_rows_with_the_same_matrix(source: Path, tmp_path: Path) -> None:
    matrix = small_imatrix()
    report = quantize(source, out=tmp_path / "out.gguf", mix=Mix("IQ3_M", imatrix=matrix))
    file = GGUFFile.open(tmp_path / "out.gguf")
    assert {kind for kind in report.types.values()} == {T.F32, T.IQ3_S, T.Q4_K, T.Q6_K}
    for name, rows in small_tensors().items():
        made = quantize_rows(np.atleast_2d(rows), report.types[name], matrix.importance(name))
        np.testing.assert_array_equal(file.raw(name), made, err_msg=name)


@pytest.mark.parametrize("threads", [1, 2, 3, None])
def test_any_number_of_threads_gives_the_same_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    whole = quantize(source, out=tmp_path / "whole.gguf", mix=Mix("Q4_K_M"), threads=1)
    monkeypatch.setattr(module, "PIECE_WEIGHTS", 1300)  # many pieces a tensor, the last one shorter
    pieces = quantize(source, out=tmp_path / "pieces.gguf", mix=Mix("q4_k_m"), threads=threads)
    assert pieces.sha256 == whole.sha256 == sha256_file(tmp_path / "pieces.gguf")
    assert (pieces.file_type, pieces.types, pieces.size_bytes) == ("Q4_K_M", whole.types, whole.size_bytes)


@pytest.mark.parametrize(
    "file_type", ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_S", "Q4_0", "IQ4_NL", "Q3_K_L", "Q2_K"]
)
@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16], ids=lambda kind: kind.name)
def test_any_float_file_is_a_source(kind: QuantType, file_type: str, tmp_path: Path) -> None:
    tensors = small_tensors(layers=1)
    source = write_small_gguf(tmp_path / "source.gguf", tensors=tensors, kind=kind)
    report = quantize(source, out=tmp_path / "out.gguf", mix=Mix(file_type))
    stored, made = GGUFFile.open(source), GGUFFile.open(tmp_path / "out.gguf")
    for name, info in stored.tensors.items():
        rows = dequantize_rows(stored.raw(name), info.kind)
        np.testing.assert_array_equal(made.raw(name), quantize_rows(rows, report.types[name]), err_msg=name)


# The other file types hold types that ggml needs seconds to prepare.
@pytest.mark.parametrize(
    "file_type", [name for name in FILE_TYPES if name[:3] not in ("IQ1", "IQ2") and name != "IQ3_XXS"]
)
def test_the_plan_is_exact(file_type: str, source: Path, tmp_path: Path) -> None:
    mix = Mix(file_type, imatrix=small_imatrix())
    made = plan_file(source, mix)
    report = quantize(source, out=tmp_path / "out.gguf", mix=mix)
    assert report.size_bytes == made.size_bytes == (tmp_path / "out.gguf").stat().st_size
    assert report.types == {tensor.name: tensor.kind for tensor in made.tensors}
    assert list(report.types) == list(small_tensors())
    stored = sum(tensor.size_bytes for tensor in GGUFFile.open(tmp_path / "out.gguf").tensors.values())
    weights = sum(values.size for values in small_tensors().values())
    assert report.bits_per_weight == made.bits_per_weight == 8 * stored / weights


def test_gguf_py_reads_the_file(source: Path, tmp_path: Path) -> None:
    report = quantize(source, out=tmp_path / "out.gguf", mix=Mix("Q5_K_M"))
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == {
        name: kind.name for name, kind in report.types.items()
    }
    first = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    np.testing.assert_allclose(
        gguf.quants.dequantize(first.data, first.tensor_type), small_tensors()[first.name], atol=0.01
    )


def test_metadata_is_the_sources_with_llama_quantizes_at_the_end(source: Path, tmp_path: Path) -> None:
    quantize(source, out=tmp_path / "out.gguf", mix=Mix("Q6_K", imatrix=small_imatrix()))
    before, after = GGUFFile.open(source).metadata, GGUFFile.open(tmp_path / "out.gguf").metadata
    del before["general.file_type"]
    assert list(after.items()) == [
        *before.items(),
        ("general.quantization_version", Field.uint32(2)),
        ("general.file_type", Field.uint32(18)),
        ("quantize.imatrix.file", Field.string("imatrix.gguf")),
        ("quantize.imatrix.dataset", Field.string("calibration.txt")),
        ("quantize.imatrix.entries_count", Field.uint32(14)),
        ("quantize.imatrix.chunks_count", Field.uint32(3)),
    ]


def test_several_files_in_one_pass_are_those_made_one_by_one(source: Path, tmp_path: Path) -> None:
    mixes = {
        "a.gguf": Mix("Q8_0"),
        "b.gguf": Mix("Q4_K_M", imatrix=small_imatrix()),
        "c.gguf": Mix("Q3_K_M", (("ffn_up", T.Q5_K),)),
        "d.gguf": Mix("F16"),
    }
    together = quantize_many(source, {tmp_path / name: mix for name, mix in mixes.items()}, threads=2)
    for report, (name, mix) in zip(together, mixes.items(), strict=True):
        alone = quantize(source, out=tmp_path / "alone.gguf", mix=mix)
        assert (report.path.name, report.sha256, report.types) == (name, alone.sha256, alone.types)
        assert report.sha256 == sha256_file(tmp_path / name)


def test_chosen_types_come_before_the_recipe_and_the_first_pattern_wins(source: Path) -> None:
    chosen = (parse_tensor_type(r"blk\.1\.ffn_down=q8_0"), parse_tensor_type("ffn_down=Q2_K"), ("attn_v", T.BF16))
    made = plan_file(source, Mix("Q4_K_S", chosen, token_embedding_type=T.Q8_0))
    kinds = {tensor.name: tensor.kind for tensor in made.tensors}
    assert kinds["blk.0.ffn_down.weight"] is T.Q2_K
    assert kinds["blk.1.ffn_down.weight"] is T.Q8_0
    assert kinds["blk.0.attn_v.weight"] is T.BF16
    assert kinds["token_embd.weight"] is T.Q8_0
    assert kinds["blk.0.attn_q.weight"] is T.Q4_K


def test_a_pattern_never_reaches_norms_and_biases(source: Path) -> None:
    made = plan_file(source, Mix("Q4_K_S", (("attn", T.Q6_K),)))
    kinds = {tensor.name: tensor.kind for tensor in made.tensors}
    assert kinds["blk.0.attn_norm.weight"] is kinds["blk.0.attn_q.bias"] is T.F32


def test_requantizing_happens_when_it_is_allowed(source: Path, tmp_path: Path) -> None:
    quantize(source, out=tmp_path / "q8.gguf", mix=Mix("Q8_0"))
    report = quantize(tmp_path / "q8.gguf", out=tmp_path / "q4.gguf", mix=Mix("Q4_K_S", allow_requantize=True))
    stored = GGUFFile.open(tmp_path / "q8.gguf")
    rows = dequantize_rows(stored.raw("blk.0.ffn_up.weight"), T.Q8_0)
    assert report.types["blk.0.ffn_up.weight"] is T.Q4_K
    np.testing.assert_array_equal(
        GGUFFile.open(tmp_path / "q4.gguf").raw("blk.0.ffn_up.weight"), quantize_rows(rows, T.Q4_K)
    )


def test_the_same_types_again_are_a_copy(source: Path, tmp_path: Path) -> None:
    once = quantize(source, out=tmp_path / "once.gguf", mix=Mix("Q4_K_M"))
    assert quantize(tmp_path / "once.gguf", out=tmp_path / "twice.gguf", mix=Mix("Q4_K_M")).sha256 == once.sha256


def test_a_second_quantizing_drops_the_fields_of_the_first_matrix(source: Path, tmp_path: Path) -> None:
    quantize(source, out=tmp_path / "once.gguf", mix=Mix("Q4_K_M", imatrix=small_imatrix()))
    made = plan(GGUFFile.open(tmp_path / "once.gguf"), Mix("Q4_K_M"))
    assert not [key for key in made.metadata if key.startswith("quantize.")]


def test_progress_counts_the_source(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_WEIGHTS", 3000)
    told: list[tuple[int, int]] = []
    quantize(source, out=tmp_path / "out.gguf", mix=Mix("Q8_0"), progress=lambda *counts: told.append(counts))
    total = sum(4 * values.size for values in small_tensors().values())
    done = [count for count, _total in told]
    assert {count for _done, count in told} == {total}
    assert done == sorted(set(done))
    assert done[-1] == total
    assert len(done) > len(small_tensors())


def test_a_forgotten_piece_leaves_memory_and_is_read_again(tmp_path: Path) -> None:
    source = write_small_gguf(tmp_path / "source.gguf", tensors=small_tensors(layers=1, rows=500))
    file = GGUFFile.open(source)
    raw = file.raw("blk.0.ffn_up.weight")
    before = raw.copy()
    resident = _resident_kib(source)
    file.forget(raw)
    freed = resident - _resident_kib(source)
    np.testing.assert_array_equal(raw, before)
    assert freed >= raw.nbytes // 1024 - 8  # all but the pages at its edges


def _resident_kib(path: Path) -> int:
    """Resident memory of the file's mapping, in KiB, as Linux counts it."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("needs Linux's /proc/self/smaps")
    own = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", smaps.read_text())
    return sum(map(int, own))


@pytest.mark.parametrize("text", ["ffn_down", "=Q4_K", "ffn_down=", "ffn_down=Q4_K_M", ""])
def test_a_tensor_type_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tensor_type(text)
    assert caught.value.param == "tensor_type"


def test_a_pattern_may_hold_an_equals_sign() -> None:
    assert parse_tensor_type("a(?=b)=iq4_xs") == ("a(?=b)", T.IQ4_XS)


def test_an_unknown_type_names_the_parameter() -> None:
    with pytest.raises(UsageError, match="token_embedding_type='Q9'"):
        parse_quant_type("Q9", param="token_embedding_type")
