"""Decoders of other families at their published widths: Qwen2 files with last pooling, described by a specification.

The shapes are those of the published config.json of jina-code-embeddings-0.5b (Qwen2.5-Coder-0.5B: 14 heads of 64 over
2, rows of 896, which no block of 256 divides) and of models on Qwen2-1.5B (12 heads of 128 over 2) whose tokenizer puts
`<|endoftext|>` behind every text and whose vector is that token's (its feed-forward, 8960, is cut to a quarter). One
layer, a small vocabulary, random weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests import tiny_gguf
from tests.command_line import nestling

from nestling.engine.names import EngineName
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.protocol import Item
from nestling.errors import GGUFError
from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType
from nestling.inputs.tokenizer import Tokenizer
from nestling.models.embedder import Embedder
from nestling.models.families import read_spec
from nestling.pipeline.quantization.calibration import Calibration
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize
from nestling.spec import ModelSpec, Pooling, Task
from nestling.vectors import paired_cosine

LAYERS = 1
TEXTS = ["def add(a, b): return a + b", "x", "how to open a socket " * 5]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Family:
    """What the config.json of a family says, and its specification."""

    hidden: int
    heads: int
    kv_heads: int
    inner: int
    context: int
    theta: float
    ending: str | None
    spec: ModelSpec


def spec(name: str, *, width: int, most: int, query: str, passage: str) -> ModelSpec:
    prefixes = {"query": query, "passage": passage}
    return ModelSpec(name, Task.CODE, (64, width), most, prefixes, Pooling.LAST)


FAMILIES = {
    "jina-code-embeddings-0.5b": Family(
        896, 14, 2, 4864, 32768, 1e6, None,
        spec("jina-code-embeddings-0.5b", width=896, most=32768,
             query="Find the most relevant code snippet given the following query:\n",
             passage="Candidate code snippet:\n"),
    ),
    "Qwen2-1.5B with an ending": Family(
        1536, 12, 2, 2240, 131072, 1e6, "<|endoftext|>",
        spec("instructed-1.5b", width=1536, most=32000, passage="",
             query="Instruct: Given a question, retrieve code that answers it\nQuery: "),
    ),
}  # fmt: skip


def shapes(family: Family) -> dict[str, tuple[int, ...]]:
    hidden, keys, inner = family.hidden, family.hidden // family.heads * family.kv_heads, family.inner
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,), "attn_q.weight": (hidden, hidden), "attn_q.bias": (hidden,),
        "attn_k.weight": (keys, hidden), "attn_k.bias": (keys,), "attn_v.weight": (keys, hidden),
        "attn_v.bias": (keys,),
        "attn_output.weight": (hidden, hidden), "ffn_norm.weight": (hidden,), "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden), "ffn_down.weight": (hidden, inner),
    }  # fmt: skip
    layers = {f"blk.{index}.{name}": shape for index in range(LAYERS) for name, shape in layer.items()}
    return {"token_embd.weight": (len(tiny_gguf.tokens()), hidden), **layers, "output_norm.weight": (hidden,)}


def metadata(family: Family) -> dict[str, Field]:
    numbers = {
        "context_length": family.context, "embedding_length": family.hidden, "block_count": LAYERS,
        "feed_forward_length": family.inner, "attention.head_count": family.heads,
        "attention.head_count_kv": family.kv_heads,
    }  # fmt: skip
    fields = {"general.architecture": Field.string("qwen2"), "general.file_type": Field.uint32(1)}
    fields |= {f"qwen2.{key}": Field.uint32(value) for key, value in numbers.items()}
    fields["qwen2.attention.layer_norm_rms_epsilon"] = Field.float32(1e-6)
    fields["qwen2.rope.freq_base"] = Field.float32(family.theta)
    fields |= {key: field for key, field in tiny_gguf.metadata("F16").items() if key.startswith("tokenizer.")}
    if family.ending:
        fields["tokenizer.ggml.eos_token_id"] = Field.uint32(tiny_gguf.tokens().index(family.ending))
        fields["tokenizer.ggml.add_eos_token"] = Field.boolean(True)  # noqa: FBT003 - the field's value
    return fields


def weights(name: str, shape: tuple[int, ...]) -> list[Floats]:
    """Matrices of gain one, norms about one, biases large enough to be missed."""
    noise = np.random.default_rng([len(name), *name.encode()]).standard_normal(shape, np.float32)
    if "norm" in name:
        return [1 + noise * np.float32(0.1)]
    if name.endswith("bias"):
        return [noise * np.float32(0.5)]
    scale = 1.0 if name.startswith("token_embd") else 1 / sqrt(shape[1])
    return [(noise * np.float32(scale)).astype(np.float16)]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Family, Path]]:
    """A family, and its F16 file; the file is deleted afterwards."""
    family = FAMILIES[request.param]
    path = tmp_path_factory.mktemp("family") / "model-F16.gguf"
    plans = [
        TensorPlan(name, shape, QuantType.F16 if len(shape) > 1 else QuantType.F32, partial(weights, name, shape))
        for name, shape in shapes(family).items()
    ]
    write_gguf(path, metadata(family), plans)
    yield family, path
    path.unlink()


def wanted(path: Path, family: Family) -> Floats:
    """The oracle's state of the last token of every query, the ending's where there is one."""
    tokenizer, oracle = Tokenizer.from_gguf(GGUFFile.open(path)), ReferenceEngine(GGUFFile.open(path))
    ending = [tiny_gguf.tokens().index(family.ending)] if family.ending else []
    ids = tokenizer.encode([family.spec.prefixes["query"] + text for text in TEXTS])
    return np.stack([oracle.states(Item(np.array([*one, *ending], np.int32)))[-1] for one in ids])


def test_every_engine_gives_the_last_tokens_state(model: tuple[Family, Path]) -> None:
    """0.9999 as for every float file; together, in texts of different lengths."""
    family, path = model
    expected = wanted(path, family)
    for engine in (EngineName.OPENVINO, EngineName.LLAMACPP):
        loaded = Embedder.load(path, engine=engine, threads=2, spec=family.spec)
        found = loaded.encode(TEXTS)
        loaded.close()
        assert found.shape == (3, family.hidden)
        assert paired_cosine(found, expected).min() >= 0.9999, engine


def test_quantized_with_rows_that_blocks_do_not_divide(model: tuple[Family, Path], tmp_path: Path) -> None:
    """Q4_K_M falls back where it must; 0.999 to the oracle on the same file: activations in int8, as for every type."""
    family, path = model
    small = quantize(path, out=tmp_path / "model-Q4_K_M.gguf", mix=Mix("Q4_K_M"), threads=2)
    kinds = {small.types[f"blk.0.{name}.weight"] for name in ("attn_q", "ffn_up")}
    assert kinds == {QuantType.Q5_0 if family.hidden % 256 else QuantType.Q4_K}
    loaded = Embedder.load(small.path, engine=EngineName.OPENVINO, threads=2, spec=family.spec)
    assert paired_cosine(loaded.encode(TEXTS), wanted(small.path, family)).min() >= 0.999
    loaded.close()


def test_from_the_command_line(model: tuple[Family, Path], tmp_path: Path) -> None:
    family, path = model
    (tmp_path / "spec.json").write_text(family.spec.to_json())
    assert read_spec(tmp_path / "spec.json") == family.spec
    done = nestling("similarity", "-m", path, "--spec", tmp_path / "spec.json", "a", "a", "b")
    assert (done.code, done.err[:24]) == (0, "nestling: engine openvin")
    assert nestling("similarity", "-m", path, "a", "b").code == 1


def test_a_text_that_is_cut_keeps_its_ending() -> None:
    family = FAMILIES["Qwen2-1.5B with an ending"]
    file = GGUFFile(Path("x.gguf"), metadata(family), {}, np.empty(0, np.uint8))
    tokenizer = Tokenizer.from_gguf(file)
    end = tiny_gguf.tokens().index("<|endoftext|>")
    (ids,) = tokenizer.encode(["abcdef"])
    closed = tokenizer.close(ids)
    assert closed.tolist() == [*ids.tolist(), end]
    assert tokenizer.cut(closed, len(closed)).tolist() == closed.tolist()
    assert tokenizer.cut(closed, 3).tolist() == [*ids[:2].tolist(), end]
    assert tokenizer.cut(closed, 1).tolist() == [end]
    assert closed.dtype == np.int32


def test_calibration_texts_end_as_embedded_ones_do(tmp_path: Path) -> None:
    family = FAMILIES["Qwen2-1.5B with an ending"]
    file = GGUFFile(Path("x.gguf"), metadata(family), {}, np.empty(0, np.uint8))
    (tmp_path / "text.txt").write_text("one\n\ntwo is longer")
    texts = Calibration(family.spec, Tokenizer.from_gguf(file), tmp_path / "text.txt").texts(2, longest=9)
    assert {int(one[-1]) for one in texts} == {tiny_gguf.tokens().index("<|endoftext|>")}
    assert max(map(len, texts)) <= 9


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"add_bos_token": Field.boolean(True)}, "add_bos_token=True: expected False"),  # noqa: FBT003
        ({"eos_token_id": Field.uint32(10**6)}, "eos_token_id=1000000: expected 0 to"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Field], reason: str) -> None:
    fields = metadata(FAMILIES["Qwen2-1.5B with an ending"]) | {f"tokenizer.ggml.{k}": v for k, v in changes.items()}
    with pytest.raises(GGUFError, match=reason):
        Tokenizer.from_gguf(GGUFFile(Path("x.gguf"), fields, {}, np.empty(0, np.uint8)))
