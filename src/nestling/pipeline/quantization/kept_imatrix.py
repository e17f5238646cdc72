"""The cached importance matrix of a build: one file per task, reused while model and calibration text are unchanged.

Two additional fields of the file hold the identity of its sources and a hash of its sums. llama.cpp ignores them.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nestling._util.progress import Progress
from nestling.errors import BuildError, FileFormatError
from nestling.formats.gguf import Field, GGUFFile
from nestling.formats.quant_types import FLOAT_FILE_TYPES
from nestling.pipeline.quantization.imatrix import ImportanceMatrix
from nestling.spec import Task, stem_of

ORIGIN, DIGEST = "nestling.origin", "nestling.digest"
WITHOUT = (*FLOAT_FILE_TYPES, "Q8_0")
"""File types that do not use an importance matrix."""


@dataclass(frozen=True, slots=True)
class CollectMatrix:
    """How to collect the importance matrix of a float file: `run(path, progress in tokens)`.

    `calibration` identifies the calibration text, `tokens` estimates how many are run.
    """

    run: Callable[[Path, Progress], ImportanceMatrix]
    calibration: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class MadeMatrix:
    """A matrix and the SHA-256 of its file."""

    matrix: ImportanceMatrix
    sha256: str


def matrix_path(folder: Path, task: Task | None) -> Path:
    """The published name of a task's matrix, or the base's: `imatrix-{task}.gguf`."""
    return folder / f"imatrix-{stem_of(task)}.gguf"


def keep(path: Path, matrix: ImportanceMatrix, origin: str) -> MadeMatrix:
    """Write a matrix with the identity of its sources, and read it back."""
    extra = {ORIGIN: Field.string(origin), DIGEST: Field.string(_digest(matrix))}
    sha256 = matrix.write(path, extra=extra)
    return MadeMatrix(ImportanceMatrix.read(path), sha256)


def kept(path: Path, origin: str) -> MadeMatrix | None:
    """The matrix that an earlier run collected from the same sources; None if it is missing, stale or damaged.

    The file is rewritten, so that its bytes are canonical even if padding between the sums was damaged.
    """
    try:
        if not path.exists() or _said(path, ORIGIN) != origin:
            return None
        matrix = ImportanceMatrix.read(path)
    except (FileFormatError, BuildError):
        return None
    return keep(path, matrix, origin) if _said(path, DIGEST) == _digest(matrix) else None


def _said(path: Path, key: str) -> str:
    field = GGUFFile.open(path).metadata.get(key)
    return str(field.value) if field else ""


def _digest(matrix: ImportanceMatrix) -> str:
    found = hashlib.sha256(f"{matrix.datasets} {matrix.chunk_count} {matrix.chunk_size}".encode())
    for name, entry in sorted(matrix.entries.items()):
        found.update(f"{name} {entry.count}".encode() + entry.in_sum2.tobytes())
    return found.hexdigest()
