"""Importance matrices: the mean square of every input column of each weight matrix, and llama.cpp's file format.

The file is GGUF with `general.type = imatrix`; every tensor has `<name>.in_sum2` (sums of squares, F32) and
`<name>.counts` (tokens, F32), as in `tools/imatrix/imatrix.cpp`. Does not know engines: the caller passes the function
that runs the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nestling._util.progress import Progress, no_progress
from nestling.errors import BuildError
from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.file_types import is_quantizable

SUMS, COUNTS = ".in_sum2", ".counts"
MIN_TOKENS = 1024
"""The fewest calibration tokens, two chunks of the default size: with fewer, the column means are mostly noise."""

TensorSums = tuple[NDArray[Any], int]
Collect = Callable[[Sequence[Sequence[int]]], Mapping[str, TensorSums]]
"""Runs token-id sequences; returns for every tensor its input's sums of squares (W,) and the token count."""


@dataclass(frozen=True, slots=True)
class ColumnSums:
    """The input of one tensor: `in_sum2` (W,) float32, squares of each column summed over `count` tokens."""

    in_sum2: NDArray[np.float32]
    count: int

    @property
    def mean_square(self) -> NDArray[np.float32]:
        """The importance of each column, (W,) float32, computed in float32 as in llama-quantize."""
        return self.in_sum2 / np.float32(self.count)


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Column sums by tensor name, and the calibration text that they were collected from.

    `file_name` is the name of the file that it was read from; empty for a newly collected one.
    """

    entries: Mapping[str, ColumnSums]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    file_name: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a GGUF importance matrix of nestling or llama-imatrix; BuildError for any other file."""
        file = GGUFFile.open(path)
        found = file.metadata.get("general.type")
        if found is None or found.value != "imatrix":
            raise BuildError(f"{path}: not an importance matrix (its general.type is not 'imatrix')")
        names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
        if not names:
            raise BuildError(f"{path}: an importance matrix without entries; collect it again")
        entries = {name: _read_entry(file, name) for name in names}
        chunks, size = (int(file.value(f"imatrix.{key}")) for key in ("chunk_count", "chunk_size"))
        return cls(entries, tuple(file.value("imatrix.datasets")), chunks, size, path.name)

    def write(self, path: Path, *, extra: Mapping[str, Field] | None = None) -> str:
        """Write the file, entries sorted by name, `extra` fields at the end; returns its SHA-256 in hex."""
        metadata = {
            "general.type": Field.string("imatrix"),
            "imatrix.datasets": Field.strings(self.datasets),
            "imatrix.chunk_count": Field.uint32(self.chunk_count),
            "imatrix.chunk_size": Field.uint32(self.chunk_size),
        }
        return write_gguf(path, metadata | dict(extra or {}), list(self._plans()))

    def importance(self, name: str) -> NDArray[np.float32] | None:
        """A tensor's column weights, (W,) float32; None without an entry."""
        entry = self.entries.get(name)
        return None if entry is None else entry.mean_square

    def check_covers(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """BuildError unless this is the importance matrix of the model with these tensors.

        Every matrix of a layer must have an entry of its width, and every entry of a layer must belong to a tensor of
        the model. The embedding and output matrices may be missing, since llama-imatrix leaves them out.
        """
        wanted = {name: shape[-1] for name, shape in shapes.items() if _in_layer(name) and is_quantizable(name, shape)}
        missing = [name for name in wanted if name not in self.entries]
        foreign = [name for name in self.entries if _in_layer(name) and name not in wanted]
        wrong = [name for name, width in wanted.items() if name not in missing and self._width(name) != width]
        if missing:
            raise BuildError(f"{self._label}: no entry for {_several(missing)}; collect a matrix with this model")
        if foreign:
            raise BuildError(f"{self._label}: the model has no {_several(foreign)}; this is another model's matrix")
        if wrong:
            name = wrong[0]
            raise BuildError(
                f"{self._label}: {name} has {self._width(name)} columns: expected the model's {wanted[name]};"
                " this is another model's matrix"
            )

    @property
    def _label(self) -> str:
        return self.file_name or "importance matrix"

    def _width(self, name: str) -> int:
        return self.entries[name].in_sum2.size

    def _plans(self) -> Iterator[TensorPlan]:
        for name, entry in sorted(self.entries.items()):
            count = np.array([entry.count], np.float32)
            yield _plan(name + SUMS, entry.in_sum2)
            yield _plan(name + COUNTS, count)


def collect_imatrix(
    chunks: Sequence[Sequence[int]],
    *,
    collect: Collect,
    dataset: str,
    chunk_size: int,
    batch: int = 8,
    progress: Progress = no_progress,
) -> ImportanceMatrix:
    """Run calibration chunks (token ids) through `collect`, `batch` at a time, and add up the sums.

    `dataset` is the text's name in the file, `chunk_size` the chunks' length in tokens. BuildError for too little text
    and for sums that are not finite. `progress` counts tokens.
    """
    total = sum(map(len, chunks))
    if total < MIN_TOKENS:
        raise BuildError(f"{dataset}: {total} tokens of calibration text; at least {MIN_TOKENS} are needed")
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    done = 0
    for start in range(0, len(chunks), batch):
        part = chunks[start : start + batch]
        for name, (squares, count) in collect(part).items():
            sums[name] = sums.get(name, 0.0) + squares.astype(np.float64)
            counts[name] = counts.get(name, 0) + count
        done += sum(map(len, part))
        progress(done, total)
    entries = {name: _entry(dataset, name, sums[name], counts[name]) for name in sums}
    return ImportanceMatrix(entries, (dataset,), len(chunks), chunk_size)


def _plan(name: str, values: NDArray[np.float32]) -> TensorPlan:
    return TensorPlan(name, (1, values.size), QuantType.F32, lambda: [values])


def _read_entry(file: GGUFFile, name: str) -> ColumnSums:
    sums, counts = _read_row(file, name + SUMS), _read_row(file, name + COUNTS)
    if counts.size != 1:
        raise BuildError(f"{file.path}: {name}{COUNTS} holds {counts.size} numbers: expected one")
    return _entry(str(file.path), name, sums, float(counts[0]))


def _read_row(file: GGUFFile, name: str) -> NDArray[np.float32]:
    info = file.tensors.get(name)
    if info is None:
        raise BuildError(f"{file.path}: the tensor {name} is missing; collect the matrix again")
    if info.kind is not QuantType.F32 or info.shape not in ((1, info.shape[-1]), (info.shape[-1],)):
        raise BuildError(f"{file.path}: {name} is {info.kind.name} {info.shape}: expected one row of F32")
    row: NDArray[np.float32] = file.raw(name).view(np.float32)[0]
    return row


def _entry(origin: str, name: str, sums: NDArray[Any], count: float) -> ColumnSums:
    """A checked entry: sums finite, none negative, not all zero, over at least one token."""
    with np.errstate(over="ignore"):  # reported below
        values = sums.astype(np.float32)
    if not np.isfinite(values).all() or not np.isfinite(count):
        raise BuildError(f"{origin}: {name} holds NaN or infinity; collect the matrix again")
    if values.min() < 0 or count < 1 or not values.any():
        raise BuildError(
            f"{origin}: {name}: expected sums of squares over at least one token; collect the matrix again"
        )
    return ColumnSums(values, int(count))


def _in_layer(name: str) -> bool:
    return name.startswith("blk.")


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
