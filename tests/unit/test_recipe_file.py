import json
from pathlib import Path
from typing import Any

import pytest
from tests.small_gguf import small_imatrix, small_tensors, write_small_gguf

from nestling.errors import BuildError, FileFormatError
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.file_types import is_quantizable
from nestling.pipeline.quantization.quantize import quantize
from nestling.pipeline.quantization.search.recipe_file import MixRecipe

T = QuantType


def shapes(**options: int) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in small_tensors(**options).items()}


def recipe() -> MixRecipe:
    own = {name: shape for name, shape in shapes().items() if is_quantizable(name, shape)}
    kinds = (T.Q6_K, T.IQ4_XS, T.Q3_K, T.Q8_0)
    types = {name: kinds[place % len(kinds)] for place, name in enumerate(own)}
    return MixRecipe("Q4_K_S", types, own, "calibration.txt", 0.00125)


def test_a_recipe_comes_back_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    source = write_small_gguf(tmp_path / "s.gguf")
    recipe().write(tmp_path / "mix.json")
    again = MixRecipe.read(tmp_path / "mix.json")
    assert again == recipe()
    made = [
        quantize(source, out=tmp_path / f"{name}.gguf", mix=one.mix(shapes(), small_imatrix())).sha256
        for name, one in (("a", recipe()), ("b", again))
    ]
    assert made[0] == made[1]
    kinds = {name: info.kind for name, info in GGUFFile.open(tmp_path / "b.gguf").tensors.items()}
    assert {name: kinds[name] for name in again.types} == again.types


def test_a_recipe_is_there_to_be_read(tmp_path: Path) -> None:
    recipe().write(tmp_path / "mix.json")
    raw = json.loads((tmp_path / "mix.json").read_text())
    assert raw["tensors"]["blk.0.attn_q.weight"] == {"shape": [24, 256], "type": "IQ4_XS"}
    assert (raw["format"], raw["file_type"], raw["imatrix"]) == ("nestling-mix-1", "Q4_K_S", "calibration.txt")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": 3}, r"another model's: blk\.2\.attn_k\.weight is missing in it, \(24, 256\) in the model"),
        ({"layers": 1}, r"blk\.1\.attn_k\.weight is \(24, 256\) in it, missing in the model"),
        ({"rows": 32}, r"is \(24, 256\) in it, \(32, 256\) in the model"),
    ],
)
def test_another_models_recipe_is_refused(options: dict[str, int], match: str) -> None:
    with pytest.raises(BuildError, match=match):
        recipe().mix(shapes(**options), None)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "nestling-mix-2"}, "format='nestling-mix-2': expected"),
        ({"file_type": "Q9"}, "quant='Q9'"),
        ({"tensors": {"a": {"type": "Q9_K", "shape": [1, 2]}}}, "a='Q9_K'"),
        ({"tensors": {"a": {"type": "Q4_K"}}}, "shape"),
        ({"tensors": ["a"]}, "items"),
        ({"error": "small"}, "small"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_line(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    path = tmp_path / "mix.json"
    recipe().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileFormatError, match=match) as caught:
        MixRecipe.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b"{}"])
def test_what_is_no_json_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "mix.json").write_bytes(raw)
    with pytest.raises(FileFormatError, match="not a mix recipe"):
        MixRecipe.read(tmp_path / "mix.json")
