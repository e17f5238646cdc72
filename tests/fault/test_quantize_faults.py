"""What quantizing refuses: each in one line that names the tensor or parameter, and nothing half-written."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.small_gguf import small_imatrix, small_tensors, write_small_gguf

from nestling.errors import BuildError, GGUFError, NestlingError, UsageError
from nestling.formats.gguf import Field, GGUFWriter, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.imatrix import ColumnSums, ImportanceMatrix
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize, quantize_many

T = QuantType
Tensors = dict[str, NDArray[np.float32]]


def refuse(source: Path, mix: Mix, error: type[NestlingError], match: str, **options: Any) -> None:
    """The mix must be refused in one line, leaving no file beside the source."""
    folder = source.parent / "out"
    folder.mkdir()
    with pytest.raises(error, match=match) as caught:
        quantize(source, out=folder / "out.gguf", mix=mix, **options)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("file_type", ["Q8_0", "F32"])
def test_nan_and_infinity_are_named(bad: float, kind: QuantType, file_type: str, tmp_path: Path) -> None:
    tensors = small_tensors(layers=1)
    tensors["blk.0.ffn_down.weight"][17, 3] = bad
    source = write_small_gguf(tmp_path / "source.gguf", tensors=tensors, kind=kind)
    refuse(source, Mix(file_type), BuildError, r"source\.gguf: blk\.0\.ffn_down\.weight: row 17 holds NaN or infinity")


def test_nan_in_a_norm_is_named(tmp_path: Path) -> None:
    tensors = small_tensors(layers=1)
    tensors["output_norm.weight"][0] = np.nan
    refuse(
        write_small_gguf(tmp_path / "s.gguf", tensors=tensors), Mix("Q8_0"), BuildError, r"output_norm\.weight: row 0"
    )


@pytest.mark.parametrize("value", [65520.0, -7e4])
def test_overflow_in_f16_is_named(value: float, tmp_path: Path) -> None:
    tensors = small_tensors(layers=1)
    tensors["blk.0.attn_k.weight"][1, 1] = value
    source = write_small_gguf(tmp_path / "s.gguf", tensors=tensors)
    refuse(source, Mix("F16"), BuildError, r"blk\.0\.attn_k\.weight: \d+ overflows F16 .*choose BF16 or F32")


def test_the_largest_float16_still_fits(tmp_path: Path) -> None:
    tensors = small_tensors(layers=1)
    tensors["blk.0.attn_k.weight"][1, 1] = 65504
    source = write_small_gguf(tmp_path / "s.gguf", tensors=tensors)
    quantize(source, out=tmp_path / "out.gguf", mix=Mix("F16"))


def test_a_scale_that_overflows_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = small_tensors(layers=1)
    tensors["blk.0.attn_k.weight"][1, 1] = 1e9
    source = write_small_gguf(tmp_path / "s.gguf", tensors=tensors)
    refuse(source, Mix("Q4_K_M"), BuildError, r"blk\.0\.attn_k\.weight: .* overflow Q4_K")
    capfd.readouterr()  # ggml prints a line of its own


@pytest.mark.parametrize(
    "file_type", ["IQ3_XXS", "IQ3_XS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"]
)
def test_types_that_need_a_matrix_are_refused_without_one(file_type: str, tmp_path: Path) -> None:
    source = write_small_gguf(tmp_path / "s.gguf", tensors=small_tensors(layers=2))
    refuse(
        source,
        Mix(file_type),
        BuildError,
        rf"blk\.\d\.\w+\.weight: \w+ in a {file_type} file needs an importance matrix",
    )


def test_an_embedding_type_that_needs_a_matrix_is_refused_when_the_matrix_lacks_it(tmp_path: Path) -> None:
    mix = Mix("Q4_K_M", token_embedding_type=T.IQ2_XXS, imatrix=small_imatrix())
    refuse(
        write_small_gguf(tmp_path / "s.gguf"), mix, BuildError, r"token_embd\.weight: IQ2_XXS .* needs an importance"
    )


def without(name: str) -> ImportanceMatrix:
    matrix = small_imatrix()
    return ImportanceMatrix(
        {key: entry for key, entry in matrix.entries.items() if name not in key}, (), 1, 512, "m.gguf"
    )


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        (without("blk.1.ffn_up"), r"m\.gguf: no entry for blk\.1\.ffn_up\.weight; collect a matrix with this model"),
        (without("ffn"), r"m\.gguf: no entry for blk\.0\.ffn_gate\.weight and 5 more"),
        (
            small_imatrix(small_tensors(layers=3)),
            r"the model has no blk\.2\.\w+\.weight and 6 more; .* another model's",
        ),
        (
            small_imatrix(small_tensors(width=512)),
            r"attn_q\.weight has 512 columns: expected the model's 256; .* another model's",
        ),
    ],
)
def test_a_matrix_of_another_model_is_refused(matrix: ImportanceMatrix, match: str, tmp_path: Path) -> None:
    refuse(write_small_gguf(tmp_path / "s.gguf"), Mix("Q4_K_M", imatrix=matrix), BuildError, match)


@pytest.mark.parametrize(
    ("mix", "match"),
    [
        (Mix("Q9_K"), "quant='Q9_K': expected one of F32"),
        (
            Mix("Q4_K_M", (("ffn_dwon", T.Q6_K),)),
            r"tensor_type='ffn_dwon': expected a match in one of token_embd\.weight",
        ),
        (Mix("Q4_K_M", (("attn_norm", T.Q6_K),)), "tensor_type='attn_norm': expected a match"),
        (Mix("Q4_K_M", (("ffn_(", T.Q6_K),)), "tensor_type='ffn_\\(': not a regular expression"),
    ],
)
def test_unknown_types_and_patterns_are_refused(mix: Mix, match: str, tmp_path: Path) -> None:
    refuse(write_small_gguf(tmp_path / "s.gguf"), mix, UsageError, match)


def test_a_chosen_type_that_does_not_divide_the_rows_is_refused(tmp_path: Path) -> None:
    source = write_small_gguf(tmp_path / "s.gguf", tensors=small_tensors(width=288))
    refuse(source, Mix("Q8_0", (("attn_q", T.Q6_K),)), UsageError, r"blk\.0\.attn_q\.weight: rows of 288 do not divide")


def test_an_embedding_type_without_embeddings_is_refused(tmp_path: Path) -> None:
    tensors = small_tensors()
    del tensors["token_embd.weight"]
    source = write_small_gguf(tmp_path / "s.gguf", tensors=tensors)
    refuse(source, Mix("Q8_0", token_embedding_type=T.Q8_0), UsageError, r"no tensor token_embd\.weight")


def test_requantizing_is_refused(tmp_path: Path) -> None:
    source = write_small_gguf(tmp_path / "s.gguf")
    quantize(source, out=tmp_path / "q8.gguf", mix=Mix("Q8_0"))
    refuse(tmp_path / "q8.gguf", Mix("Q4_K_M"), BuildError, r"token_embd\.weight is already Q8_0; .*allow_requantize")


def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    source = write_small_gguf(tmp_path / "s.gguf")
    (tmp_path / "link.gguf").symlink_to(source)
    before = source.read_bytes()
    for out in (source, tmp_path / "link.gguf"):
        with pytest.raises(UsageError, match="this is the source"):
            quantize(source, out=out, mix=Mix("Q8_0"))
    assert source.read_bytes() == before


def test_no_threads_are_refused(tmp_path: Path) -> None:
    refuse(write_small_gguf(tmp_path / "s.gguf"), Mix("Q8_0"), UsageError, "threads=0: expected at least 1", threads=0)


@pytest.mark.parametrize(("field", "value"), [("head_count", 0), ("head_count_kv", 0)])
def test_a_model_without_heads_is_refused(field: str, value: int, tmp_path: Path) -> None:
    fields = {f"qwen2vl.attention.{field}": Field.uint32(value)}
    refuse(write_small_gguf(tmp_path / "s.gguf", fields=fields), Mix("Q8_0"), BuildError, "expected integers")


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.gguf").write_bytes(b"PK" * 100)
    refuse(tmp_path / "s.gguf", Mix("Q8_0"), GGUFError, "not a GGUF file")


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_small_gguf(tmp_path / "s.gguf")
    folder = tmp_path / "out"

    class Full:
        def __init__(self, file: Any, name: str) -> None:
            self.file, self.name = file, name

        def write(self, view: memoryview) -> None:
            if self.name == "b.gguf" and view.nbytes > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(view)

    original = GGUFWriter.__init__

    def start(self: GGUFWriter, path: Path, file: Any, tensors: Any) -> None:
        original(self, path, Full(file, path.name), tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(GGUFWriter, "__init__", start)
    with pytest.raises(BuildError, match=r"b\.gguf: cannot be written: No space left"):
        quantize_many(source, {folder / name: Mix("Q8_0") for name in ("a.gguf", "b.gguf", "c.gguf")})
    assert list(folder.iterdir()) == []


def test_two_runs_on_one_file_do_not_mix(tmp_path: Path) -> None:
    source = write_small_gguf(tmp_path / "s.gguf")
    nested: list[BuildError] = []

    def meddle(_done: int, _total: int) -> None:
        if not nested:
            with pytest.raises(BuildError, match="another run") as caught:
                quantize(source, out=tmp_path / "out.gguf", mix=Mix("Q4_0"))
            nested.append(caught.value)

    report = quantize(source, out=tmp_path / "out.gguf", mix=Mix("Q8_0"), progress=meddle)
    assert nested
    assert quantize(source, out=tmp_path / "again.gguf", mix=Mix("Q8_0")).sha256 == report.sha256


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    source = write_small_gguf(tmp_path / "s.gguf")
    with pytest.raises(KeyboardInterrupt):
        quantize(source, out=tmp_path / "out" / "out.gguf", mix=Mix("Q8_0"), progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


FIELDS = {
    "general.type": Field.string("imatrix"),
    "imatrix.datasets": Field.strings(["text"]),
    "imatrix.chunk_count": Field.uint32(1),
    "imatrix.chunk_size": Field.uint32(512),
}
SUMS = {"blk.0.attn_q.weight.in_sum2": np.ones((1, 4), np.float32)}
COUNTS = {"blk.0.attn_q.weight.counts": np.ones((1, 1), np.float32)}


def _drop(key: str) -> dict[str, Field]:
    return {name: field for name, field in FIELDS.items() if name != key}


def _sums(edit: Callable[[NDArray[np.float32]], None]) -> Tensors:
    values = np.ones((1, 4), np.float32)
    edit(values)
    return {"blk.0.attn_q.weight.in_sum2": values} | COUNTS


@pytest.mark.parametrize(
    ("fields", "tensors", "match"),
    [
        ({"general.type": Field.string("model")}, SUMS | COUNTS, "not an importance matrix"),
        ({"general.name": Field.string("x")}, SUMS | COUNTS, "not an importance matrix"),
        (_drop("imatrix.chunk_count"), SUMS | COUNTS, r"the field imatrix\.chunk_count is missing"),
        (_drop("imatrix.datasets"), SUMS | COUNTS, r"the field imatrix\.datasets is missing"),
        (FIELDS, COUNTS, "without entries"),
        (FIELDS, SUMS, r"blk\.0\.attn_q\.weight\.counts is missing"),
        (FIELDS, SUMS | {"blk.0.attn_q.weight.counts": np.zeros((1, 1), np.float32)}, "expected sums of squares"),
        (FIELDS, SUMS | {"blk.0.attn_q.weight.counts": np.full((1, 1), np.nan, np.float32)}, "NaN or infinity"),
        (FIELDS, SUMS | {"blk.0.attn_q.weight.counts": np.ones((1, 3), np.float32)}, r"counts holds 3 numbers"),
        (FIELDS, {"blk.0.attn_q.weight.in_sum2": np.ones((8, 4), np.float32)} | COUNTS, r"expected one row of F32"),
        (FIELDS, _sums(lambda values: values.fill(np.nan)), r"attn_q\.weight holds NaN or infinity"),
        (FIELDS, _sums(lambda values: values.__setitem__((0, 2), np.inf)), r"attn_q\.weight holds NaN or infinity"),
        (FIELDS, _sums(lambda values: values.__setitem__((0, 2), -1)), "expected sums of squares"),
        (FIELDS, _sums(lambda values: values.fill(0)), "expected sums of squares"),
    ],
)
def test_a_broken_matrix_file_is_refused(
    fields: dict[str, Field], tensors: Tensors, match: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    plans = [_plan(name, values) for name, values in tensors.items()]
    write_gguf(path, fields, plans)
    with pytest.raises(NestlingError, match=match) as caught:
        ImportanceMatrix.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _plan(name: str, values: NDArray[np.float32]) -> TensorPlan:
    return TensorPlan(name, values.shape, T.F32, lambda: [values])


def test_the_old_matrix_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.dat").write_bytes(b"\x01\0\0\0" + b"\x13\0\0\0blk.0.attn_q.weight" + b"\0" * 64)
    with pytest.raises(GGUFError, match="not a GGUF file"):
        ImportanceMatrix.read(tmp_path / "m.dat")


def test_a_matrix_survives_its_own_entry_checks() -> None:
    assert ColumnSums(np.array([2, 4], np.float32), 2).mean_square.tolist() == [1, 2]
