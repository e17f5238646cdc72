import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.formats.quant_types import FILE_TYPES, QuantType
from nestling.pipeline.quantization.file_types import (
    FALLBACKS,
    RECIPES,
    Layers,
    Part,
    demands_imatrix,
    fitting,
    is_quantizable,
    tensor_types,
)

T = QuantType


def test_every_file_type_has_a_recipe_in_the_same_order() -> None:
    assert list(RECIPES) == list(FILE_TYPES)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("token_embd.weight", Part.EMBEDDING),
        ("output.weight", Part.OUTPUT),
        ("blk.3.attn_output.weight", Part.ATTN_OUT),
        ("blk.3.attn_q.weight", Part.Q),
        ("blk.3.attn_k.weight", Part.K),
        ("blk.3.attn_v.weight", Part.V),
        ("blk.3.ffn_gate.weight", Part.GATE),
        ("blk.3.ffn_up.weight", Part.UP),
        ("blk.3.ffn_down.weight", Part.DOWN),
        ("mv_projector.weight", Part.OTHER),
    ],
)
def test_parts_are_told_by_name(name: str, part: Part) -> None:
    assert Part.of(name) is part


@pytest.mark.parametrize(
    ("layers", "of_16", "of_36", "of_7"),
    [
        (Layers.FIRST_2, [0, 1], [0, 1], [0, 1]),
        (Layers.FIRST_4, [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]),
        (Layers.FIRST_16TH, [0], [0, 1], []),
        (Layers.FIRST_8TH, [0, 1], [0, 1, 2, 3], []),
        (Layers.MIDDLE, [*range(2, 14)], [*range(4, 31)], [*range(6)]),
        (Layers.MORE_BITS, [0, 1, 4, 7, 10, 13, 14, 15], [*range(4), *range(6, 31, 3), *range(31, 36)], [2, 5, 6]),
    ],
)
def test_ranges_of_layers(layers: Layers, of_16: list[int], of_36: list[int], of_7: list[int]) -> None:
    for count, expected in ((16, of_16), (36, of_36), (7, of_7)):
        assert [layer for layer in range(count) if layers.hold(layer, count)] == expected


def test_what_is_not_a_matrix_of_weights_stays_f32() -> None:
    shapes = {"blk.0.attn_norm.weight": (256,), "blk.0.attn_q.bias": (256,), "blk.0.odd_norm.weight": (2, 256)}
    types = tensor_types(shapes, file_type="Q4_K_M", heads=4, kv_heads=1, has_imatrix=False)
    assert set(types.values()) == {T.F32}
    assert list(types) == list(shapes)
    assert is_quantizable("blk.0.attn_q.weight", (1, 256))


def test_a_tensor_of_no_known_part_gets_the_base_type() -> None:
    types = tensor_types({"mv_projector.weight": (128, 256)}, file_type="IQ3_M", heads=4, kv_heads=1, has_imatrix=True)
    assert types == {"mv_projector.weight": T.IQ3_S}


@given(kind=st.sampled_from(list(QuantType)), width=st.integers(1, 2048))
def test_the_type_that_takes_its_place_divides_the_row(kind: QuantType, width: int) -> None:
    found = fitting(kind, width)
    assert width % found.block == 0
    if width % kind.block == 0:
        assert found is kind
    elif width % 32 == 0:
        assert found is FALLBACKS[kind]
    else:
        assert found is T.F16


def test_a_fallback_is_never_smaller_than_what_it_replaces() -> None:
    assert all(second.bits_per_weight >= first.bits_per_weight for first, second in FALLBACKS.items())


@pytest.mark.parametrize(
    ("name", "kind", "file_type", "demanding"),
    [
        ("blk.0.attn_q.weight", T.IQ2_S, "IQ2_M", True),
        ("blk.0.attn_q.weight", T.IQ3_XXS, "IQ3_XS", True),
        ("blk.0.attn_q.weight", T.IQ3_S, "IQ3_S", False),
        ("blk.0.attn_q.weight", T.Q2_K, "Q2_K", False),
        ("blk.0.attn_q.weight", T.Q2_K, "Q2_K_S", True),
        ("token_embd.weight", T.Q2_K, "Q2_K_S", False),
        ("token_embd.weight", T.IQ2_XXS, "IQ2_XXS", True),
    ],
)
def test_which_tensors_need_a_matrix(name: str, kind: QuantType, file_type: str, *, demanding: bool) -> None:
    assert demands_imatrix(name, kind, file_type) is demanding


# GiB of the published collection's files for the full model, within one per cent.
@pytest.mark.parametrize(("file_type", "gib"), [("F16", 5.75), ("Q8_0", 3.05), ("Q4_K_M", 1.79)])
def test_the_full_models_size(file_type: str, gib: float) -> None:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (151936, 2048), "output_norm.weight": (2048,)}
    rows = {"attn_q": 2048, "attn_k": 256, "attn_v": 256, "attn_output": 2048, "ffn_gate": 11008, "ffn_up": 11008}
    for layer in range(36):
        shapes |= {f"blk.{layer}.{name}.weight": (count, 2048) for name, count in rows.items()}
        shapes[f"blk.{layer}.ffn_down.weight"] = (2048, 11008)
    types = tensor_types(shapes, file_type=file_type, heads=16, kv_heads=2, has_imatrix=False)
    size = sum(types[name].size_bytes(shape) for name, shape in shapes.items())
    assert size / 2**30 == pytest.approx(gib, rel=0.01)
