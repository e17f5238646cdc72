"""Record the reference rows and vectors of images from transformers and torch, in an environment of their own.

    python3.11 -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.14.1 torchvision==0.29.1 transformers==5.24.0 numpy==2.4.6
    /tmp/reference/bin/python -m tests.golden.record_images        (in the root of the repository)

Uses nothing of nestling. The checkpoint is `tests.tiny_vision`'s, one adapter merged by hand in float32, run by
transformers' Qwen2_5_VLModel in float32, one image at a time; pixels by its fast image processor. Vector: mean of the
last hidden states from <|vision_start|> to <|vision_end|>, L2. Multi-vector: every token through the projector, L2.

Writes images-tiny.npz beside this file, for each of `tests.pictures.PICTURES`:
    {name}/grid            (2,) rows and columns of patches
    {name}/rows            (tokens, width) the tower's output
    {name}/{task}          (width,) the vector
    {name}/{task}/tokens   multi-vectors, of SMALL pictures alone
and the last two once more with the merged matrices rounded to bfloat16 as {name}/{task}-bf16, for BF16 files.
"""

import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from tests.golden.record_vectors import TASKS, Reference, pooled, save
from tests.pictures import PICTURES
from tests.tiny_vision import write_vision_checkpoint

PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>\n"
PIXELS = {"min_pixels": 3136, "max_pixels": 602112}
SMALL = 100
"""Tokens up to which an image's multi-vectors are recorded."""


class Images(Reference):
    """A checkpoint with its vision tower in transformers' own classes, float32."""

    def _check_tokenizer(self, folder: Path) -> None:
        """The texts of the other recording are not for a small vocabulary."""

    @property
    def ids_of_prompt(self) -> list[int]:
        return self.ids(PROMPT)

    def whole(self, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
        """The text model with the tower."""
        skip = ("model_type", "torch_dtype")
        text = {key: value for key, value in self.config["text_config"].items() if key not in skip}
        special = {name: self.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
        config = transformers.Qwen2_5_VLConfig(
            text_config=text,
            vision_config=self.config["vision_config"],
            image_token_id=special["image_pad"],
            video_token_id=special["video_pad"],
            vision_start_token_id=self.tokenizer.convert_tokens_to_ids("<|vision_start|>"),
            vision_end_token_id=self.tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        )
        model = transformers.Qwen2_5_VLModel(config)
        state = {_name(name): tensor for name, tensor in tensors.items() if not name.startswith("multi_vector")}
        model.load_state_dict(state, strict=True)
        found: torch.nn.Module = model.float().eval()
        return found


def _name(name: str) -> str:
    return name if name.startswith("visual.") else f"language_model.{name.removeprefix('model.')}"


def processed(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches and the grid of a picture: (N, 1176), (1, 3)."""
    processor = transformers.Qwen2VLImageProcessor(**PIXELS)
    found = processor(images=[Image.fromarray(PICTURES[name]())], return_tensors="pt")
    return found["pixel_values"].float(), found["image_grid_thw"]


def run(model: Any, ids: list[int], name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An image's grid, the rows of the tower and the last hidden states of every token."""
    patches, grid = processed(name)
    tokens = int(grid.prod()) // 4
    place = ids.index(model.config.image_token_id)
    whole = torch.tensor([[*ids[:place], *[ids[place]] * tokens, *ids[place + 1 :]]])
    with torch.inference_mode():
        rows = model.visual(patches, grid_thw=grid)
        rows = rows if isinstance(rows, torch.Tensor) else rows.pooler_output
        kinds = (whole == ids[place]).int()
        states = model(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            pixel_values=patches,
            image_grid_thw=grid,
            mm_token_type_ids=kinds,
            use_cache=False,
        ).last_hidden_state[0]
    return grid[0, 1:], rows, states


def record(reference: Images) -> dict[str, NDArray[Any]]:
    """Everything of every picture and task."""
    arrays: dict[str, NDArray[Any]] = {}
    ids = reference.ids_of_prompt
    start = ids.index(reference.tokenizer.convert_tokens_to_ids("<|vision_start|>"))
    arrays["prompt"] = np.array(ids, np.int32)
    for task, kind in product(TASKS, ("", "-bf16")):
        merged = reference.merged(task)
        tensors = {name: tensor.bfloat16().float() for name, tensor in merged.items()} if kind else merged
        model = reference.whole(tensors)
        weight, bias = merged["multi_vector_projector.weight"], merged["multi_vector_projector.bias"]
        for name in PICTURES:
            grid, rows, states = run(model, ids, name)
            arrays[f"{name}/grid"] = grid.numpy()
            arrays[f"{name}/rows"] = rows.numpy()
            arrays[f"{name}/{task}{kind}"] = pooled(states[start : start + len(rows) + 2]).float().numpy()
            if len(rows) <= SMALL:
                projected = (states @ weight.T + bias).double()
                unit = projected / projected.norm(dim=1, keepdim=True)
                arrays[f"{name}/{task}{kind}/tokens"] = unit.float().numpy()
            print(f"{task}{kind} {name}: {tuple(grid.tolist())}, {len(rows)} tokens, states {states.abs().max():.1f}")
    return arrays


def main() -> None:
    """Record everything."""
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        save("images-tiny.npz", record(Images(write_vision_checkpoint(Path(folder)))))


if __name__ == "__main__":
    main()
