"""A tiny random GGUF model, written with `formats.gguf` alone: two layers of 256 units, a vocabulary of bytes.

Rows of 256 weights divide into every block that ggml has, so that each file type gets its true tensor types. Weights
are scaled so that hidden states stay of order one. Its tokenizer is byte-level with a few merges and special tokens.
"""

from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.quant_types import FILE_TYPES, QuantType
from nestling.pipeline.conversion.casts import cast_rows
from nestling.spec import ModelSpec, Task, prefixes_for

LAYERS, HIDDEN, HEADS, KV_HEADS, FEED_FORWARD = 2, 256, 4, 2, 512
KEYS = HIDDEN // HEADS * KV_HEADS
CONTEXT = 4096
DIMENSIONS = (32, 64, 128, 256)
MERGES = ("t h", "th e", "Ġ the", "i n", "e r", "a n", "Ġ a")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3

Shape = tuple[int, ...]


def tokens() -> list[str]:
    """The 256 byte symbols in order, the merged tokens, the special ones."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), *merged, *SPECIAL]


def spec(task: Task = Task.RETRIEVAL) -> ModelSpec:
    """What the file says that it is for."""
    return ModelSpec("tiny", task, DIMENSIONS, CONTEXT, prefixes_for(task), source="sha256:0")


def metadata(file_type: str, task: Task = Task.RETRIEVAL) -> dict[str, Field]:
    """Every field that both engines and the embedder need."""
    numbers = {
        "context_length": CONTEXT, "embedding_length": HIDDEN, "block_count": LAYERS,
        "feed_forward_length": FEED_FORWARD, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
        "pooling_type": 1,
    }  # fmt: skip
    fields = {
        "general.architecture": Field.string("qwen2vl"),
        "general.type": Field.string("model"),
        "general.file_type": Field.uint32(FILE_TYPES[file_type]),
    }
    fields |= {f"qwen2vl.{key}": Field.uint32(value) for key, value in numbers.items()}
    fields["qwen2vl.attention.layer_norm_rms_epsilon"] = Field.float32(1e-6)
    fields["qwen2vl.rope.freq_base"] = Field.float32(1e6)
    fields["qwen2vl.rope.dimension_sections"] = Field.int32s([8, 12, 12, 0])
    fields["nestling.spec"] = Field.string(spec(task).to_json())
    return fields | _tokenizer()


def _tokenizer() -> dict[str, Field]:
    vocabulary = tokens()
    types = [CONTROL_TOKEN if token in SPECIAL else NORMAL_TOKEN for token in vocabulary]
    fields = {
        "model": Field.string("gpt2"),
        "pre": Field.string("qwen2"),
        "tokens": Field.strings(vocabulary),
        "token_type": Field.int32s(types),
        "merges": Field.strings(MERGES),
        "eos_token_id": Field.uint32(vocabulary.index("<|im_end|>")),
        "padding_token_id": Field.uint32(vocabulary.index("<|endoftext|>")),
        "bos_token_id": Field.uint32(vocabulary.index("<|endoftext|>")),
        "add_bos_token": Field.boolean(False),  # noqa: FBT003 - the field's value
    }
    return {f"tokenizer.ggml.{key}": field for key, field in fields.items()}


def shapes() -> dict[str, Shape]:
    """Every tensor's shape."""
    layer: dict[str, Shape] = {
        "attn_norm.weight": (HIDDEN,), "attn_q.weight": (HIDDEN, HIDDEN), "attn_q.bias": (HIDDEN,),
        "attn_k.weight": (KEYS, HIDDEN), "attn_k.bias": (KEYS,), "attn_v.weight": (KEYS, HIDDEN),
        "attn_v.bias": (KEYS,), "attn_output.weight": (HIDDEN, HIDDEN), "ffn_norm.weight": (HIDDEN,),
        "ffn_gate.weight": (FEED_FORWARD, HIDDEN), "ffn_up.weight": (FEED_FORWARD, HIDDEN),
        "ffn_down.weight": (HIDDEN, FEED_FORWARD),
    }  # fmt: skip
    layers = {f"blk.{index}.{name}": shape for index in range(LAYERS) for name, shape in layer.items()}
    return {"token_embd.weight": (len(tokens()), HIDDEN), **layers, "output_norm.weight": (HIDDEN,)}


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights: matrices of gain one, norms about one, small biases."""
    rng = np.random.default_rng(seed)
    return {name: _scaled(rng.standard_normal(shape, np.float32), name) for name, shape in shapes().items()}


def _scaled(noise: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if "norm" in name:
        return 1 + noise * np.float32(0.1)
    if name.endswith("bias"):
        return noise * np.float32(0.3)
    if name.startswith("token_embd"):
        return noise
    return noise / np.float32(sqrt(noise.shape[1]))


def write(path: Path, file_type: str = "F32", *, task: Task = Task.RETRIEVAL, seed: int = 0, **changes: Any) -> Path:
    """Write the model as F32, F16 or BF16; `changes` are tensors by name with dots as double underscores."""
    arrays = weights(seed) | {name.replace("__", "."): value for name, value in changes.items()}
    plans = [_plan(name, array, QuantType[file_type]) for name, array in arrays.items()]
    write_gguf(path, metadata(file_type, task), plans)
    return path


def _plan(name: str, array: NDArray[np.float32], wanted: QuantType) -> TensorPlan:
    kind = wanted if array.ndim > 1 else QuantType.F32
    return TensorPlan(name, array.shape, kind, partial(_pieces, array, kind, name))


def _pieces(array: NDArray[np.float32], kind: QuantType, name: str) -> list[NDArray[Any]]:
    return [cast_rows(array, kind=kind, name=name)]
