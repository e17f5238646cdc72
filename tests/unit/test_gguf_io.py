"""The writer and the reader against each other and against gguf-py; broken files are in `tests/fault`."""

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests import raw_gguf, tiny_gguf

from nestling.errors import BuildError, GGUFError
from nestling.formats.gguf import (
    Field,
    GGUFFile,
    TensorHead,
    TensorPlan,
    ValueKind,
    file_size,
    open_writer,
    write_gguf,
)
from nestling.formats.quant_types import QuantType

INTEGERS = {
    kind: (np.iinfo(kind.dtype).min, np.iinfo(kind.dtype).max)
    for kind in ValueKind
    if kind not in (ValueKind.STRING, ValueKind.ARRAY, ValueKind.BOOL) and kind.dtype.kind in "iu"
}
TEXT = st.text(max_size=20)


def values(kind: ValueKind) -> st.SearchStrategy[Any]:
    if kind in INTEGERS:
        return st.integers(*INTEGERS[kind])
    if kind is ValueKind.STRING:
        return TEXT
    if kind is ValueKind.BOOL:
        return st.booleans()
    return st.floats(width=32 if kind is ValueKind.FLOAT32 else 64, allow_nan=False)


ITEMS = st.sampled_from([kind for kind in ValueKind if kind is not ValueKind.ARRAY])
SCALARS = ITEMS.flatmap(lambda kind: values(kind).map(lambda value: Field(kind, value)))
ARRAYS = ITEMS.flatmap(
    lambda item: st.lists(values(item), max_size=9).map(lambda found: Field(ValueKind.ARRAY, tuple(found), item))
)
# An alignment of another kind or size is refused, and one that is allowed would not be the writer's.
KEYS = TEXT.filter(lambda key: key != "general.alignment")


def zeros(name: str, shape: tuple[int, ...], kind: QuantType = QuantType.F32) -> TensorPlan:
    return TensorPlan(name, shape, kind, lambda: [bytes(kind.size_bytes(shape))])


def plan_of(name: str, array: NDArray[Any], kind: QuantType = QuantType.F32, pieces: int = 1) -> TensorPlan:
    return TensorPlan(name, array.shape, kind, lambda: np.array_split(array, min(pieces, len(array))))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(KEYS, SCALARS | ARRAYS, max_size=6))
def test_every_value_comes_back_with_its_type(tmp_path: Path, metadata: dict[str, Field]) -> None:
    write_gguf(tmp_path / "x.gguf", metadata, [])
    file = GGUFFile.open(tmp_path / "x.gguf")
    assert file.metadata == metadata
    assert list(file.metadata) == list(metadata)
    assert {key: type(field.value) for key, field in file.metadata.items()} == {
        key: type(field.value) for key, field in metadata.items()
    }


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(TEXT, st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), max_size=5),
    pieces=st.integers(1, 3),
)
def test_tensors_come_back(tmp_path: Path, shapes: dict[str, tuple[int, ...]], pieces: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    plans = [plan_of(name, array, pieces=pieces) for name, array in arrays.items()]
    sha256 = write_gguf(tmp_path / "x.gguf", {}, plans)
    file = GGUFFile.open(tmp_path / "x.gguf")
    assert list(file.tensors) == list(arrays)
    for name, array in arrays.items():
        assert (file.tensors[name].shape, file.tensors[name].offset % 32) == (array.shape, 0)
        np.testing.assert_array_equal(file.raw(name).view(np.float32).reshape(array.shape), array)
    assert sha256 == hashlib.sha256((tmp_path / "x.gguf").read_bytes()).hexdigest()
    assert file_size({}, plans) == (tmp_path / "x.gguf").stat().st_size


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": Field.string("qwen2vl"),
        "a.count": Field.uint32(7),
        "a.real": Field.float32(0.5),
        "a.flag": Field.boolean(True),  # noqa: FBT003 - the field's value
        "a.texts": Field.strings(["", "ä", "浜辺"]),
        "a.numbers": Field.int32s([-1, 2]),
        "a.long": Field(ValueKind.UINT64, 1 << 60),
    }
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    blocks = np.arange(2 * 34, dtype=np.uint8)
    quantized = TensorPlan("q", (2, 32), QuantType.Q8_0, lambda: [blocks[:34], blocks[34:]])
    write_gguf(tmp_path / "x.gguf", metadata, [plan_of("m", matrix), quantized])
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    found = {key: reader.get_field(key) for key in metadata}
    assert {key: field.contents() for key, field in found.items() if field} == {
        key: list(field.value) if isinstance(field.value, tuple) else field.value for key, field in metadata.items()
    }
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(theirs["m"].data, matrix)
    assert theirs["q"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(theirs["q"].data.reshape(-1), blocks)


def test_we_read_what_gguf_py_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2vl")
    writer.add_custom_alignment(64)
    writer.add_array("texts", ["a", "β"])
    writer.add_uint64("long", 1 << 50)
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    for name in ("m", "n"):
        writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile.open(tmp_path / "x.gguf")
    assert (file.value("general.architecture"), file.value("texts"), file.value("long")) == (
        "qwen2vl", ("a", "β"), 1 << 50,
    )  # fmt: skip
    assert file.tensors["n"].offset - file.tensors["m"].offset == 64
    np.testing.assert_array_equal(file.raw("n").view(np.float32), matrix)


def test_version_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(raw_gguf.gguf([raw_gguf.pair("k", raw_gguf.UINT8, b"\7")], version=2))
    assert GGUFFile.open(tmp_path / "x.gguf").value("k") == 7


def test_raw_is_rows_of_stored_bytes(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {}, [zeros("q", (2, 3, 64), QuantType.Q8_0), zeros("v", (5,))])
    file = GGUFFile.open(tmp_path / "x.gguf")
    assert file.raw("q").shape == (6, 68)
    assert file.raw("v").shape == (1, 20)
    assert file.tensors["q"].size_bytes == 6 * 68
    assert not file.raw("v").flags.writeable


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {}, [])
    file = GGUFFile.open(tmp_path / "x.gguf")
    with pytest.raises(GGUFError, match=r"x\.gguf: the field general\.name is missing"):
        file.value("general.name")
    with pytest.raises(GGUFError, match=r"x\.gguf: the tensor t is missing"):
        file.raw("t")


def test_forgotten_rows_are_read_again(tmp_path: Path) -> None:
    array = np.arange(1 << 16, dtype=np.float32).reshape(64, -1)
    write_gguf(tmp_path / "x.gguf", {}, [plan_of("t", array)])
    file = GGUFFile.open(tmp_path / "x.gguf")
    for start in range(0, 64, 7):
        rows = file.raw("t")[start : start + 7]
        file.forget(rows)
        np.testing.assert_array_equal(rows.view(np.float32), array[start : start + 7])


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny_gguf.write(tmp_path / name, "F16")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_known_bytes(tmp_path: Path) -> None:
    """Against a file put together by hand."""
    plans = [plan_of("t", np.array([[1, 2]], np.float32)), plan_of("u", np.array([3], np.float32))]
    write_gguf(tmp_path / "x.gguf", {"k": Field.uint32(5), "s": Field.strings(["é"])}, plans)
    one, two = np.array([1, 2], "<f4").tobytes(), np.array([3], "<f4").tobytes()
    expected = raw_gguf.gguf(
        [
            raw_gguf.pair("k", raw_gguf.UINT32, raw_gguf.number(5)),
            raw_gguf.pair("s", raw_gguf.ARRAY, raw_gguf.array(raw_gguf.STRING, 1, raw_gguf.string("é"))),
        ],
        [raw_gguf.tensor("t", (2, 1)), raw_gguf.tensor("u", (1,), offset=32)],
        data=one + bytes(24) + two + bytes(28),
    )
    assert (tmp_path / "x.gguf").read_bytes() == expected


@pytest.mark.parametrize("given_bytes", [7, 9])
def test_a_tensor_of_another_size_than_planned_is_our_own_mistake(tmp_path: Path, given_bytes: int) -> None:
    plan = TensorPlan("t", (2,), QuantType.F32, lambda: [bytes(given_bytes)])
    with pytest.raises(AssertionError, match=r"missing|too many"):
        write_gguf(tmp_path / "x.gguf", {}, [plan])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensor_is_our_own_mistake(tmp_path: Path) -> None:
    heads = [TensorHead("t", (2,), QuantType.F32)]
    with pytest.raises(AssertionError, match="tensors are missing"), open_writer(tmp_path / "x.gguf", {}, heads):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_piece_too_many_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="after the last"), open_writer(tmp_path / "x.gguf", {}, []) as writer:
        writer.write(b"more")


def failing(_done: list[bytes]) -> Iterable[bytes]:
    yield bytes(4)
    raise KeyboardInterrupt


def test_nothing_stays_of_a_file_whose_tensors_cannot_be_had(tmp_path: Path) -> None:
    plan = TensorPlan("t", (2,), QuantType.F32, partial(failing, []))
    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "x.gguf", {}, [plan])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_build_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BuildError, match=r"file/x\.gguf: cannot be written: "):
        write_gguf(tmp_path / "file" / "x.gguf", {}, [])
