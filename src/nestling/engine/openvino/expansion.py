"""Convert a GGUF file's matrices to their weight formats, folding in the rotation of a rotated arithmetic.

Any stored type is converted chunk by chunk on several threads, from the mmapped file straight into the weight store.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nestling.engine.openvino.grouping import kind_of
from nestling.engine.openvino.weight_formats.base import Arrays, WeightFormat, in_chunks, part
from nestling.engine.rotation import NORM_OF, Rotation, mixes_outputs
from nestling.engine.weights import as_float32, tensor
from nestling.formats.gguf import GGUFFile
from nestling.vectors import Floats

Read = Callable[[int, int], Floats]
"""Rows [start, stop) of a matrix in float32."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """Reads one file; `rotation`, if any, is folded into what is read."""

    file: GGUFFile
    rotation: Rotation | None
    threads: int

    def matrix(self, name: str, held: WeightFormat, into: Arrays) -> None:
        """Convert a matrix of the file; copied bit for bit where the weight format equals the stored one."""
        raw, stored = self.file.raw(name), self.file.tensors[name].kind

        def read(start: int, stop: int) -> Floats:
            return as_float32(np.ascontiguousarray(raw[start:stop]), stored)

        def take(start: int, stop: int) -> None:
            here = part(into, start, stop)
            if not held.copy(raw[start:stop], stored, here):
                held.fill(read(start, stop), here)

        if self.rotation is None:
            in_chunks(take, len(raw), self.threads)
        elif mixes_outputs(kind_of(name)):
            whole = self.outputs(name, tensor(self.file, name, threads=self.threads))
            self._turned(name, held, into, lambda start, stop: whole[start:stop])
        else:
            self._turned(name, held, into, read)

    def rows(self, name: str, rows: Floats, held: WeightFormat, into: Arrays) -> None:
        """Convert rows (R, in) that multiply the same input as the matrix `name`, such as a LoRA adapter's A."""
        self._turned(name, held, into, lambda start, stop: rows[start:stop])

    def outputs(self, name: str, columns: Floats) -> Floats:
        """Rotate what adds to the output of the matrix `name`, such as a LoRA adapter's B: (out, W) -> (out, W)."""
        return columns if self.rotation is None else self.rotation.outputs(kind_of(name), columns)

    def bias(self, name: str) -> Floats:
        """A bias: (out,)."""
        return self.outputs(name, tensor(self.file, name)[:, None])[:, 0]

    def norm(self, name: str) -> Floats:
        """A norm's scales; all 1 in a rotated arithmetic, which folds them into the matrices."""
        scales = tensor(self.file, name)
        return scales if self.rotation is None else np.ones_like(scales)

    def _turned(self, name: str, held: WeightFormat, into: Arrays, read: Read) -> None:
        def one(start: int, stop: int) -> None:
            held.fill(self._inputs(name, read(start, stop)), part(into, start, stop))

        in_chunks(one, len(into[0]), self.threads)

    def _inputs(self, name: str, rows: Floats) -> Floats:
        if self.rotation is None:
            return rows
        kind = kind_of(name)
        norm = NORM_OF.get(kind)
        return self.rotation.inputs(kind, rows, tensor(self.file, name.replace(kind, norm)) if norm else None)
