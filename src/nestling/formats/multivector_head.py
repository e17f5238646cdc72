"""The multi-vector head of a task model: from a token's hidden state to a short unit vector.

    vector = normalise(W @ state + b)

with the task's LoRA adapter merged into W. The head is a separate file next to the model's files, shared by all their
file types, because stock llama.cpp refuses unknown tensors. The file names its checkpoint and task, which must be the
model's. Does not know engines or how the file is made (`conversion.multivector`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from nestling.errors import FileFormatError, GGUFError
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.spec import ModelSpec, Task, checked_family
from nestling.vectors import Floats, normalise

ARCHITECTURE = "nestling-multivector"
SUFFIX = "-multivector.gguf"
WEIGHT, BIAS = "multi_vector_projector.weight", "multi_vector_projector.bias"


def is_head(file: GGUFFile) -> bool:
    """True for a multi-vector head, by its architecture field."""
    field = file.metadata.get("general.architecture")
    return field is not None and field.value == ARCHITECTURE


def projector_path(folder: Path, *, family: str, task: Task) -> Path:
    """The published name of a task's head: `{family}-text-{task}-multivector.gguf`."""
    return folder / f"{checked_family(family)}-text-{task.stem}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class Projector:
    """One head: `weight` (P, D), `bias` (P,), and the `spec` of its model."""

    weight: Floats
    bias: Floats
    spec: ModelSpec

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check a file; GGUFError or FileFormatError when it is not a valid head."""
        file = GGUFFile.open(path)
        if (found := file.value("general.architecture")) != ARCHITECTURE:
            raise GGUFError(f"{path}: architecture {found!r}: expected {ARCHITECTURE!r}")
        try:
            spec = ModelSpec.from_json(str(file.value("nestling.spec")))
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from None
        weight, bias = _floats(file, WEIGHT, 2), _floats(file, BIAS, 1)
        if weight.shape != (len(bias), spec.dimensions[-1]):
            raise GGUFError(f"{path}: {WEIGHT} has shape {weight.shape}, expected {(len(bias), spec.dimensions[-1])}")
        return cls(weight, bias, spec)

    @property
    def width(self) -> int:
        """Components of a token's vector."""
        return len(self.bias)

    def check_fits(self, path: Path, model: ModelSpec) -> None:
        """FileFormatError, naming the head's file, unless checkpoint and task are the model's."""
        for what, theirs, ours in (
            ("task", self.spec.task, model.task),
            ("width", self.spec.dimensions[-1], model.dimensions[-1]),
            ("checkpoint", self.spec.source, model.source),
        ):
            if theirs != ours and not (what == "checkpoint" and _is_revision_of(str(theirs), str(ours))):
                raise FileFormatError(
                    f"{path}: made for another model: its {what} is {theirs}, this model's {ours or 'not known'}"
                )

    def project(self, states: Floats) -> Floats:
        """Token states to token vectors: (T, D) -> (T, P) float32, unit rows."""
        return normalise(np.asarray(states @ self.weight.T + self.bias))


def _is_revision_of(theirs: str, ours: str) -> bool:
    """True where `ours` is the repository of `theirs` without a revision, as published files name it."""
    return bool(ours) and "@" not in ours and theirs.partition("@")[0] == ours


def _floats(file: GGUFFile, name: str, rank: int) -> Floats:
    raw, info = file.raw(name), file.tensors[name]
    if info.kind is not QuantType.F32 or len(info.shape) != rank:
        raise GGUFError(f"{file.path}: {name} is {info.kind.name} of shape {info.shape}: expected F32 of rank {rank}")
    values = raw.view(np.float32).reshape(info.shape)
    if not np.isfinite(values).all():
        raise GGUFError(f"{file.path}: {name} holds NaN or infinity")
    return values.copy()
