"""What int8 arithmetic costs in the vector: the OpenVINO engine against float32 with the same file.

    python -m benchmarks.int8_cost --decoder FILE
    python -m benchmarks.int8_cost                      (the starter alone; rows of other models are kept)

Runs the starter's retrieval model in several file types and, with `--decoder`, any real GGUF file of the `llama`
architecture: a language model's, whose hidden states are pooled as an embedding model's are. It is rewritten as a
`qwen2` file first (rotary halves instead of pairs, biases of zero), then quantized. Texts are documents of the shipped
benchmark sets. Every file runs in groups of 32, 64 and 128; for comparison with the cost of the file's own rounding,
against the F16 file: both on the numpy engine. Groups that do not divide the file's widths are computed by
that engine too, on rounded numbers, the last group of a row being shorter. For the starter also nDCG@10, paired.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import tokenizers

from benchmarks import measuring
from nestling._util.cpu import usable_threads
from nestling.engine import batching
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.names import EngineName
from nestling.engine.numpy_reference import rms_norm, run_layer, turn
from nestling.engine.openvino import arithmetic
from nestling.engine.openvino.grouping import GROUPS, group_of, matrices
from nestling.engine.protocol import Item, TokenIds, plain
from nestling.engine.registry import load_engine
from nestling.engine.weights import input_rows, tensor
from nestling.evaluation import data, scoring
from nestling.evaluation.results import Scores
from nestling.formats.gguf import GGUFFile
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize_many
from nestling.spec import Role
from nestling.vectors import Floats, paired_cosine

KINDS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "IQ3_S")
SETS = ("perlfaq-en", "xling-manpages")
TEXTS, LONGEST = 40, 400
STARTER = "starter-retrieval"


def main() -> None:
    """Measure and write `benchmarks/results/int8-cost.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--decoder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        models = {STARTER: local.resolve(f"{STARTER}:F32")}
        if asked.decoder:
            models[asked.decoder.stem] = rewritten(asked.decoder, Path(name) / "decoder-F32.gguf")
        rows = [row for model, path in models.items() for row in _rows(model, path, Path(name))]
    found = {"rows": rows, "nDCG@10": _rankings()}
    if asked.decoder:
        path = measuring.write("int8-cost", found)
    else:
        old = json.loads((measuring.RESULTS / "int8-cost.json").read_text("utf-8"))["rows"]
        path = measuring.renew("int8-cost", found | {"rows": rows + [row for row in old if row["model"] != STARTER]})
    print(path.read_text())


def _rows(model: str, base: Path, folder: Path) -> list[dict[str, Any]]:
    outputs = {folder / f"{model}-{kind}.gguf": Mix(kind) for kind in KINDS}
    quantize_many(base, outputs, threads=usable_threads())
    ids = texts(GGUFFile.open(base))
    rows: list[dict[str, Any]] = []
    exact: Floats | None = None
    for path, kind in zip(outputs, KINDS, strict=True):
        wanted = _pooled(path, ids, EngineName.REFERENCE)
        exact = wanted if exact is None else exact
        row = {"model": model, "file_type": kind, "used": group_of(GGUFFile.open(path))}
        row["rounding"] = _cost(wanted, exact)
        for _, group in GROUPS:
            row[f"groups of {group}"] = _cost(_in_groups(path, ids, group), wanted)
        row["rows"] = _cost(_pooled(path, ids, EngineName.OPENVINO, ArithmeticName.INT8_ROWS), wanted)
        print(row, flush=True)
        rows.append(row)
    return rows


def texts(file: GGUFFile) -> list[TokenIds]:
    """Byte-level BPE with the file's vocabulary; symbols that it lacks are left out."""
    places = {token: place for place, token in enumerate(file.value("tokenizer.ggml.tokens"))}
    merges = [tuple(pair.split(" ")) for pair in file.value("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(places, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    documents = [text for name in SETS for text in _retrieval(name).documents[:TEXTS]]
    return [np.array(one.ids[:LONGEST], np.int32) for one in tokenizer.encode_batch(documents)]


def _retrieval(name: str) -> data.RetrievalSet:
    found = data.load(name)
    assert isinstance(found, data.RetrievalSet), name
    return found


def _pooled(
    path: Path, ids: list[TokenIds], engine: EngineName, arithmetic: ArithmeticName = ArithmeticName.AUTO
) -> Floats:
    loaded, items = load_engine(GGUFFile.open(path), name=engine, arithmetic=arithmetic), plain(ids)
    rows: dict[int, Floats] = {}
    for places in batching.plan([len(item) for item in items], loaded.token_budget, spare_pairs=loaded.spare_pairs):
        rows.update(zip(places, loaded.pool([items[place] for place in places]), strict=True))
    return np.stack([rows[place] for place in range(len(items))])


def _in_groups(path: Path, ids: list[TokenIds], group: int) -> Floats:
    file = GGUFFile.open(path)
    if any(info.shape[-1] % group for info in matrices(file)):
        return Rounded(file, group).pool(plain(ids))
    with patch.object(arithmetic, "group_of", lambda _: group):
        return _pooled(path, ids, EngineName.OPENVINO, ArithmeticName.INT8_GROUPS)


class Rounded:
    """Weights for the numpy engine's layers, the factors of every product rounded as the int8 path rounds them."""

    def __init__(self, file: GGUFFile, group: int) -> None:
        self._file, self._group, self._shape = file, group, Hyperparameters.of(file)
        self._matrices = {info.name: rounded(tensor(file, info.name), group) for info in matrices(file)}

    def vector(self, name: str) -> Floats:
        """A norm or bias."""
        return tensor(self._file, name)

    def times(self, x: Floats, name: str) -> Floats:
        """A product."""
        return rounded(x, self._group) @ self._matrices[name].T

    def pool(self, items: Sequence[Item]) -> Floats:
        """Mean states of texts: B -> (B, D)."""
        return np.stack([self._states(item).mean(0) for item in items])

    def _states(self, item: Item) -> Floats:
        x = input_rows(self._file, [item])
        for layer in range(self._shape.layers):
            x = run_layer(x, layer, weights=self, shape=self._shape, cos_sin=[turn(item, self._shape)])
        return rms_norm(x, self.vector("output_norm.weight"), self._shape.rms_eps)


def rounded(rows: Floats, group: int) -> Floats:
    """Rows to 255 steps a group, and back: (R, W)."""
    starts = range(0, rows.shape[1], group)
    parts = [rows[:, start : start + group] for start in starts]
    scales = [np.maximum(np.abs(part).max(1, keepdims=True) / 127, np.float32(1e-30)) for part in parts]
    return np.concatenate([np.rint(part / scale) * scale for part, scale in zip(parts, scales, strict=True)], 1)


def _cost(found: Floats, wanted: Floats) -> dict[str, float]:
    lost = 1 - paired_cosine(found, wanted)
    return {"mean": float(lost.mean()), "worst": float(lost.max())}


def _rankings() -> list[dict[str, Any]]:
    """The starter's Q8_0 and Q4_K_M on both engines."""
    rows = []
    for kind in ("Q8_0", "Q4_K_M"):
        for name in SETS:
            ours, exact = (_score(f"{STARTER}:{kind}", name, engine) for engine in ("openvino", "reference"))
            found = scoring.difference(ours, exact, "nDCG@10")
            means = {"int8": ours.means["nDCG@10"].mean, "float32": exact.means["nDCG@10"].mean}
            rows.append({"file_type": kind, "set": name, **means, "difference": [found.mean, found.low, found.high]})
            print(rows[-1], flush=True)
    return rows


def _score(reference: str, name: str, engine: str) -> Scores:
    model, benchmark = Embedder.load(reference, engine=engine), _retrieval(name)
    sides = [
        model.encode(texts, prompt_name=role, truncate=True)
        for texts, role in ((benchmark.queries, Role.QUERY), (benchmark.documents, Role.PASSAGE))
    ]
    return scoring.score(benchmark, scoring.Sides(*sides), model.spec.dimension(None))


def rewritten(path: Path, out: Path) -> Path:
    """A `llama` file as a `qwen2` file in float32, which the engines can run."""
    source = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in source.fields.items()}
    heads, groups = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    writer = gguf.GGUFWriter(out, "qwen2")
    _write_fields(writer, fields)
    width = fields["llama.embedding_length"]
    for one in source.tensors:
        rows = gguf.quants.dequantize(one.data, one.tensor_type).astype(np.float32)
        turned = {"attn_q": heads, "attn_k": groups}.get(one.name.split(".")[-2])
        writer.add_tensor(one.name, rows if turned is None else _halves(rows, turned, width // heads))
    for layer in range(fields["llama.block_count"]):
        for side, count in (("q", heads), ("k", groups), ("v", groups)):
            zeros = np.zeros(count * width // heads, np.float32)
            writer.add_tensor(f"blk.{layer}.attn_{side}.bias", zeros)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _halves(rows: Floats, heads: int, size: int) -> Floats:
    """Rotary pairs (2i, 2i + 1) of every head as pairs (i, i + d/2)."""
    return rows.reshape(heads, size // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _write_fields(writer: gguf.GGUFWriter, fields: dict[str, Any]) -> None:
    writer.add_block_count(fields["llama.block_count"])
    writer.add_context_length(fields["llama.context_length"])
    writer.add_embedding_length(fields["llama.embedding_length"])
    writer.add_feed_forward_length(fields["llama.feed_forward_length"])
    writer.add_head_count(fields["llama.attention.head_count"])
    writer.add_head_count_kv(fields["llama.attention.head_count_kv"])
    writer.add_rope_freq_base(fields["llama.rope.freq_base"])
    writer.add_layer_norm_rms_eps(fields["llama.attention.layer_norm_rms_epsilon"])
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(fields["tokenizer.ggml.tokens"])
    writer.add_token_merges(fields["tokenizer.ggml.merges"])
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_eos_token_id(fields["tokenizer.ggml.eos_token_id"])


if __name__ == "__main__":
    main()
