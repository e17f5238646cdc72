"""Positions: their angles, and that places far into a text are told apart in every arithmetic."""

import shutil
from pathlib import Path

import numpy as np
from tests.fakes import pool

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.rotary import Rotary
from nestling.formats.gguf import GGUFFile
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize
from nestling.vectors import paired_cosine

BIAS = 6
"""Such that scores differ by several units from one distance to the next, as with Qwen2.5's own large biases."""


def strongly_placed(source: Path, folder: Path) -> Path:
    """A model whose attention hangs on distances: queries and keys have large biases. As Q8_0."""
    copy = folder / "placed-F32.gguf"
    shutil.copyfile(source, copy)
    file, numbers = GGUFFile.open(source), np.memmap(copy, np.uint8, "r+")
    for name, info in file.tensors.items():
        if name.endswith(("attn_q.bias", "attn_k.bias")):
            bias = np.random.default_rng(0).normal(scale=BIAS, size=info.shape[0]).astype(np.float32)
            numbers[info.offset : info.offset + bias.nbytes] = bias.view(np.uint8)
    numbers.flush()
    return quantize(copy, out=folder / "placed-Q8_0.gguf", mix=Mix("Q8_0"), threads=1).path


def test_places_far_into_a_text_are_told_apart(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """0.999 is what a quantized file promises; positions rounded to bfloat16's 8 bits fall far below it."""
    file = GGUFFile.open(strongly_placed(tiny_models["F32"], tmp_path))
    ids = [np.random.default_rng(length).integers(0, 50, length).astype(np.int32) for length in (300, 900, 2000)]
    cosines = paired_cosine(pool(OpenVINOEngine(file, threads=1), ids), pool(ReferenceEngine(file), ids))
    assert cosines.min() >= 0.999, cosines


def test_angles_are_those_of_float64_at_every_position(tiny_models: dict[str, Path]) -> None:
    """Tolerance: half a step of float32 at one."""
    shape = Hyperparameters.of(GGUFFile.open(tiny_models["F32"]))
    rotary, positions = Rotary(shape), np.array([3, 0, 255, 257, 32_767, 4])
    speeds = shape.rope_theta ** (-2 * np.arange(shape.head_dim // 2) / shape.head_dim)
    angles = positions[:, None] * speeds
    for _ in range(2):  # the second time the table is there
        found = rotary.cos_sin(positions)
        np.testing.assert_allclose(found, np.concatenate((np.cos(angles), np.sin(angles)), 1), atol=2**-24, rtol=0)
