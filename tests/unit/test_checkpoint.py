import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny

from nestling.errors import CheckpointError
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.config import TextConfig

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


def join_shards(folder: Path) -> None:
    header, data = tiny.read_raw_safetensors(folder / SHARDS[0])
    more, tail = tiny.read_raw_safetensors(folder / SHARDS[1])
    for name, entry in more.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + len(data) for offset in entry["data_offsets"]]
    tiny.write_raw_safetensors(folder / "model.safetensors", header | more, data + tail)
    for name in (*SHARDS, INDEX):
        (folder / name).unlink()


def rename_tensors(folder: Path) -> None:
    """The newer naming."""

    def newer(name: str) -> str:
        for older, prefix in (("model.", "model.language_model."), ("visual.", "model.visual.")):
            if name.startswith(older):
                return prefix + name.removeprefix(older)
        return name

    for shard in SHARDS:
        header, data = tiny.read_raw_safetensors(folder / shard)
        tiny.write_raw_safetensors(folder / shard, {newer(name): entry for name, entry in header.items()}, data)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {newer(name): shard for name, shard in index["weight_map"].items()}
    tiny.write_json(folder / INDEX, index)


def test_configuration(small_checkpoint: Path) -> None:
    assert Checkpoint.open(small_checkpoint).config == TextConfig(
        layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=tiny.SMALL_VOCAB, rms_eps=1e-6,
        rope_theta=1e6, mrope_sections=(2, 3, 3), max_positions=4096, dimensions=(16, 32, 64), task_names=tiny.TASKS,
    )  # fmt: skip


@pytest.mark.parametrize("change", [join_shards, rename_tensors])
def test_other_layouts_hold_the_same_tensors(small_checkpoint: Path, folder: Path, change: Any) -> None:
    want = Checkpoint.open(small_checkpoint)
    change(folder)
    found = Checkpoint.open(folder)
    assert found.tensors.keys() == want.tensors.keys() == tiny.base_shapes().keys()
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "visual.merger.ln_q.weight"):
        np.testing.assert_array_equal(found.read_rows(name), want.read_rows(name))


def test_adapters_go_by_task_and_module(small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    assert checkpoint.adapter_config.scaling == 2.0
    assert set(checkpoint.adapters) == set(tiny.TASKS)
    adapter = checkpoint.adapters["text-matching"]["model.layers.1.mlp.down_proj"]
    assert (adapter.a.shape, adapter.b.shape) == ((4, 96), (64, 4))
    assert "multi_vector_projector" in checkpoint.adapters["code"]
    assert sum(map(len, checkpoint.adapters.values())) * 2 == len(tiny.adapter_shapes())


def test_a_configuration_under_text_config_alone(folder: Path) -> None:
    want = Checkpoint.open(folder).config
    raw = json.loads((folder / "config.json").read_text())
    outer = {key: raw[key] for key in ("matryoshka_dims", "task_names", "text_config")}
    tiny.write_json(folder / "config.json", outer)
    assert Checkpoint.open(folder).config == want


def test_the_published_configuration_leaves_the_sizes_to_its_code() -> None:
    raw = tiny.config() | {"matryoshka_dims": None, "hidden_size": 2048, "num_attention_heads": 16, "text_config": {}}
    raw["rope_scaling"] = {"mrope_section": [16, 24, 24], "type": "default", "rope_type": "default"}
    assert TextConfig.from_json(raw, path="config.json").dimensions == (128, 256, 512, 1024, 2048)


def test_rope_parameters_of_newer_configurations(folder: Path) -> None:
    want = Checkpoint.open(folder).config
    raw = json.loads((folder / "config.json").read_text())
    for part in (raw, raw["text_config"]):
        part["rope_parameters"] = {**part.pop("rope_scaling"), "rope_theta": part.pop("rope_theta")}
    tiny.write_json(folder / "config.json", raw)
    assert Checkpoint.open(folder).config == want


class TestSource:
    def test_is_a_hash_of_the_contents(self, small_checkpoint: Path, folder: Path) -> None:
        want = Checkpoint.open(small_checkpoint).source
        assert want.startswith("sha256:")
        assert Checkpoint.open(folder).source == want
        raw = bytearray((folder / SHARDS[1]).read_bytes())
        raw[-1] ^= 1
        (folder / SHARDS[1]).write_bytes(raw)
        assert Checkpoint.open(folder).source != want

    def test_is_the_revision_of_a_hub_snapshot(self, hub_cache: Path) -> None:
        assert Checkpoint.open(hub_cache).source == "org/some-model@0123abcd"


@pytest.fixture
def hub_cache(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A local hub cache: a snapshot's files are links to blobs."""
    cache = tmp_path / "models--org--some-model"
    snapshot = cache / "snapshots" / "0123abcd"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abcd")
    for number, path in enumerate(sorted(path for path in small_checkpoint.rglob("*") if path.is_file())):
        shutil.copyfile(path, cache / "blobs" / f"blob{number}")
        link = snapshot / path.relative_to(small_checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        depth = len(link.relative_to(cache).parts) - 1
        link.symlink_to(Path(*[".."] * depth, "blobs", f"blob{number}"))
    return cache


class TestHubCache:
    @pytest.mark.parametrize("inside", [".", "snapshots/0123abcd"])
    def test_cache_folder_or_snapshot(self, small_checkpoint: Path, hub_cache: Path, inside: str) -> None:
        found, want = Checkpoint.open(hub_cache / inside), Checkpoint.open(small_checkpoint)
        name = "model.layers.0.self_attn.q_proj.weight"
        np.testing.assert_array_equal(found.read_rows(name), want.read_rows(name))

    def test_main_is_the_one_that_refs_name(self, hub_cache: Path) -> None:
        (hub_cache / "snapshots" / "ffff").mkdir()
        assert Checkpoint.open(hub_cache).folder.revision == "0123abcd"

    def test_several_snapshots_and_no_main(self, hub_cache: Path) -> None:
        (hub_cache / "snapshots" / "ffff").mkdir()
        (hub_cache / "refs" / "main").unlink()
        with pytest.raises(CheckpointError, match="expected one snapshot, found 2; name one"):
            Checkpoint.open(hub_cache)

    def test_a_link_out_of_the_cache_is_refused(self, hub_cache: Path, small_checkpoint: Path) -> None:
        link = hub_cache / "snapshots" / "0123abcd" / SHARDS[1]
        link.unlink()
        link.symlink_to(small_checkpoint / SHARDS[1])
        with pytest.raises(CheckpointError, match=rf"{SHARDS[1]}: a link that leaves"):
            Checkpoint.open(hub_cache)


def test_the_licence_of_the_readme(folder: Path) -> None:
    assert Checkpoint.open(folder).licence() == {}
    head = "---\nlicense: other\nlicense_name: 'qwen-research'\ntags:\n- a: b\n---\n# Title\nlicense: not this\n"
    (folder / "README.md").write_text(head)
    assert Checkpoint.open(folder).licence() == {"license": "other", "license_name": "qwen-research"}


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("---\r\nlicense: mit\r\n---\r\n# A title\r\n", "mit"),
        ('---\nlicense: "mit" # as it was\n---\n', "mit"),
        ("---\nlicense: >-\n  cc-by-nc-4.0\n---", "cc-by-nc-4.0"),
        ("---\nmodel-index: 5\nlicense: mit\n---\n", "mit"),
        ("# A title\n\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("---\n---\n", None),
        ("", None),
    ],
)
def test_a_readmes_head_is_read_as_yaml(folder: Path, head: str, licence: str | None) -> None:
    """Windows' line ends, comments and folded texts; what is not at the top, or not closed, is no head."""
    (folder / "README.md").write_bytes(head.encode())
    assert Checkpoint.open(folder).licence().get("license") == licence


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("license: [mit, apache-2.0]", r"README.md: license=\['mit', 'apache-2.0'\]: expected a text"),
        ("license: other\nlicense_name: 1.0", r"README.md: license_name=1.0: expected a text"),
        ("license: 'mit", r"README.md: invalid front matter \(while scanning"),
        ("license: {{ licence }}", r"README.md: invalid front matter"),
        ("- license: mit", r"README.md: invalid front matter \(repo card metadata block should be a dict\)"),
        ("1: mit", r"README.md: invalid front matter"),
        ("license: " + "[" * 5000, r"README.md: invalid front matter"),
    ],
)
def test_a_licence_that_cannot_be_read_is_not_left_out(folder: Path, head: str, said: str) -> None:
    (folder / "README.md").write_text(f"---\n{head}\n---\n")
    with pytest.raises(CheckpointError, match=said) as caught:
        Checkpoint.open(folder).licence()
    assert "\n" not in str(caught.value)
