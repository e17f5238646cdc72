"""Reading mmproj files: ours, published ones without our fields; what is refused is named, field or tensor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nestling.errors import FileFormatError, GGUFError
from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.formats.mmproj import OURS, VisionFile, is_tower
from nestling.formats.quant_types import QuantType
from nestling.formats.tower_shape import ImageSpec, TowerShape


def changed(
    path: Path,
    out: Path,
    *,
    fields: dict[str, Field | None] | None = None,
    tensors: dict[str, tuple[Any, QuantType] | None] | None = None,
) -> Path:
    """The file again with some fields and tensors replaced, added, or (None) left out."""
    file = GGUFFile.open(path)
    metadata = {**file.metadata, **(fields or {})}
    arrays: dict[str, Any] = {
        name: (file.raw(name).reshape(*info.shape[:-1], -1), info.kind) for name, info in file.tensors.items()
    }
    arrays |= tensors or {}
    plans = []
    for name, entry in arrays.items():
        if entry is not None:
            array, kind = entry
            shape = file.tensors[name].shape if array.dtype == np.uint8 else array.shape
            plans.append(TensorPlan(name, shape, kind, lambda array=array: [array]))  # type: ignore[misc]
    write_gguf(out, {key: field for key, field in metadata.items() if field}, plans)
    return out


def test_a_file_of_ours(tiny_tower: Path) -> None:
    vision = VisionFile.open(tiny_tower)
    assert is_tower(vision.file)
    assert vision.shape == TowerShape(4, 48, 2, 100, 64, 2, vision.shape.rms_eps)
    assert [vision.shape.is_full(block) for block in range(4)] == [False, True, False, True]
    assert vision.spec.max_pixels == 602112
    assert vision.parameters == sum(np.prod(shape) for shape in vision.shape.tensors().values())


def test_a_published_file_without_our_fields(tiny_tower: Path, tmp_path: Path) -> None:
    """Published BF16 files keep the patch embedding in F16."""
    ours: dict[str, Field | None] = {key: None for key in GGUFFile.open(tiny_tower).metadata if key.startswith(OURS)}
    half = np.ones((48, 3, 14, 14), np.float16)
    path = changed(
        tiny_tower,
        tmp_path / "mmproj-jina-embeddings-v4-retrieval-BF16.gguf",
        fields=ours,
        tensors={"v.patch_embd.weight": (half, QuantType.F16)},
    )
    vision = VisionFile.open(path)
    assert vision.spec == ImageSpec(mean=vision.spec.mean, std=vision.spec.std)
    assert vision.shape.window == 112
    vision.check_fits(width=64, source="jinaai/jina-embeddings-v4@0123")


U32 = Field.uint32
FIELDS: dict[str, tuple[str, Field | None, str]] = {
    "architecture": ("general.architecture", Field.string("qwen2vl"), "general.architecture='qwen2vl'"),
    "projector": ("clip.projector_type", Field.string("mlp"), "clip.projector_type='mlp'"),
    "no silu": ("clip.use_silu", None, "clip.use_silu=''"),
    "pattern of 0": ("clip.vision.n_wa_pattern", U32(0), "n_wa_pattern=0: expected a whole number"),
    "pattern of 3": (
        "clip.vision.n_wa_pattern",
        U32(3),
        "4 blocks: expected a multiple of the full-attention period, 3",
    ),
    "no pattern": ("clip.vision.n_wa_pattern", None, "the field clip.vision.n_wa_pattern is missing"),
    "blocks of 2^31": ("clip.vision.block_count", U32(2**31), "block_count=2147483648: expected a whole number"),
    "many blocks": ("clip.vision.block_count", U32(2**31 - 2), "block_count=2147483646, but the file has 71 tensors"),
    "other out": ("clip.vision.projection_dim", U32(128), r"mm\.2\.weight: expected shape \(128, 192\)"),
    "wide": ("clip.vision.embedding_length", U32(2**31 - 8), r"v\.patch_embd\.weight: expected shape \(2147483640"),
    "inner": (
        "clip.vision.feed_forward_length",
        U32(96),
        r"ffn_gate\.weight: expected shape \(96, 48\), found \(100",
    ),
    "heads": ("clip.vision.attention.head_count", U32(7), "hidden size 48 and 7 heads"),
    "eps": ("clip.vision.attention.layer_norm_epsilon", Field.float32(float("nan")), "layer_norm_epsilon=nan"),
    "mean": ("clip.vision.image_mean", Field.int32s((1, 2, 3)), "image_mean=.*three numbers between 0 and 1"),
    "std": ("clip.vision.image_std", None, "the field clip.vision.image_std is missing"),
    "window": (OURS + "window", U32(113), "a window of 113 pixels"),
    "pixels": (OURS + "min_pixels", U32(10**6), "min_pixels=1000000: expected at most max_pixels=602112"),
    "prompt": (OURS + "prompt", Field.strings(("a",)), "prompt=.*expected token ids"),
    "prompt without the token": (OURS + "prompt", Field.int32s((1, 2)), r"expected exactly one image token \(374\)"),
}


@pytest.mark.parametrize("fault", FIELDS)
def test_a_field_that_does_not_fit_is_named(tiny_tower: Path, tmp_path: Path, fault: str) -> None:
    key, field, message = FIELDS[fault]
    path = changed(tiny_tower, tmp_path / "mmproj.gguf", fields={key: field})
    with pytest.raises(GGUFError, match=message) as caught:
        VisionFile.open(path)
    assert str(path) in str(caught.value)


TENSORS: dict[str, tuple[str, tuple[Any, QuantType] | None, str]] = {
    "missing": (
        "v.blk.3.ffn_down.bias",
        None,
        r"v\.blk\.3\.ffn_down\.bias: expected shape \(48,\), found no such tensor",
    ),
    "shape": ("mm.0.bias", (np.zeros(96, np.float32), QuantType.F32), r"mm\.0\.bias: expected shape .*found \(96,\)"),
    "surplus": ("v.blk.4.ln1.weight", (np.zeros(48, np.float32), QuantType.F32), r"v\.blk\.4\.ln1\.weight: not a ten"),
    "type": (
        "mm.0.weight",
        (np.zeros((192, 204), np.uint8), QuantType.Q8_0),
        r"mm\.0\.weight is Q8_0: expected one of",
    ),
}


@pytest.mark.parametrize("fault", TENSORS)
def test_a_tensor_that_does_not_fit_is_named(tiny_tower: Path, tmp_path: Path, fault: str) -> None:
    name, tensor, message = TENSORS[fault]
    path = changed(tiny_tower, tmp_path / "mmproj.gguf", tensors={name: tensor})
    with pytest.raises(GGUFError, match=message):
        VisionFile.open(path)


def test_a_file_that_is_cut(tiny_tower: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_tower.read_bytes()[:-1000])
    with pytest.raises(GGUFError, match=r"mm\.2"):
        VisionFile.open(tmp_path / "cut.gguf")


def test_a_tower_of_another_checkpoint_or_width_is_refused(tiny_tower: Path) -> None:
    vision = VisionFile.open(tiny_tower)
    vision.check_fits(width=64, source=vision.spec.source)
    with pytest.raises(
        FileFormatError, match=r"mmproj.*made for another model: its checkpoint is sha256:.* is org/it@1"
    ):
        vision.check_fits(width=64, source="org/it@1")
    with pytest.raises(FileFormatError, match="its width is 64, the text model's is 2048"):
        vision.check_fits(width=2048, source=vision.spec.source)
