import struct
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import write_raw_safetensors

from nestling.formats.safetensors import read_header

ROWS = np.arange(-12, 12, dtype=np.float32).reshape(6, 4) * np.float32(0.375)  # exact in every type


def stored(dtype: str) -> bytes:
    """The rows as the format has them, by Python's own conversions."""
    numbers = ROWS.ravel().tolist()
    if dtype == "BF16":
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    return struct.pack("<24" + {"F32": "f", "F16": "e"}[dtype], *numbers)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 1), (2, 5), (5, 6), (3, 3)])
def test_rows_are_read_in_every_type(tmp_path: Path, dtype: str, start: int, stop: int | None) -> None:
    data = b"before!!" + stored(dtype)
    header = {
        "other": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "w": {"dtype": dtype, "shape": [6, 4], "data_offsets": [8, len(data)]},
        "__metadata__": {"format": "pt"},
    }
    write_raw_safetensors(tmp_path / "a.safetensors", header, data)
    tensors = read_header(tmp_path / "a.safetensors")
    assert set(tensors) == {"other", "w"}
    rows = tensors["w"].read_rows(start=start, stop=stop)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, ROWS[start:stop])


def test_a_vector_is_rows_of_one_number(tmp_path: Path) -> None:
    header = {"v": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}}
    write_raw_safetensors(tmp_path / "a.safetensors", header, stored("F32"))
    found = read_header(tmp_path / "a.safetensors")["v"].read_rows(start=1, stop=3)
    np.testing.assert_array_equal(found, ROWS.ravel()[1:3])
