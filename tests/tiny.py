"""A tiny random checkpoint in exactly the layout of jina-embeddings-v4: BF16, two shards, three adapters, vision.

Its bytes depend on the seed alone, on any machine and numpy: they come from a bit generator's raw stream, whose
stability numpy promises, through exact arithmetic. Scaled so that hidden states stay of order one and each
adapter changes its matrix about as much as the matrix is large: the three tasks give clearly different vectors.
"""

import json
import shutil
import struct
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STARTER = Path(__file__).parents[1] / "data" / "src" / "nestling_data" / "starter" / "checkpoint"
TASKS = ("retrieval", "text-matching", "code")
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 2, 64, 4, 2, 16, 96
VOCAB, SMALL_VOCAB = 24064, 384
PROJECTED, RANK, ALPHA = 32, 4, 8
DIMENSIONS = (16, 32, 64)

Shape = tuple[int, ...]
Tensors = dict[str, NDArray[np.uint16]]


def write_tiny_checkpoint(folder: Path, *, seed: int = 1, vocab: int = VOCAB) -> Path:
    """Write the checkpoint into `folder` (made if need be) and return it.

    The starter's tokenizer; with a smaller `vocab`, its first entries and eight rows of padding.
    """
    (folder / "adapters").mkdir(parents=True, exist_ok=True)
    noise = Noise(seed)
    tensors = {name: noise.tensor(name, shape) for name, shape in base_shapes(vocab).items()}
    first = {name: tensor for name, tensor in tensors.items() if name.startswith("model.embed")}
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    weight_map: dict[str, str] = {}
    for number, part in enumerate((first, second), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        write_safetensors(folder / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    adapters = {name: noise.tensor(name, shape) for name, shape in adapter_shapes().items()}
    write_safetensors(folder / "adapters" / "adapter_model.safetensors", adapters)
    write_json(folder / "adapters" / "adapter_config.json", adapter_config())
    write_json(folder / "config.json", config(vocab))
    shutil.copyfile(STARTER / "tokenizer_config.json", folder / "tokenizer_config.json")
    if vocab == VOCAB:
        shutil.copyfile(STARTER / "tokenizer.json", folder / "tokenizer.json")
    else:
        write_json(folder / "tokenizer.json", cut_tokenizer(vocab - 16))
    return folder


class Noise:
    """Uniform weights from a seed, as the upper halves of float32 (BF16, cut off)."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def tensor(self, name: str, shape: Shape) -> NDArray[np.uint16]:
        raw = self._bits.random_raw(prod(shape)) >> np.uint64(40)  # 24 bits: exact in float32
        unit = raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)  # [-1, 1), variance 1/3
        centre, spread = _scale(name, shape)
        return bf16(unit * np.float32(spread) + np.float32(centre)).reshape(shape)


def _scale(name: str, shape: Shape) -> tuple[float, float]:
    if "norm" in name or "ln_q" in name:
        return 1.0, 0.25
    if "embed_tokens" in name:
        return 0.0, 1.0
    if name.endswith("bias"):
        return 0.0, 0.5
    return 0.0, sqrt(3 / prod(shape[1:]))


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32 numbers: BF16 by cutting off, which is enough for random weights."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """The format of the safetensors project: header length, JSON header, tensors without holes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    write_raw_safetensors(path, header, b"".join(tensor.tobytes() for tensor in tensors.values()))


def write_raw_safetensors(path: Path, header: dict[str, Any], data: bytes) -> None:
    """A safetensors file whose header may say anything."""
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def read_raw_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """A sound safetensors file's header and data, to be written again with a fault in it."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def cut_tokenizer(entries: int) -> dict[str, Any]:
    """The starter's tokenizer with the first `entries` of its vocabulary, its eight special tokens behind them."""
    tokenizer: dict[str, Any] = json.loads((STARTER / "tokenizer.json").read_text("utf-8"))
    model = tokenizer["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < entries}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    for number, token in enumerate(tokenizer["added_tokens"], entries):
        token["id"] = number
    return tokenizer


def base_shapes(vocab: int = VOCAB) -> dict[str, Shape]:
    """Every tensor of the two shards, in the older naming."""
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes[f"{prefix}input_layernorm.weight"] = (HIDDEN,)
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in _matrices().items()}
        shapes |= {f"{prefix}self_attn.{name}_proj.bias": (_matrices()[f"self_attn.{name}_proj"][0],) for name in "qkv"}
        shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes |= {"multi_vector_projector.weight": (PROJECTED, HIDDEN), "multi_vector_projector.bias": (PROJECTED,)}
    return shapes | {f"visual.{name}": shape for name, shape in _vision().items()}


def _matrices() -> dict[str, Shape]:
    keys = KV_HEADS * HEAD_DIM
    return {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }


def _vision() -> dict[str, Shape]:
    return {
        "patch_embed.proj.weight": (16, 3, 2, 14, 14),
        "blocks.0.norm1.weight": (16,),
        "blocks.0.attn.qkv.weight": (48, 16),
        "blocks.0.attn.qkv.bias": (48,),
        "blocks.0.attn.proj.weight": (16, 16),
        "merger.ln_q.weight": (16,),
        "merger.mlp.2.weight": (HIDDEN, 64),
    }


def adapter_shapes() -> dict[str, Shape]:
    """Every tensor of the flat adapter file, in the newer naming that it has on disk."""
    modules = {
        f"model.language_model.layers.{n}.{name}": shape for n in range(LAYERS) for name, shape in _matrices().items()
    }
    modules["multi_vector_projector"] = (PROJECTED, HIDDEN)
    shapes: dict[str, Shape] = {}
    for module, (out, width) in modules.items():
        for task in TASKS:
            shapes[f"base_model.model.{module}.lora_A.{task}.weight"] = (RANK, width)
            shapes[f"base_model.model.{module}.lora_B.{task}.weight"] = (out, RANK)
    return shapes


def adapter_config() -> dict[str, Any]:
    return {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_dora": False, "use_rslora": False,
        "lora_bias": False, "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
        "task_names": list(TASKS),
    }  # fmt: skip


def config(vocab: int = VOCAB) -> dict[str, Any]:
    text = {
        "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "use_sliding_window": False, "tie_word_embeddings": True, "vocab_size": vocab,
    }  # fmt: skip
    return {
        "model_type": "jina_embeddings_v4", **text, "matryoshka_dims": list(DIMENSIONS), "task_names": list(TASKS),
        "auto_map": {"AutoModel": "modeling_jina_embeddings_v4.JinaEmbeddingsV4Model"}, "text_config": text,
    }  # fmt: skip
