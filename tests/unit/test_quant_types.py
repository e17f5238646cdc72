"""Tables against gguf-py, which has the same facts from ggml's sources."""

from typing import Any

import gguf
import pytest

from nestling.errors import UsageError
from nestling.formats.quant_types import FILE_TYPES, FLOAT_FILE_TYPES, QuantType, parse_file_type

EVERY_TYPE = pytest.mark.parametrize("kind", QuantType, ids=lambda kind: kind.name)


@EVERY_TYPE
def test_numbers_and_blocks_are_those_of_ggml(kind: QuantType) -> None:
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert kind.ggml_id == theirs.value
    assert (kind.block, kind.value.block_bytes) == gguf.GGML_QUANT_SIZES[theirs]
    assert QuantType.from_ggml_id(kind.ggml_id) is kind


@pytest.mark.parametrize("number", [-1, 4, 5, 31, 99, 1 << 32])
def test_other_numbers_are_no_type(number: int) -> None:
    assert QuantType.from_ggml_id(number) is None


@EVERY_TYPE
def test_sizes_agree_with_each_other(kind: QuantType) -> None:
    row = kind.row_bytes(512)
    assert row == 512 // kind.block * kind.value.block_bytes
    assert kind.size_bytes((3, 5, 512)) == 15 * row
    assert kind.bits_per_weight == pytest.approx(8 * row / 512)
    assert kind.is_float == (kind.name in FLOAT_FILE_TYPES)


def test_a_row_that_is_not_whole_blocks_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="Q4_K: a row of 300"):
        QuantType.Q4_K.row_bytes(300)


@pytest.mark.parametrize(
    ("kind", "bits"), [("F16", 16), ("Q8_0", 8.5), ("Q6_K", 6.5625), ("Q4_K", 4.5), ("Q3_K", 3.4375), ("IQ1_S", 1.5625)]
)
def test_published_bits_per_weight(kind: str, bits: float) -> None:
    assert QuantType[kind].bits_per_weight == bits


@pytest.mark.parametrize(("name", "number"), FILE_TYPES.items())
def test_file_types_have_the_numbers_of_llama_cpp(name: str, number: int) -> None:
    prefix = "ALL_" if name == "F32" else "MOSTLY_"
    assert number == gguf.LlamaFileType[prefix + name].value


def test_float_file_types_come_first() -> None:
    assert tuple(FILE_TYPES)[:3] == FLOAT_FILE_TYPES


@pytest.mark.parametrize(("text", "name"), [("q4_k_m", "Q4_K_M"), ("Bf16", "BF16"), ("IQ3_XXS", "IQ3_XXS")])
def test_file_types_are_parsed_whatever_their_case(text: str, name: str) -> None:
    assert parse_file_type(text) == name


@pytest.mark.parametrize("text", ["", "Q4", "Q4-K-M", "Q4_K", "fp16", "Q8_0 "])
def test_other_file_types_are_refused_with_the_right_ones(text: Any) -> None:
    with pytest.raises(UsageError, match="Q8_0, Q6_K") as caught:
        parse_file_type(text)
    assert caught.value.param == "quant"
