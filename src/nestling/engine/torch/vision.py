"""The vision tower in torch: bfloat16 on a GPU, float32 on a CPU or if `exact`, any number of images in a run.

Patches are packed without padding, and window attention is attention over items of at most 64 patches. As in the other
towers, the residual stream, the norms, the rotary angles and the patch embedding are float32 in every arithmetic.

Memory beside the weights (1.3 GB at full size in bfloat16): about 35 KiB a patch, for the residual stream and a block's
queries, keys and values. All else is computed for `PIECE` patches at a time.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.torch.arithmetic import FloatArithmetic, Rows
from nestling.engine.torch.attention import Runs, attend
from nestling.engine.torch.devices import Placement
from nestling.engine.torch.failures import working
from nestling.engine.torch.text import pieces, rope
from nestling.engine.vision import Grid, check_patches, refuse_not_finite, tokens_of
from nestling.engine.weights import tensor
from nestling.engine.windows import GROUP, Layout
from nestling.formats.mmproj import VisionFile
from nestling.formats.tower_shape import CHANNELS
from nestling.vectors import Floats

PIECE = 4096
"""Patches whose feed-forward part is computed at once, a multiple of `GROUP`: 90 MiB at full size in bfloat16."""
PATCH_EMBEDDING = ("v.patch_embd.weight", "v.patch_embd.weight.1")


@dataclass(frozen=True, slots=True)
class Linear:
    """A product with its bias; `weight` may be several stacked matrices."""

    weight: Rows
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of one block; norms are (D,) float32."""

    ln1: Tensor
    qkv: Linear
    attn_out: Linear
    ln2: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Batch:
    """The patches of several images: cosines and sines (N, 1, d / 2), and which patches attend to each other."""

    cos: Tensor
    sin: Tensor
    windows: Runs
    images: Runs


class TorchTower:
    """An mmproj file on a device."""

    name = "torch"

    def __init__(self, vision: VisionFile, *, on: Placement, exact: bool = False) -> None:
        self._shape, self._path, self._on, self._lock = vision.shape, vision.file.path, on, threading.Lock()
        self._piece = PIECE
        name = ArithmeticName.FLOAT32 if exact or on.is_cpu else ArithmeticName.BF16
        self.arithmetic = FloatArithmetic(name, torch.float32 if name is ArithmeticName.FLOAT32 else torch.bfloat16)
        with torch.inference_mode(), working(self._path, on, "loading"):
            self._load(vision)

    def rows(self, patches: Sequence[Floats], grids: Sequence[Grid]) -> list[Floats]:
        """Patches and the grid of each image -> (tokens, D) each; when out of memory, again in half the pieces."""
        check_patches(patches, grids, self._shape)
        if not grids:
            return []
        layout = Layout.of(grids, self._shape)
        with self._lock, torch.inference_mode(), working(self._path, self._on, "computing"):
            states = self._retried(np.concatenate(patches)[layout.patches], layout)
        found = np.split(states[layout.merged], np.cumsum([tokens_of(grid) for grid in grids])[:-1])
        for image, one in enumerate(found):
            refuse_not_finite(finite=bool(np.isfinite(one).all()), image=image)
        return found

    def _retried(self, patches: Floats, layout: Layout) -> Floats:
        try:
            return self._run(patches, layout)
        except torch.OutOfMemoryError:
            if self._piece < PIECE:
                raise
        self._piece = PIECE // 2
        self._on.free_unused()
        return self._run(patches, layout)

    def _run(self, patches: Floats, layout: Layout) -> Floats:
        """Patches in the order of the layout: (N, values) -> (N / 4, out) rows in the same order."""
        cos, sin = self._up(layout.cos_sin)[:, None].chunk(2, -1)
        windows, images = (Runs.of(runs.tolist(), self._on.device) for runs in (layout.windows, layout.images))
        batch, every = Batch(cos, sin, windows, images), list(pieces(len(patches), self._piece))
        x = torch.cat([functional.linear(self._up(patches[piece]), self._embedding) for piece in every])
        for place, block in enumerate(self._blocks):
            self._attention(x, block, batch, full=self._shape.is_full(place))
            for piece in every:
                x[piece] += self._feed_forward(x[piece], block)
        found: Floats = torch.cat([self._merged(x[piece]) for piece in every]).cpu().numpy()
        return found

    def _attention(self, x: Tensor, block: Block, batch: Batch, *, full: bool) -> None:
        """Add a block's attention to `x`, in place."""
        every, d = list(pieces(len(x), self._piece)), self._shape.head_dim
        qkv = torch.cat([self._times(self._normed(x[piece], block.ln1), block.qkv) for piece in every])
        q, k, v = qkv.view(len(x), -1, d).chunk(3, 1)
        q, k = (rope(side, batch.cos, batch.sin) for side in (q, k))
        mixed = attend(q, k, v, batch.images if full else batch.windows, causal=False).view(len(x), -1)
        for piece in every:
            x[piece] += self._times(mixed[piece], block.attn_out)

    def _feed_forward(self, x: Tensor, block: Block) -> Tensor:
        both = self._times(self._normed(x, block.ln2), block.gate_up)
        return self._times(self.arithmetic.gated(both), block.down)

    def _merged(self, x: Tensor) -> Tensor:
        """The four patches of a group to a row of the text model: (N, D) -> (N / 4, out) float32."""
        first, second = self._merge
        y = self._normed(x, self._norm)
        assert isinstance(y, Tensor)
        return self._times(functional.gelu(self._times(y.view(len(x) // GROUP, -1), first)), second).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Rows:
        return self.arithmetic.normed(x, weight, self._shape.rms_eps)

    def _times(self, x: Rows, linear: Linear) -> Tensor:
        return self.arithmetic.times(x, linear.weight, linear.bias)

    def _load(self, vision: VisionFile) -> None:
        """Read all weights, a matrix at a time, into the arithmetic's form on the device."""
        read, hidden = _Reader(vision, self._on, self.arithmetic), self._shape.hidden
        frames = [read.tensor(name).view(hidden, CHANNELS, 1, -1) for name in PATCH_EMBEDDING]
        self._embedding = torch.cat(frames, 2).reshape(hidden, -1)
        self._blocks = [read.block(f"v.blk.{block}.") for block in range(self._shape.blocks)]
        self._norm, self._merge = read.tensor("v.post_ln.weight"), [read.linear(name) for name in ("mm.0", "mm.2")]

    def _up(self, array: NDArray[np.generic]) -> Tensor:
        return _uploaded(array, self._on)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads weights of a file onto a device."""

    vision: VisionFile
    on: Placement
    arithmetic: FloatArithmetic

    def block(self, at: str) -> Block:
        return Block(
            ln1=self.tensor(f"{at}ln1.weight"),
            qkv=self.linear(*(f"{at}attn_{side}" for side in "qkv")),
            attn_out=self.linear(f"{at}attn_out"),
            ln2=self.tensor(f"{at}ln2.weight"),
            gate_up=self.linear(f"{at}ffn_gate", f"{at}ffn_up"),
            down=self.linear(f"{at}ffn_down"),
        )

    def linear(self, *names: str) -> Linear:
        weight, bias = (torch.cat([self.tensor(f"{name}.{side}") for name in names]) for side in ("weight", "bias"))
        return Linear(self.arithmetic.pack(weight), bias.to(self.arithmetic.bias_dtype))

    def tensor(self, name: str) -> Tensor:
        return _uploaded(tensor(self.vision.file, name, threads=self.on.threads), self.on)


def _uploaded(array: NDArray[np.generic], on: Placement) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(on.device)
