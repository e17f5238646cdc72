"""LoRA adapters of a base model: read from GGUF files in llama.cpp's format and checked against the base.

An adapter changes every matrix of a layer: W becomes W + scaling * B @ A with A (rank, in) and B (out, rank); scaling
is alpha / rank, as in `llama-adapter.cpp`. Does not know how an engine applies them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from nestling.engine.hyperparameters import LAYER_MATRICES, Hyperparameters
from nestling.engine.weights import tensor
from nestling.errors import FileFormatError, GGUFError, ModelNotFoundError
from nestling.formats.gguf import GGUFFile
from nestling.spec import BASE_FIELD, ModelSpec, Task, adapter_path
from nestling.vectors import Floats

A, B = ".lora_a", ".lora_b"


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter file; `spec` says its task, prefixes and dimensions."""

    file: GGUFFile
    spec: ModelSpec

    @classmethod
    def open(cls, path: Path, base: GGUFFile) -> Self:
        """Read and check. FileFormatError for an unsound file and for an adapter of another base."""
        file = GGUFFile.open(path)
        for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
            found = file.metadata[key].value if key in file.metadata else None
            if found != wanted:
                raise GGUFError(f"{path}: {key}={found!r}: expected {wanted!r}, as in a LoRA adapter")
        _check_base(file, base)
        try:
            spec = ModelSpec.from_json(str(file.value("nestling.spec")))
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from None
        if spec.source != base.value(BASE_FIELD):
            raise FileFormatError(
                f"{path}: expected an adapter of {base.value(BASE_FIELD)}, the base {base.path}; "
                f"found one of {spec.source}"
            )
        shape, context = Hyperparameters.of(base), base.value(f"{base.value('general.architecture')}.context_length")
        if spec.dimensions[-1] != shape.hidden or spec.max_tokens > context:
            raise FileFormatError(
                f"{path}: nestling.spec says {spec.dimensions[-1]} dimensions and {spec.max_tokens} tokens, the base "
                f"{base.path} has {shape.hidden} and {context}"
            )
        return cls(file, spec)

    @cached_property
    def rank(self) -> int:
        """The LoRA rank, the same for all matrices."""
        return next(info.shape[0] for name, info in self.file.tensors.items() if name.endswith(A))

    @cached_property
    def scaling(self) -> float:
        """The factor of B @ A: alpha / rank."""
        return float(self.file.value("adapter.lora.alpha")) / self.rank

    def sides(self, name: str) -> tuple[Floats, Floats]:
        """The LoRA pair of a matrix by its name: A (rank, in), B (out, rank), float32."""
        return tensor(self.file, name + A), tensor(self.file, name + B)


def _check_base(file: GGUFFile, base: GGUFFile) -> None:
    architecture = base.value("general.architecture")
    if file.value("general.architecture") != architecture:
        raise FileFormatError(
            f"{file.path}: expected an adapter for {architecture}, the base {base.path}; "
            f"found {file.value('general.architecture')}"
        )
    alpha = file.value("adapter.lora.alpha")
    if not isinstance(alpha, float) or not 0 < alpha < 1 << 16:
        raise GGUFError(f"{file.path}: adapter.lora.alpha={alpha!r:.80}: expected a float above 0 and below 65536")
    first = file.tensors.get(f"blk.0.{LAYER_MATRICES[0]}.weight{A}")
    rank = first.shape[0] if first else 0
    wanted = dict(_expected(Hyperparameters.of(base), rank))
    for name, shape in wanted.items():
        info = file.tensors.get(name)
        if info is None or info.shape != shape or not info.kind.is_float:
            found = f"{info.kind.name} {info.shape}" if info else "none"
            raise FileFormatError(
                f"{file.path}: {name}: expected F16 or F32 of shape {shape} for the base {base.path}, found {found}"
            )
    if surplus := sorted(file.tensors.keys() - wanted.keys()):
        raise FileFormatError(f"{file.path}: {surplus[0]}: the base {base.path} has no such matrix to change")


def _expected(shape: Hyperparameters, rank: int) -> list[tuple[str, tuple[int, int]]]:
    sizes = shape.tensors()
    names = [f"blk.{layer}.{matrix}.weight" for layer in range(shape.layers) for matrix in LAYER_MATRICES]
    sides = [((name + A, (rank, sizes[name][1])), (name + B, (sizes[name][0], rank))) for name in names]
    return [side for pair in sides for side in pair]


def load_adapters(base: GGUFFile) -> Sequence[Adapter]:
    """Load the adapters of all tasks, in the order of `Task`, from the base's folder.

    ModelNotFoundError when one is missing, FileFormatError when one does not fit the base or its file name.
    """
    found = []
    for task in Task:
        path = adapter_path(base.path.parent, task)
        if not path.is_file():
            raise ModelNotFoundError(
                f"{path}: no such file: {base.path.name} needs one adapter per task in its folder; `nestling"
                " build --keep-adapters` makes them"
            )
        adapter = Adapter.open(path, base)
        if adapter.spec.task is not task:
            raise FileFormatError(
                f"{path}: an adapter for {adapter.spec.task}; by its file name, expected one for {task}"
            )
        found.append(adapter)
    return found
