"""Others on the same card beside our engine, on the same random weights' shape: a part of `gpu_speed`.

transformers is optional. `--llama` names llama-bench of a build with CUDA, or a Python that has llama-cpp-python.
"""

import importlib
import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_plan import Plan
from nestling.engine import batching
from nestling.engine.protocol import Item
from nestling.engine.torch.choice import fastest

BUDGET = 8192
"""Tokens of a batch, padding included: that of our engine on a card."""
HERE = Path(__file__).parent
LIMIT_S = 90
WORDS = 200
"""Most characters of a peer's error."""


def transformers(plan: Plan) -> dict[str, Any]:
    """Tokens a second of transformers' Qwen2 in bfloat16, mean-pooled, texts of similar length padded together."""
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        return {"skipped": f"transformers is not installed ({error})"}
    shape = plan.sizes.shape
    config = library.Qwen2Config(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, intermediate_size=shape.feed_forward, vocab_size=shape.vocabulary,
        rms_norm_eps=shape.rms_eps, max_position_embeddings=shape.context,
    )  # fmt: skip
    with torch.device(plan.on.device):
        model = library.Qwen2Model(config).to(torch.bfloat16).eval()
    batches = _padded(plan.texts(plan.sizes.mixed), plan.on.device)
    seconds = fastest(partial(_embed, model, batches), plan.on)
    return {"version": library.__version__, "tokens/s mixed": sum(plan.sizes.mixed) / seconds}


def _padded(items: Sequence[Item], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Batches of ids and masks, on the device."""
    found = []
    for places in batching.plan([len(item) for item in items], BUDGET, spare_pairs=batching.SPARE_PAIRS):
        rows = [torch.from_numpy(items[place].ids).long() for place in places]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        found.append((ids.to(device), mask.long().to(device)))
    return found


def _embed(model: Any, batches: Sequence[tuple[Tensor, Tensor]]) -> None:  # noqa: ANN401 - transformers is optional
    with torch.inference_mode():
        for ids, mask in batches:
            states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            ((states * mask[..., None]).sum(1) / mask.sum(1)[:, None]).float().cpu()


def llama(plan: Plan) -> dict[str, Any]:
    """Tokens a second of llama.cpp on the same file; its own words where it fails."""
    if plan.llama is None:
        return {"skipped": "no --llama"}
    try:
        return _by_python(plan, plan.llama) if plan.llama.name.startswith("python") else _by_bench(plan, plan.llama)
    except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
        words = getattr(error, "stderr", None) or str(error)
        return {"failed": " ".join(words.split())[-WORDS:]}


def _by_bench(plan: Plan, program: Path) -> dict[str, Any]:
    """llama-bench: prompts of every length, as embeddings, all layers on the card, flash attention."""
    lengths = ",".join(str(length) for length in plan.sizes.lengths if length <= BUDGET)
    options = ["-p", lengths, "-n", "0", "-ngl", "99", "-fa", "1", "-embd", "1", "-b", "8192", "-ub", "8192", "-r", "2"]
    rows = json.loads(_ran([str(program), "-m", str(plan.noise), *options, "-o", "json"]))
    found = {f"tokens/s at {row['n_prompt']}": row["avg_ts"] for row in rows}
    return {"build": rows[0]["build_commit"], "backends": rows[0].get("backends")} | found


def _by_python(plan: Plan, python: Path) -> dict[str, Any]:
    """llama-cpp-python (`native_llama`): the mixed texts, after one run that warms up."""
    texts = json.dumps([item.ids.tolist() for item in plan.texts(plan.sizes.mixed)])
    command = [str(python), str(HERE / "native_llama.py"), str(plan.noise), str(plan.on.threads), "0"]
    *_, seconds = map(float, _ran(command, f"{texts}\n{texts}\n").split())
    return {"tokens/s mixed": sum(plan.sizes.mixed) / seconds}


def _ran(command: Sequence[str], given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return done.stdout
