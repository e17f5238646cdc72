"""Quantize a float GGUF file into one or several others, in one pass over it and in bounded memory.

The source is read in pieces of rows. Worker threads dequantize a piece, check it and quantize it for every output; the
calling thread writes the results in order. The bytes do not depend on the number of threads. `plan` decides the types.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nestling._util.cpu import usable_threads
from nestling._util.progress import Progress, no_progress
from nestling.errors import BuildError, UsageError
from nestling.formats.ggml import all_finite, dequantize_rows, quantize_rows
from nestling.formats.gguf import GGUFFile, GGUFWriter, TensorInfo, open_writer
from nestling.formats.mmproj import is_tower
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.plan import Mix, QuantizePlan, plan

PIECE_WEIGHTS = 1 << 20
"""Weights of a piece: 4 MiB of float32."""

_F16_END = 65520.0  # the smallest float32 that rounds to infinity in float16


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """A written file: its hash, size, bits per weight, and the type of every tensor.

    `errors` has the relative squared error of every quantized tensor, with columns weighted by the importance matrix
    if there is one.
    """

    path: Path
    file_type: str
    sha256: str
    size_bytes: int
    bits_per_weight: float
    types: Mapping[str, QuantType]
    errors: Mapping[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The tensor with the largest error, and the error; an empty name if nothing was quantized."""
        return max(self.errors.items(), key=lambda item: item[1], default=("", 0.0))


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor's type in one output, and its column weights (W,)."""

    kind: QuantType
    importance: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class _Job:
    """Rows `first` to `last` of a tensor, for every output."""

    info: TensorInfo
    first: int
    last: int
    targets: Sequence[_Target]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A job's bytes in one output; the weighted sum of squared errors there, and of the squares."""

    made: NDArray[np.uint8]
    lost: float = 0.0
    whole: float = 0.0


@dataclass(frozen=True, slots=True)
class _Done:
    """A job's source rows, (R, bytes of a row), and its piece for every output."""

    name: str
    raw: NDArray[np.uint8]
    pieces: Sequence[_Piece]


def quantize(
    source: Path, *, out: Path, mix: Mix, threads: int | None = None, progress: Progress = no_progress
) -> QuantizeReport:
    """Quantize an F32, F16 or BF16 file to `out` with the types of `mix`; `threads`: all usable processors by default.

    BuildError naming the tensor for a source with NaN, infinity or values that overflow a type.
    """
    return quantize_many(source, {out: mix}, threads=threads, progress=progress)[0]


def quantize_many(
    source: Path, mixes: Mapping[Path, Mix], *, threads: int | None = None, progress: Progress = no_progress
) -> list[QuantizeReport]:
    """`quantize` several files in one pass: output path -> mix. Each is written atomically."""
    file = GGUFFile.open(source)
    if is_tower(file):
        raise UsageError(f"{source}: a vision tower, which stays BF16: expected a text model's file", param="source")
    for out in mixes:
        if out.exists() and out.samefile(source):
            raise UsageError(f"{out}: this is the source; give the quantized file another name", param="out")
    plans = [plan(file, mix) for mix in mixes.values()]
    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_writer(out, made.metadata, made.tensors))
            for out, made in zip(mixes, plans, strict=True)
        ]
        errors = _stream(file, plans, writers, threads=_thread_count(threads), progress=progress)
    return [_report(*parts) for parts in zip(mixes, plans, writers, errors, strict=True)]


def _report(path: Path, made: QuantizePlan, writer: GGUFWriter, errors: Mapping[str, float]) -> QuantizeReport:
    return QuantizeReport(
        path,
        made.mix.file_type,
        writer.sha256,
        writer.size_bytes,
        made.bits_per_weight,
        {tensor.name: tensor.kind for tensor in made.tensors},
        errors,
    )


def _thread_count(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}: expected at least 1", param="threads")
    return threads or usable_threads()


def _stream(
    file: GGUFFile, plans: Sequence[QuantizePlan], writers: Sequence[GGUFWriter], *, threads: int, progress: Progress
) -> list[dict[str, float]]:
    """Write all outputs; returns the relative error of every quantized tensor, by output."""
    sums: list[dict[str, NDArray[np.float64]]] = [{} for _ in plans]
    total, done = sum(info.size_bytes for info in file.tensors.values()), 0
    with ThreadPoolExecutor(threads) as pool:
        for result in _in_order(pool, file, _jobs(file, plans), ahead=2 * threads):
            for writer, piece, mine in zip(writers, result.pieces, sums, strict=True):
                writer.write(piece.made)
                mine[result.name] = mine.get(result.name, 0.0) + np.array((piece.lost, piece.whole))
            file.forget(result.raw)
            done += result.raw.nbytes
            progress(done, total)
    return [{name: float(lost / whole) for name, (lost, whole) in mine.items() if whole} for mine in sums]


def _jobs(file: GGUFFile, plans: Sequence[QuantizePlan]) -> Iterator[_Job]:
    for index, info in enumerate(file.tensors.values()):
        targets = [_target(made, index) for made in plans]
        rows, width = file.raw(info.name).shape[0], info.shape[-1]
        step = max(1, PIECE_WEIGHTS // width)
        for first in range(0, rows, step):
            yield _Job(info, first, min(first + step, rows), targets)


def _target(made: QuantizePlan, index: int) -> _Target:
    head, matrix = made.tensors[index], made.mix.imatrix
    return _Target(head.kind, None if matrix is None else matrix.importance(head.name))


def _in_order(pool: ThreadPoolExecutor, file: GGUFFile, jobs: Iterable[_Job], *, ahead: int) -> Iterator[_Done]:
    """The results in the order of the jobs; at most `ahead` are computed ahead of the one being written."""
    waiting: deque[Future[_Done]] = deque()
    for job in jobs:
        waiting.append(pool.submit(partial(_run, file, job)))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _run(file: GGUFFile, job: _Job) -> _Done:
    raw = file.raw(job.info.name)[job.first : job.last]
    rows = dequantize_rows(raw, job.info.kind)
    where = f"{file.path}: {job.info.name}"
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise BuildError(f"{where}: row {job.first + bad} holds NaN or infinity; convert the checkpoint again")
    return _Done(job.info.name, raw, [_piece(raw, rows, job.info.kind, target, where) for target in job.targets])


def _piece(raw: NDArray[np.uint8], rows: NDArray[np.float32], source: QuantType, target: _Target, where: str) -> _Piece:
    made = _made(raw, rows, source, target, where)
    if target.kind.is_float or target.kind is source:
        return _Piece(made)
    weights = np.ones(rows.shape[1], np.float32) if target.importance is None else target.importance
    return _Piece(
        made, *(weighted_squares(part, weights) for part in (dequantize_rows(made, target.kind) - rows, rows))
    )


def weighted_squares(rows: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    """The sum of squares with column weights: (R, W), (W,) -> a number."""
    return float(np.einsum("rw,rw->w", rows, rows) @ weights)


def _made(
    raw: NDArray[np.uint8], rows: NDArray[np.float32], source: QuantType, target: _Target, where: str
) -> NDArray[np.uint8]:
    if target.kind is source:
        return raw
    if target.kind is QuantType.F16 and np.abs(rows).max() >= _F16_END:
        raise BuildError(f"{where}: {np.abs(rows).max():g} overflows F16 (65504); choose BF16 or F32")
    made = quantize_rows(rows, target.kind, target.importance)
    if not all_finite(made, target.kind):
        raise BuildError(f"{where}: its values overflow {target.kind.name}; choose BF16 or F32")
    return made
