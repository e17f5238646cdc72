"""Record the reference vectors of the tests from transformers and torch, in an environment of their own.

    python3.11 -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
    /tmp/reference/bin/python -m tests.golden.record_vectors            (in the root of the repository)
    /tmp/reference/bin/python -m tests.golden.record_vectors starter    (what hangs on the starter's weights)

Uses nothing of nestling: safetensors reads the weights, one adapter is merged by hand in float32, the text model is
transformers' Qwen2_5_VLTextModel (and Qwen2Model, as a check), the token ids are its tokenizer's. One text at a time,
so nothing is padded. Vector: mean over all tokens of the last hidden state, L2. A token's multi-vector: projector with
the merged adapter, L2.

Writes, beside this file,
    vectors-tiny.npz, vectors-starter.npz    {task}/{role}: (texts, width) float32; count/{prefix} and sha256/{prefix}:
                                             how many token ids a text has, and their hash as little-endian int32
    vectors-starter-long.npz                 the same for texts of about 2,000 tokens
    tokens-starter.npz                       {task}/{role}: (tokens of all short texts, projector width) float32
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file
from tests.golden.texts import LONG_TEXTS, SHORT_TEXTS, TEXTS
from tests.tiny import STARTER, write_tiny_checkpoint

HERE = Path(__file__).parent
TASKS = ("retrieval", "text-matching", "code")
PREFIXES = {
    (task, role): "Passage: " if role == "passage" and task != "text-matching" else "Query: "
    for task in TASKS
    for role in ("query", "passage")
}
Arrays = dict[str, NDArray[Any]]


class Reference:
    """A checkpoint in transformers' own classes, float32."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        self.tensors = {
            name: tensor.float() for path in folder.glob("model-*") for name, tensor in load_file(path).items()
        }
        self.adapters = load_file(folder / "adapters" / "adapter_model.safetensors")
        lora = json.loads((folder / "adapters" / "adapter_config.json").read_text("utf-8"))
        self.scaling = lora["lora_alpha"] / lora["r"]
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self._check_tokenizer(folder)

    def _check_tokenizer(self, folder: Path) -> None:
        auto = transformers.AutoTokenizer.from_pretrained(folder)
        for text in (*TEXTS, *LONG_TEXTS):
            assert self.ids(text) == auto(text)["input_ids"], f"AutoTokenizer differs on {text!r}"

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def merged(self, task: str) -> dict[str, torch.Tensor]:
        tensors = dict(self.tensors)
        for name, tensor in self.tensors.items():
            module = name.removesuffix(".weight").replace("model.layers", "model.language_model.layers")
            side = f"base_model.model.{module}.lora_{{}}.{task}.weight"
            if side.format("A") in self.adapters:
                a, b = (self.adapters[side.format(letter)].float() for letter in "AB")
                tensors[name] = tensor + self.scaling * (b @ a)
        return tensors

    def model(self, tensors: dict[str, torch.Tensor], kind: str) -> torch.nn.Module:
        module = (
            transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
            if kind == "vl"
            else transformers.models.qwen2.modeling_qwen2
        )
        config_class = transformers.Qwen2_5_VLTextConfig if kind == "vl" else transformers.Qwen2Config
        text = {
            key: value for key, value in self.config["text_config"].items() if key not in ("model_type", "torch_dtype")
        }
        if kind != "vl":
            text.pop("rope_scaling")
        model = (module.Qwen2_5_VLTextModel if kind == "vl" else module.Qwen2Model)(config_class(**text))
        state = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        model.load_state_dict(state, strict=True)
        assert model.config.rope_parameters["rope_theta"] == self.config["rope_theta"]
        found: torch.nn.Module = model.float().eval()
        return found


def states(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """Final-norm hidden states: (tokens, width)."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        return found


def pooled(hidden: torch.Tensor) -> torch.Tensor:
    mean = hidden.double().mean(0)
    unit: torch.Tensor = mean / mean.norm()
    return unit


def record(reference: Reference, texts: Sequence[str]) -> Arrays:
    """The single vectors of every task and role, and what the token ids were."""
    arrays: Arrays = {}
    for task in TASKS:
        tensors = reference.merged(task)
        model, check = reference.model(tensors, "vl"), reference.model(tensors, "qwen2")
        for role in ("query", "passage"):
            prefix = PREFIXES[task, role]
            ids = [reference.ids(prefix + text) for text in texts]
            vectors = torch.stack([pooled(states(model, one)) for one in ids])
            others = torch.stack([pooled(states(check, one)) for one in ids])
            worst = float((vectors * others).sum(1).min())
            print(
                f"{task}/{role}: {len(ids)} texts, {min(map(len, ids))} to {max(map(len, ids))} tokens; "
                f"cosine to Qwen2Model at least {worst:.9f}",
                flush=True,
            )
            arrays[f"{task}/{role}"] = vectors.float().numpy()
            arrays[f"count/{prefix.strip()}"] = np.array([len(one) for one in ids], np.int32)
            arrays[f"sha256/{prefix.strip()}"] = np.array([hashed(one) for one in ids])
    spread(arrays)
    return arrays


def hashed(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()


def spread(arrays: Arrays) -> None:
    """Say how far the tasks are apart: vectors that are all alike would prove nothing."""
    for one, other in (("retrieval", "text-matching"), ("retrieval", "code")):
        left, right = arrays[f"{one}/query"], arrays[f"{other}/query"]
        print(
            f"{one} to {other}: mean cosine {float((left * right).sum(1).mean()):.3f}; "
            f"between texts {float((left @ left.T).mean()):.3f}",
            flush=True,
        )


def record_tokens(reference: Reference, texts: Sequence[str]) -> Arrays:
    """The multi-vectors of every task and role."""
    arrays: Arrays = {}
    for task in TASKS:
        tensors = reference.merged(task)
        model = reference.model(tensors, "vl")
        weight, bias = tensors["multi_vector_projector.weight"], tensors["multi_vector_projector.bias"]
        for role in ("query", "passage"):
            hidden = torch.cat([states(model, reference.ids(PREFIXES[task, role] + text)) for text in texts])
            projected = (hidden @ weight.T + bias).double()
            arrays[f"{task}/{role}"] = (projected / projected.norm(dim=1, keepdim=True)).float().numpy()
    return arrays


def save(name: str, arrays: Arrays) -> None:
    np.savez_compressed(HERE / name, **arrays)  # type: ignore[arg-type]  # its keywords are the arrays
    print(f"{name}: {(HERE / name).stat().st_size} bytes", flush=True)


def main() -> None:
    """Record everything, or the starter alone."""
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, Python {sys.version.split()[0]}")
    torch.manual_seed(0)
    if sys.argv[1:] != ["starter"]:
        with tempfile.TemporaryDirectory() as folder:
            save("vectors-tiny.npz", record(Reference(write_tiny_checkpoint(Path(folder))), TEXTS))
    starter = Reference(STARTER)
    save("vectors-starter.npz", record(starter, TEXTS))
    save("vectors-starter-long.npz", record(starter, LONG_TEXTS))
    save("tokens-starter.npz", record_tokens(starter, SHORT_TEXTS))


if __name__ == "__main__":
    main()
