"""Broken and hostile checkpoints: each is refused in one line that names the file and the tensor or field.

Nothing half-written is left, and nothing that could run code is opened.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.broken import (
    ADAPTERS,
    FIRST,
    INDEX,
    LORA,
    SECOND,
    Change,
    Q,
    build,
    cut,
    drop,
    in_config,
    in_json,
    put,
    refused,
    remove,
    rename,
    weight,
    whole,
)

from nestling.errors import BuildError, CheckpointError
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.convert import convert
from nestling.spec import Task

LORA_B = "base_model.model.model.language_model.layers.1.mlp.down_proj.lora_B.code.weight"


@pytest.fixture
def folder(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


def test_the_sound_checkpoint_is_built(folder: Path) -> None:
    build(folder)
    assert [path.name for path in (folder.parent / "out").iterdir()] == ["model.gguf"]


# -- tensors ----------------------------------------------------------------------------------------------------------

NORM = "model.layers.1.input_layernorm.weight"
TENSORS: dict[str, tuple[Change, str]] = {
    "NaN": (weight(SECOND, Q, float("nan")), f"{SECOND}: {Q}: row 63 holds NaN or infinity"),
    "infinity": (weight(SECOND, NORM, float("inf")), f"{NORM}: row 63 holds NaN or infinity"),
    "NaN in the embedding": (
        weight(FIRST, "model.embed_tokens.weight", float("-inf")),
        "model.embed_tokens.weight: row 383 holds",
    ),
    "NaN in an adapter": (weight(ADAPTERS, LORA_B, float("nan")), f"{LORA_B}: row 63 holds NaN"),
    "missing": (drop(SECOND, NORM), f"the tensor {NORM} is missing"),
    "missing bias": (drop(SECOND, "model.layers.0.self_attn.v_proj.bias"), "self_attn.v_proj.bias is missing"),
    "surplus": (rename(SECOND, "visual.merger.ln_q.weight", "lm_head.weight"), "lm_head.weight: not a tensor of this"),
    "named twice": (
        rename(SECOND, NORM, "model.language_model.norm.weight"),
        "model.language_model.norm.weight and model.norm.weight are the same|"
        "model.norm.weight and model.language_model.norm.weight are the same",
    ),
    "a layer too many": (in_config("num_hidden_layers", 1), r"model.layers.1.*not a tensor|changes model.layers.1"),
    "a layer too few": (in_config("num_hidden_layers", 3), r"lacks model.layers.2.mlp.down_proj"),
    "other width": (in_config("intermediate_size", 128), r"shape \(96, 64\): expected \(128, 64\), by config.json"),
    "other vocabulary": (in_config("vocab_size", 400), r"embed_tokens.weight: shape \(384, 64\)"),
}


@pytest.mark.parametrize("fault", TENSORS)
def test_unsound_tensors(folder: Path, fault: str) -> None:
    change, message = TENSORS[fault]
    change(folder)
    refused(folder, message)


def test_a_weight_that_f16_cannot_hold(folder: Path) -> None:
    weight(SECOND, Q, 1e6)(folder)
    refused(folder, "blk.0.attn_q.weight: .*e?.* does not fit F16", error=BuildError)
    out = folder.parent / "model.gguf"
    convert(Checkpoint.open(folder), task=Task.CODE, out=out, family="tiny", file_type="BF16")
    assert out.exists()


@pytest.mark.parametrize(("change", "message"), [(cut(SECOND, 9000), "the file ends"), (remove(SECOND), "cannot be")])
def test_a_shard_that_changes_while_it_is_read(folder: Path, change: Change, message: str) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.source
    change(folder)
    out = folder.parent / "out" / "model.gguf"
    with pytest.raises(CheckpointError, match=rf"{SECOND}: model\..*: {message}"):
        convert(checkpoint, task=Task.CODE, out=out, family="tiny")
    assert not list(out.parent.iterdir())


# -- adapters ---------------------------------------------------------------------------------------------------------


def both_sides(module: str, other: str) -> Change:
    """Another module's name for an adapter."""

    def apply(folder: Path) -> None:
        for side in ("lora_A", "lora_B"):
            name = LORA_B.replace("lora_B", side)
            rename(ADAPTERS, name, name.replace(module, other))(folder)

    return apply


ADAPTER: dict[str, tuple[Change, str]] = {
    "no configuration": (remove(LORA), f"{LORA}: no such file"),
    "no weights": (remove(ADAPTERS), f"{ADAPTERS}: no such file"),
    "no rank": (put(LORA, "r", None), f"{LORA}: r=None: expected a positive integer"),
    "other rank": (put(LORA, "r", 8), r"lora_A.*shape \(4, \d+\): expected \(8, \d+\), for rank 8"),
    "rank as a float": (put(LORA, "r", 4.0), "r=4.0: expected a positive integer"),
    "no alpha": (in_json(LORA, lambda raw: raw.pop("lora_alpha")), "lora_alpha=None: expected a positive number"),
    "alpha 0": (put(LORA, "lora_alpha", 0), "lora_alpha=0: expected a positive number"),
    "alpha below 0": (put(LORA, "lora_alpha", -4), "lora_alpha=-4: expected a positive number"),
    "alpha infinite": (put(LORA, "lora_alpha", float("inf")), "lora_alpha=inf: expected a positive number"),
    "alpha of another rank": (put(LORA, "alpha_pattern", {"q_proj": 8}), "alpha_pattern=.*is not supported"),
    "ranks by module": (put(LORA, "rank_pattern", {"q_proj": 8}), "rank_pattern=.*is not supported"),
    "bias": (put(LORA, "bias", "lora_only"), "bias='lora_only' is not supported"),
    "DoRA": (put(LORA, "use_dora", value=True), "use_dora=True is not supported"),
    "rsLoRA": (put(LORA, "use_rslora", value=True), "use_rslora=True is not supported"),
    "another kind": (put(LORA, "peft_type", "IA3"), "peft_type='IA3' is not supported"),
    "saved modules": (put(LORA, "modules_to_save", ["norm"]), "modules_to_save=.*is not supported"),
    "task not listed": (put(LORA, "task_names", ["retrieval"]), "expected one of the tasks retrieval"),
    "task names no list": (put(LORA, "task_names", "code"), "task_names='code': expected a list"),
    "unknown task": (rename(ADAPTERS, LORA_B, LORA_B.replace("code", "cooking")), "cooking.*expected one of the tasks"),
    "unknown name": (rename(ADAPTERS, LORA_B, "model.more"), "model.more: expected a LoRA tensor name"),
    "DoRA tensor": (
        rename(ADAPTERS, LORA_B, LORA_B.replace("lora_B", "lora_magnitude_vector")),
        "lora_magnitude_vector.*expected a LoRA tensor name",
    ),
    "one side": (drop(ADAPTERS, LORA_B), "model.layers.1.mlp.down_proj for code: expected both lora_A and lora_B"),
    "of a norm": (
        rename(ADAPTERS, LORA_B, LORA_B.replace("mlp.down_proj", "input_layernorm")),
        "expected both lora_A and lora_B|no matrix of this name",
    ),
    "of nothing": (
        both_sides("mlp.down_proj", "mlp.side_proj"),
        "side_proj.*the checkpoint has no matrix of this name",
    ),
    "of the embedding": (both_sides("layers.1.mlp.down_proj", "embed_tokens"), r"for rank 4|changes model.embed"),
}


@pytest.mark.parametrize("fault", ADAPTER)
def test_unsound_adapters(folder: Path, fault: str) -> None:
    change, message = ADAPTER[fault]
    change(folder)
    refused(folder, message)


def test_a_task_without_an_adapter(folder: Path) -> None:
    header, _ = tiny.read_raw_safetensors(folder / ADAPTERS)
    for name in header:
        if ".code." in name:
            drop(ADAPTERS, name)(folder)
    refused(folder, "no adapter for code; it has retrieval, text-matching")
    out = folder.parent / "model.gguf"
    convert(Checkpoint.open(folder), task=Task.RETRIEVAL, out=out, family="tiny")
    assert out.exists()


def test_an_adapter_that_lacks_a_module(folder: Path) -> None:
    for side in ("lora_A", "lora_B"):
        drop(ADAPTERS, LORA_B.replace("lora_B", side))(folder)
    refused(folder, r"the adapter for code lacks model.layers.1.mlp.down_proj \(1 missing\)")


# -- configuration ----------------------------------------------------------------------------------------------------

ROPE = {"mrope_section": [2, 3, 3], "type": "default"}
CONFIG: dict[str, tuple[Change, str]] = {
    "none": (remove("config.json"), "config.json: no such file"),
    "a list": (whole("config.json", b"[]"), "config.json: expected a JSON object"),
    "a key twice": (whole("config.json", b'{"a":1,"a":1}'), "config.json: not valid JSON .duplicate key 'a'"),
    "no layers": (
        in_config("num_hidden_layers", 0),
        "config.json: num_hidden_layers=0: expected a positive integer",
    ),
    "layers without end": (
        in_config("num_hidden_layers", 10**9),
        "num_hidden_layers=1000000000: expected at most 1000",
    ),
    "positions beyond 2^31": (in_config("max_position_embeddings", 2**40), "max_position_embeddings=1099511627776"),
    "layers as text": (in_config("num_hidden_layers", "2"), "num_hidden_layers='2'"),
    "true layers": (in_config("num_hidden_layers", value=True), "num_hidden_layers=True"),
    "heads that do not fit": (
        in_config("num_attention_heads", 3),
        "num_attention_heads=3: times head_dim=21: expected hidden_size=64",
    ),
    "more heads than width": (in_config("num_attention_heads", 128), "head_dim=0"),
    "KV heads that do not fit": (in_config("num_key_value_heads", 3), "num_key_value_heads=3: expected a divisor of"),
    "other activation": (in_config("hidden_act", "gelu"), "hidden_act='gelu' is not supported"),
    "sliding window": (in_config("use_sliding_window", value=True), "use_sliding_window=True is not supported"),
    "epsilon NaN": (in_config("rms_norm_eps", float("nan")), "rms_norm_eps=nan: expected a positive number"),
    "no rope": (in_config("rope_scaling", None), "mrope_section=None: expected three whole numbers"),
    "two sections": (in_config("rope_scaling", ROPE | {"mrope_section": [4, 4]}), "mrope_section=.* three"),
    "sections that do not sum": (
        in_config("rope_scaling", ROPE | {"mrope_section": [2, 3, 4]}),
        "expected a sum of half of head",
    ),
    "yarn": (in_config("rope_scaling", ROPE | {"type": "yarn"}), "rope_type='yarn': only default"),
    "rope a list": (in_config("rope_scaling", [1]), "rope_scaling=.*expected an object"),
    "sizes too large": (put("config.json", "matryoshka_dims", [32, 128]), "matryoshka_dims=.*sizes from 1 to 64"),
    "sizes no list": (put("config.json", "matryoshka_dims", 32), "matryoshka_dims=32: expected sizes"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json: no such file"),
    "a broken tokenizer": (cut("tokenizer.json", 1000), "tokenizer.json: not a tokenizer"),
}


@pytest.mark.parametrize("fault", CONFIG)
def test_unsound_configuration(folder: Path, fault: str) -> None:
    change, message = CONFIG[fault]
    change(folder)
    refused(folder, message)


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file"):
        with pytest.raises(CheckpointError, match=f"{name}: no such folder"):
            Checkpoint.open(tmp_path / name)


# -- code and pickles -------------------------------------------------------------------------------------------------


@pytest.fixture
def opened_files() -> Iterator[list[str]]:
    """The names of the files that this process opens, while the test runs."""
    names: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | os.PathLike):
            names.append(os.fspath(arguments[0]))

    sys.addaudithook(hook)  # cannot be taken back: it stops watching below
    yield names
    watching = False


@pytest.mark.filterwarnings("default")
def test_code_and_pickles_are_never_opened(folder: Path, opened_files: list[str]) -> None:
    bait = ["modeling_jina_embeddings_v4.py", "pytorch_model.bin", "adapters/adapter_model.bin", "training_args.pt"]
    for name in bait:
        (folder / name).write_text("raise SystemExit('executed')")
    del opened_files[:]
    build(folder)
    names = {Path(name).name for name in opened_files}
    assert SECOND in names
    assert not names & {Path(name).name for name in bait}


def test_only_pickles(folder: Path) -> None:
    for name in (FIRST, SECOND, INDEX):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(folder, r"no safetensors file \(\.bin and \.pt files are never read\)")
