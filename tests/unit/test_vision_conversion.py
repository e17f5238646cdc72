"""A checkpoint's vision tower to an mmproj file: names, bytes, fields; what is wrong in the checkpoint is named.

Doors by which a fault can enter: config.json, preprocessor_config.json, tokenizer.json, and of every tensor its name,
its shape and its weights.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests import broken, tiny_vision
from tests.tiny import Tensors, read_raw_safetensors, write_json, write_raw_safetensors, write_safetensors
from tests.tiny_vision import INDEX, SHARD, text_tensors, tower_shapes

from nestling._util.files import sha256_file
from nestling.errors import CheckpointError, UsageError
from nestling.formats.mmproj import VisionFile, tower_path
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.vision import write_tower


@pytest.fixture
def folder(vision_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vision_checkpoint, tmp_path / "checkpoint"))


def written(folder: Path, name: str = "mmproj.gguf") -> Path:
    out = folder.parent / name
    assert write_tower(Checkpoint.open(folder), out=out, family="tiny") == sha256_file(out)
    return out


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        written(folder)
    assert "\n" not in str(caught.value)
    assert not list(folder.parent.glob("*.gguf*"))


def stored(folder: Path, name: str) -> np.ndarray[Any, Any]:
    return Checkpoint.open(folder).read_rows(f"visual.{name}")


def test_every_weight_is_the_checkpoints_bit_for_bit(folder: Path) -> None:
    tensors = {one.name: one for one in gguf.GGUFReader(written(folder)).tensors}

    def numbers(name: str) -> np.ndarray[Any, Any]:
        one = tensors[name]
        shape = tuple(reversed(one.shape.tolist()))
        if one.tensor_type == gguf.GGMLQuantizationType.F32:
            return np.array(one.data).reshape(shape)
        assert one.tensor_type == gguf.GGMLQuantizationType.BF16
        return (one.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)

    patch = stored(folder, "patch_embed.proj.weight")
    np.testing.assert_array_equal(numbers("v.patch_embd.weight"), patch[:, :, 0])
    np.testing.assert_array_equal(numbers("v.patch_embd.weight.1"), patch[:, :, 1])
    for side in ("weight", "bias"):
        whole = np.concatenate([numbers(f"v.blk.3.attn_{part}.{side}") for part in "qkv"])
        np.testing.assert_array_equal(whole, stored(folder, f"blocks.3.attn.qkv.{side}"))
        for ours, theirs in (
            ("v.blk.2.attn_out", "blocks.2.attn.proj"),
            ("v.blk.0.ffn_gate", "blocks.0.mlp.gate_proj"),
            ("v.blk.0.ffn_up", "blocks.0.mlp.up_proj"),
            ("v.blk.1.ffn_down", "blocks.1.mlp.down_proj"),
            ("mm.0", "merger.mlp.0"),
            ("mm.2", "merger.mlp.2"),
        ):
            np.testing.assert_array_equal(numbers(f"{ours}.{side}"), stored(folder, f"{theirs}.{side}"))
    for ours, theirs in (
        ("v.blk.1.ln1", "blocks.1.norm1"),
        ("v.blk.1.ln2", "blocks.1.norm2"),
        ("v.post_ln", "merger.ln_q"),
    ):
        np.testing.assert_array_equal(numbers(f"{ours}.weight"), stored(folder, f"{theirs}.weight"))
    assert len(tensors) == 2 + 4 * 16 + 5


def test_llama_cpps_fields_and_ours(folder: Path) -> None:
    fields = gguf.GGUFReader(written(folder)).fields
    values = {name: field.contents() for name, field in fields.items()}
    wanted = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.file_type": 32,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "qwen2.5vl_merger",
        "clip.use_silu": True,
        "clip.vision.image_size": 560,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": 48,
        "clip.vision.feed_forward_length": 100,
        "clip.vision.projection_dim": 64,
        "clip.vision.block_count": 4,
        "clip.vision.n_wa_pattern": 2,
        "clip.vision.attention.head_count": 2,
        "nestling.vision.window": 112,
        "nestling.vision.min_pixels": 3136,
        "nestling.vision.max_pixels": 602112,
        "nestling.vision.family": "tiny",
        "nestling.vision.source": Checkpoint.open(folder).source,
    }
    assert {name: values[name] for name in wanted} == wanted
    assert values["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-6)
    np.testing.assert_allclose(values["clip.vision.image_mean"], [0.48145466, 0.4578275, 0.40821073], rtol=1e-7)


def test_the_prompt_is_the_checkpoints_own_tokens(folder: Path) -> None:
    with np.load(Path(__file__).parents[1] / "golden" / "images-tiny.npz") as recorded:
        wanted = tuple(recorded["prompt"].tolist())
    spec = VisionFile.open(written(folder)).spec
    assert spec.prompt == wanted
    assert spec.prompt.count(spec.image_token or 0) == 1


def test_equal_checkpoints_give_equal_bytes(folder: Path) -> None:
    assert written(folder, "a.gguf").read_bytes() == written(folder, "b.gguf").read_bytes()


def test_memory_is_a_piece_of_a_tensor_whatever_the_file(vision_checkpoint: Path, tmp_path: Path) -> None:
    """Two blocks and a merger of the published widths: 129 MiB, of which a few pieces of 16 are held at a time."""
    folder = Path(shutil.copytree(vision_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    wide = {"depth": 2, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "fullatt_block_indexes": [1]}
    write_json(folder / "config.json", config | {"vision_config": config["vision_config"] | wide})
    _widen(folder)
    code = (
        "import sys; from pathlib import Path;"
        "from nestling.pipeline.conversion.checkpoint import Checkpoint;"
        "from nestling.pipeline.conversion.vision import write_tower;"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]);"
        "folder = Path(sys.argv[1]);"
        "checkpoint, before = Checkpoint.open(folder), peak();"
        "write_tower(checkpoint, out=folder / 'mmproj.gguf', family='tiny'); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True, timeout=60)
    grown, size = int(done.stdout) * 1024, (folder / "mmproj.gguf").stat().st_size
    assert size > 120 << 20
    assert grown < 100 << 20, f"{grown >> 20} MiB"


def _widen(folder: Path) -> None:
    """The tower's tensors at the published widths, all zero."""
    swapped = {48: 1280, 144: 3840, 100: 3420, 192: 5120}
    write_safetensors(folder / SHARD, text_tensors(folder / SHARD))
    index = json.loads((folder / INDEX).read_text("utf-8"))
    kept = {name: shard for name, shard in index["weight_map"].items() if not name.startswith("visual.")}
    shapes = {name: size for name, size in tower_shapes().items() if not name.startswith(("blocks.2", "blocks.3"))}
    header, end = dict[str, Any](), 0
    for name, size in shapes.items():
        shape, start = [swapped.get(side, side) for side in size], end
        end = start + 2 * math.prod(shape)
        header[f"visual.{name}"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    write_raw_safetensors(folder / "tower.safetensors", header, b"")
    os.truncate(folder / "tower.safetensors", (folder / "tower.safetensors").stat().st_size + end)
    write_json(folder / INDEX, index | {"weight_map": kept | dict.fromkeys(header, "tower.safetensors")})


def test_both_namings_give_the_same_tensors(folder: Path, tmp_path: Path) -> None:
    newer = tiny_vision.write_vision_checkpoint(tmp_path / "newer", prefix="model.visual.")
    ours, theirs = (VisionFile.open(written(one, f"{one.name}.gguf")) for one in (folder, newer))
    assert ours.shape == theirs.shape
    for name in ours.shape.tensors():
        np.testing.assert_array_equal(ours.file.raw(name), theirs.file.raw(name))


def test_the_pixels_of_the_preprocessor_configuration_are_taken(folder: Path) -> None:
    settings = {"min_pixels": 784, "max_pixels": 78400, "image_mean": [0.5, 0.25, 0.125], "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    spec = VisionFile.open(written(folder)).spec
    assert (spec.min_pixels, spec.max_pixels, spec.mean, spec.std) == (784, 78400, (0.5, 0.25, 0.125), (0.5, 0.5, 0.5))
    (folder / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 3136, "longest_edge": 100352}}')
    assert VisionFile.open(written(folder)).spec.max_pixels == 100352


def vision(field: str, value: object) -> broken.Change:
    return broken.in_json("config.json", lambda raw: raw["vision_config"].update({field: value}))


def pixels(field: str, value: object) -> broken.Change:
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps({field: value}))


def tensors(change: Callable[[Tensors], object]) -> broken.Change:
    """Write the shard again with other tensors, and the index to fit."""

    def apply(folder: Path) -> None:
        shard = folder / tiny_vision.SHARD
        header, data = read_raw_safetensors(shard)
        header.pop("__metadata__")
        found = {
            name: np.frombuffer(data[slice(*one["data_offsets"])], np.uint16).reshape(one["shape"]).copy()
            for name, one in header.items()
        }
        change(found)
        write_safetensors(shard, found)
        index = json.loads((folder / tiny_vision.INDEX).read_text())
        others = {name: where for name, where in index["weight_map"].items() if where != shard.name}
        (folder / tiny_vision.INDEX).write_text(json.dumps({"weight_map": others | dict.fromkeys(found, shard.name)}))

    return apply


DOWN, NOT_A_NUMBER = "visual.blocks.3.mlp.down_proj.weight", 0x7FC0
FAULTS = {
    "no tower": (broken.put("config.json", "vision_config", {}), "vision_config is missing: this checkpoint has no"),
    "not an object": (broken.put("config.json", "vision_config", [1]), r"vision_config=\[1\]: expected an object"),
    "no depth": (vision("depth", None), "vision_config: depth=None: expected a positive integer"),
    "too many blocks": (vision("depth", 2**31), "depth=2147483648: expected a positive integer"),
    "a block too many": (
        broken.in_json(
            "config.json", lambda raw: raw["vision_config"].update(depth=6, fullatt_block_indexes=[1, 3, 5])
        ),
        r"the tensor visual\.blocks\.4\.norm1\.weight is missing|the tensor visual\.blocks\.4",
    ),
    "other width": (
        vision("hidden_size", 64),
        r"patch_embed\.proj\.weight: shape \(48, 3, 2, 14, 14\): expected .* by config\.json",
    ),
    "other inner width": (
        vision("intermediate_size", 96),
        r"mlp\.gate_proj\.weight: shape \(100, 48\): expected .* by config\.json",
    ),
    "odd heads": (vision("num_heads", 5), "hidden size 48 and 5 heads"),
    "full blocks not evenly spaced": (
        vision("fullatt_block_indexes", [0, 3]),
        r"fullatt_block_indexes=\[0, 3\]: expected even",
    ),
    "no full block": (vision("fullatt_block_indexes", []), r"fullatt_block_indexes=\[\]: expected evenly spaced"),
    "window": (vision("window_size", 100), "a window of 100 pixels: expected a multiple of 28"),
    "other activation": (vision("hidden_act", "gelu"), "hidden_act='gelu' is not supported"),
    "other merge": (vision("spatial_merge_size", 3), "spatial_merge_size=3 is not supported"),
    "other out": (vision("out_hidden_size", 32), "out_hidden_size=32: expected the text model's hidden_size=64"),
    "mean": (
        pixels("image_mean", [0.5, 0.5]),
        r"preprocessor_config\.json: image_mean=\[0\.5, 0\.5\]: expected three numbers",
    ),
    "std of zero": (pixels("image_std", [0.0, 0.5, 0.5]), "image_std=.*between 0 and 1"),
    "pixels": (pixels("max_pixels", -1), "max_pixels=-1: expected a positive integer"),
    "more least than most": (pixels("min_pixels", 10**6), "min_pixels=1000000: expected at most max_pixels=602112"),
    "no resize": (pixels("do_resize", value=False), "do_resize=False is not supported"),
    "missing tensor": (tensors(lambda found: found.pop(DOWN)), f"the tensor {DOWN} is missing"),
    "surplus tensor": (
        tensors(lambda found: found.update({"visual.blocks.4.norm1.weight": np.zeros(48, np.uint16)})),
        r"visual\.blocks\.4\.norm1\.weight: not a tensor of this vision tower",
    ),
    "turned tensor": (
        tensors(lambda found: found.update({DOWN: found[DOWN].T.copy()})),
        rf"{DOWN}: shape \(100, 48\): expected \(48, 100\), by config\.json",
    ),
    "NaN": (
        tensors(lambda found: np.put(found[DOWN], 4799, NOT_A_NUMBER)),
        f"{DOWN}: row 47 holds NaN or infinity",
    ),
    "NaN in a norm": (
        tensors(lambda found: np.put(found["visual.merger.ln_q.weight"], 7, NOT_A_NUMBER)),
        r"ln_q\.weight: row 7 holds NaN",
    ),
    "no image token": (
        broken.in_json("tokenizer.json", lambda raw: raw["added_tokens"].pop(6)),
        r"the special token <\|image_pad\|> is missing",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(folder: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    change(folder)
    refused(folder, message)


def test_the_published_name() -> None:
    assert tower_path(Path("f"), "own") == Path("f/mmproj-own-BF16.gguf")
    with pytest.raises(UsageError, match="family='org/own'"):
        tower_path(Path("f"), "org/own")
