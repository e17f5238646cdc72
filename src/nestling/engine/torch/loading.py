"""Load a GGUF file's weights onto a device: each matrix in turn is dequantized, rotated where wanted, and packed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.lora_lanes import StackedAdapters
from nestling.engine.rotation import NORM_OF, spread
from nestling.engine.torch.arithmetic import Arithmetic
from nestling.engine.torch.devices import Placement
from nestling.engine.torch.products import INNER
from nestling.engine.torch.text import Layer, Linear, Stage, TextModel
from nestling.engine.weights import tensor
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.vectors import Floats

_HALVES = {QuantType.BF16: torch.bfloat16, QuantType.F16: torch.float16}


@dataclass(frozen=True)
class Loader:
    """Builds the text model of a file (with its LoRA adapters) on a device, in one arithmetic."""

    file: GGUFFile
    on: Placement
    arithmetic: Arithmetic
    adapters: Sequence[Adapter] = ()

    def text_model(self, stage: Stage) -> TextModel:
        """Dequantize, rotate and pack all weights."""
        shape = Hyperparameters.of(self.file)
        return TextModel(
            shape=shape,
            arithmetic=self.arithmetic,
            table=self._table(),
            layers=[self._layer(f"blk.{place}.") for place in range(shape.layers)],
            output_norm=self._read("output_norm.weight"),
            stage=stage,
        )

    def _table(self) -> Tensor:
        """Embedding rows, (V, D); in float32 no longer than it takes to convert them."""
        table, rotation = self._read("token_embd.weight"), self.arithmetic.rotation
        if rotation is not None:
            table = rotation.enter(table)
        return table.to(self.arithmetic.dtype)

    def gates(self) -> Tensor | None:
        """Row i is the gate of an item that takes adapter i: (adapters, lanes) float32; None without adapters."""
        return self._up(StackedAdapters(self.adapters).gates()) if self.adapters else None

    def _layer(self, at: str) -> Layer:
        norms = {name: self._read(f"{at}{name}.weight") for name in ("attn_norm", "ffn_norm")}
        return Layer(
            attn_norm=norms["attn_norm"],
            qkv=self._linear(at, ("attn_q", "attn_k", "attn_v"), norms, bias=True),
            attn_output=self._linear(at, ("attn_output",), norms),
            ffn_norm=norms["ffn_norm"],
            gate_up=self._linear(at, ("ffn_gate", "ffn_up"), norms),
            down=self._linear(at, ("ffn_down",), norms),
        )

    def _linear(self, at: str, kinds: Sequence[str], norms: dict[str, Tensor], *, bias: bool = False) -> Linear:
        names = tuple(f"{at}{kind}.weight" for kind in kinds)
        parts = [self._folded(kind, self._read(name), norms) for kind, name in zip(kinds, names, strict=True)]
        sizes, columns = [len(part) for part in parts], None
        if self.adapters:
            lanes = StackedAdapters(self.adapters)
            parts.append(self._inputs(kinds[0], self._up(lanes.rows(names)), norms))
            columns = self._outputs(kinds, self._up(lanes.columns(names)), sizes).to(self.arithmetic.dtype)
        added = self._bias(at, kinds, sizes, sum(map(len, parts))) if bias else None
        return Linear(names, self.arithmetic.pack(torch.cat(parts)), added, sum(sizes), columns)

    def _bias(self, at: str, kinds: Sequence[str], sizes: Sequence[int], rows: int) -> Tensor:
        """Biases, concatenated, zero for the adapters' lanes: (rows,)."""
        flat = self._outputs(kinds, torch.cat([self._read(f"{at}{kind}.bias") for kind in kinds]), sizes)
        return torch.nn.functional.pad(flat, (0, rows - len(flat))).to(self.arithmetic.bias_dtype)

    def _folded(self, kind: str, w: Tensor, norms: dict[str, Tensor]) -> Tensor:
        return self._outputs((kind,), self._inputs(kind, w, norms), (len(w),))

    def _inputs(self, kind: str, w: Tensor, norms: dict[str, Tensor]) -> Tensor:
        rotation = self.arithmetic.rotation
        if rotation is None:
            return w
        if kind == "ffn_down":
            return spread(w, INNER, rotation.lift)
        return rotation.inputs(kind, w, norms[NORM_OF[kind]] if kind in NORM_OF else None)

    def _outputs(self, kinds: Sequence[str], w: Tensor, sizes: Sequence[int]) -> Tensor:
        rotation = self.arithmetic.rotation
        if rotation is None:
            return w
        columns = w.view(len(w), -1)  # a bias is one column
        parts = zip(kinds, columns.split(list(sizes)), strict=True)
        return torch.cat([rotation.outputs(kind, part) for kind, part in parts]).view(w.shape)

    def _read(self, name: str) -> Tensor:
        """A tensor in float32; half-precision ones are converted on the device, which halves what is transferred."""
        info = self.file.tensors[name]
        if info.kind not in _HALVES:
            return self._up(tensor(self.file, name, threads=self.on.threads))
        stored = torch.from_numpy(np.array(self.file.raw(name)).view(np.int16)).view(_HALVES[info.kind])
        return stored.reshape(info.shape).to(self.on.device).float()

    def _up(self, array: Floats) -> Tensor:
        """Copy to the device: arrays of float32 files are read-only views of the file."""
        return torch.from_numpy(np.array(array) if not array.flags.writeable else array).to(self.on.device)
