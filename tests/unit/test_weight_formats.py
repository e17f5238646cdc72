"""Matrices in every weight format: how fine, how near, the same for any number of threads, and what is not finite."""

from pathlib import Path

import numpy as np
import pytest

from nestling.engine.openvino.expansion import Expansion
from nestling.engine.openvino.grouping import group_of
from nestling.engine.openvino.weight_formats.base import Arrays, WeightFormat, empty
from nestling.engine.openvino.weight_formats.floats import FloatFormat
from nestling.engine.openvino.weight_formats.int8_groups import Int8Groups
from nestling.engine.openvino.weight_formats.int8_rows import Int8Rows
from nestling.engine.weights import tensor
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize
from nestling.vectors import Floats

NAME = "blk.0.ffn_down.weight"
ROUNDED: list[WeightFormat] = [Int8Groups(32), Int8Groups(64), Int8Groups(128), Int8Rows()]
FLOATS = {QuantType.F32: 0.0, QuantType.F16: 2**-11}
"""Half a unit in the last place, relative."""


def expanded(file: GGUFFile, held: WeightFormat, threads: int = 1) -> Arrays:
    found = empty(held.spaces(*file.tensors[NAME].shape))
    Expansion(file, None, threads).matrix(NAME, held, found)
    return found


def numbers(arrays: Arrays) -> Floats:
    values, scales = arrays
    return (values * scales).reshape(len(values), -1)


@pytest.mark.parametrize("held", ROUNDED, ids=str)
@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M", "Q3_K_M"])
def test_every_number_is_within_half_a_step(tiny_models: dict[str, Path], file_type: str, held: WeightFormat) -> None:
    file = GGUFFile.open(tiny_models[file_type])
    values, scales = expanded(file, held)
    half = np.repeat(scales.reshape(len(scales), -1), values.shape[-1], axis=1) / 2
    # A product of float32 numbers may be off by one in the 24th bit of its largest factor, 127 steps.
    assert (np.abs(numbers((values, scales)) - tensor(file, NAME)) <= half * (1 + 2 * 127 * 2**-23)).all()


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "Q4_K_M"])
def test_floats_are_rounded_to_nearest(tiny_models: dict[str, Path], file_type: str, kind: QuantType) -> None:
    file = GGUFFile.open(tiny_models[file_type])
    [held] = expanded(file, FloatFormat(kind))
    exact = tensor(file, NAME)
    assert (np.abs(held.astype(np.float32) - exact) <= np.abs(exact) * FLOATS[kind] + 2**-24).all()


@pytest.mark.parametrize("held", [*ROUNDED, FloatFormat(QuantType.F16)], ids=str)
def test_the_same_for_any_number_of_threads(tiny_models: dict[str, Path], held: WeightFormat) -> None:
    file = GGUFFile.open(tiny_models["Q4_K_M"])
    for one, three in zip(expanded(file, held), expanded(file, held, threads=3), strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize(
    ("file_type", "group"), [("Q8_0", 32), ("Q6_K", 32), ("Q5_K_M", 64), ("Q4_K_M", 128), ("Q3_K_M", 128)]
)
def test_files_of_few_bits_are_in_large_groups(
    tiny_models: dict[str, Path], tmp_path: Path, file_type: str, group: int
) -> None:
    made = quantize(tiny_models["F32"], out=tmp_path / "few.gguf", mix=Mix(file_type), threads=1)
    assert group_of(GGUFFile.open(made.path)) == group


def test_q8_0_blocks_are_taken_as_they_are(tiny_models: dict[str, Path]) -> None:
    file = GGUFFile.open(tiny_models["Q8_0"])
    np.testing.assert_array_equal(numbers(expanded(file, Int8Groups(32), threads=2)), tensor(file, NAME))


@pytest.mark.parametrize("held", [Int8Groups(32), Int8Rows()], ids=str)
def test_zeros_and_what_is_not_finite(held: WeightFormat) -> None:
    rows = np.ones((3, 32), np.float32)
    rows[0], rows[1, 4], rows[2, 9] = 0, np.nan, np.inf
    values, scales = found = empty(held.spaces(3, 32))
    held.fill(rows, found)
    assert not values[0].any()
    assert not np.isfinite(scales[1:]).any()
