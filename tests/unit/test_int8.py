"""Rounding to int8 groups: how fine, how near, and the same for any number of threads."""

from pathlib import Path

import numpy as np
import pytest

from nestling.engine.openvino import int8_groups
from nestling.engine.weights import tensor
from nestling.formats.gguf import GGUFFile
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize
from nestling.vectors import Floats

NAME = "blk.0.ffn_down.weight"


def expanded(file: GGUFFile, group: int, threads: int = 1) -> int8_groups.Groups:
    rows, width = file.tensors[NAME].shape
    found = int8_groups.Groups.empty(rows, width, group)
    int8_groups.expand(file, NAME, found, threads=threads)
    return found


def numbers(groups: int8_groups.Groups) -> Floats:
    return (groups.values * groups.scales).reshape(len(groups.values), -1)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M", "Q3_K_M"])
def test_every_number_is_within_half_a_step(tiny_models: dict[str, Path], file_type: str, group: int) -> None:
    file = GGUFFile.open(tiny_models[file_type])
    found = expanded(file, group)
    half = np.repeat(found.scales[..., 0], group, axis=1) / 2
    # A product of float32 numbers may be off by one in the 24th bit of its largest factor, 127 steps.
    assert (np.abs(numbers(found) - tensor(file, NAME)) <= half * (1 + 2 * 127 * 2**-23)).all()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_same_for_any_number_of_threads(tiny_models: dict[str, Path], group: int) -> None:
    file = GGUFFile.open(tiny_models["Q4_K_M"])
    one, three = expanded(file, group), expanded(file, group, threads=3)
    np.testing.assert_array_equal(one.values, three.values)
    np.testing.assert_array_equal(one.scales, three.scales)


@pytest.mark.parametrize(
    ("file_type", "group"), [("Q8_0", 32), ("Q6_K", 32), ("Q5_K_M", 64), ("Q4_K_M", 128), ("Q3_K_M", 128)]
)
def test_files_of_few_bits_are_in_large_groups(
    tiny_models: dict[str, Path], tmp_path: Path, file_type: str, group: int
) -> None:
    made = quantize(tiny_models["F32"], out=tmp_path / "few.gguf", mix=Mix(file_type), threads=1)
    assert int8_groups.group_of(GGUFFile.open(made.path)) == group


def test_groups_of_zeros_and_groups_that_are_not_finite() -> None:
    rows = np.ones((3, 32), np.float32)
    rows[0], rows[1, 4], rows[2, 9] = 0, np.nan, np.inf
    found = int8_groups.Groups.empty(3, 32, 32)
    int8_groups.quantize(rows, found, threads=2)
    assert not found.values[0].any()
    assert not np.isfinite(found.scales[1:]).any()
