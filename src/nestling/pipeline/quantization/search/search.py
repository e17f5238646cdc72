"""Choose the mix of tensor types with the lowest embedding error for a size budget; the result is a recipe.

For every matrix of a float model the weighted error of each type is measured on a sample of its rows, and once the
change of the pooled vectors when only that matrix is quantized to `PROBE`. The quotient is the matrix's sensitivity.
`allocation` allocates bits and refines the mix. Texts are calibration texts, never those of the benchmark sets.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nestling._util.progress import Progress, no_progress
from nestling.errors import BuildError, UsageError
from nestling.formats.ggml import dequantize_rows, quantize_rows
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import FILE_TYPES, QuantType
from nestling.inputs.tokenizer import Tokenizer
from nestling.pipeline.quantization.calibration import Calibration, default_text
from nestling.pipeline.quantization.file_types import demands_imatrix, is_quantizable
from nestling.pipeline.quantization.imatrix import ImportanceMatrix
from nestling.pipeline.quantization.plan import Mix, QuantizePlan, plan
from nestling.pipeline.quantization.quantize import weighted_squares
from nestling.pipeline.quantization.search.allocation import EXACT, Landscape, Sizes, Types, refine
from nestling.pipeline.quantization.search.probe import EMBEDDING, PerturbationProbe
from nestling.pipeline.quantization.search.recipe_file import MixRecipe
from nestling.spec import ModelSpec
from nestling.vectors import Floats

PROBE = QuantType.IQ4_XS
"""The type of the sensitivity measurement: in the middle of the range."""
CANDIDATES = tuple(kind for kind in QuantType if not kind.is_float)
TEXTS, LONGEST = 96, 64
"""How many calibration paragraphs are embedded per measurement, and how many tokens of each."""
SAMPLE_WEIGHTS, LEAST_ROWS = 1 << 17, 16
"""Weights and rows of the sample from which a tensor's error is estimated: at most, and at least."""
CHECKED = (QuantType.Q6_K, QuantType.Q3_K, QuantType.Q2_K)
"""Types whose estimated error is compared with a measured one, in every `CHECKED_EVERY`-th tensor."""
CHECKED_EVERY = 5
DEFAULT_TRIALS: Final = 100
STOCK_REFERENCE = [name for name in FILE_TYPES if name not in ("F32", "F16", "BF16")]


@dataclass(frozen=True, slots=True)
class Budget:
    """The size limit: bytes of the file, or bits per weight of its tensors; exactly one of them."""

    size_bytes: int | None = None
    bits_per_weight: float | None = None

    def __post_init__(self) -> None:
        """Check the limit."""
        if (self.size_bytes is None) is (self.bits_per_weight is None):
            raise UsageError("target: expected either a size or bits per weight", param="target")
        for param, value in (("target_size", self.size_bytes), ("target_bpw", self.bits_per_weight)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{param}={value}: expected a number above 0", param=param)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A chosen mix: its recipe, the plan of its file, and how good the estimates were.

    `correlation` is that of log estimated and log measured errors of `checked` single changes.
    """

    recipe: MixRecipe
    plan: QuantizePlan
    correlation: float
    checked: int
    trials: int


class _Trial:
    """An `allocation.Trial` of a model file, which replaces matrices by their quantized versions."""

    def __init__(self, probe: PerturbationProbe, matrix: ImportanceMatrix, *, threads: int) -> None:
        self._probe, self._matrix, self._threads = probe, matrix, threads
        self._made: dict[tuple[str, QuantType], Floats] = {}

    def settle(self, types: Types) -> float:
        return self._probe.settle(self._all(types))

    def error(self, changes: Types) -> float:
        return self._probe.error(self._all(changes))

    def _all(self, types: Types) -> dict[str, Floats]:
        return {name: self._weights(name, kind) for name, kind in types.items()}

    def _weights(self, name: str, kind: QuantType) -> Floats:
        if kind is EXACT:
            return self._probe.weights(name)
        if (name, kind) not in self._made:
            found = requantized(self._probe.weights(name), kind, self._matrix.importance(name), threads=self._threads)
            if not self._probe.keeps_weights:
                return found
            self._made[name, kind] = found
        return self._made[name, kind]


def requantized(rows: Floats, kind: QuantType, importance: Floats | None, *, threads: int = 1) -> Floats:
    """Quantize and dequantize rows: (R, W) -> (R, W)."""
    return dequantize_rows(quantize_rows(rows, kind, importance, threads=threads), kind, threads=threads)


@dataclass(frozen=True)
class Chooser:
    """Measures one float model; then chooses mixes for any number of budgets."""

    file: GGUFFile
    matrix: ImportanceMatrix
    landscape: Landscape
    trial: _Trial
    correlation: float
    checked: int

    @classmethod
    def measure(
        cls,
        source: Path,
        *,
        spec: ModelSpec,
        matrix: ImportanceMatrix,
        text: Path | None = None,
        threads: int,
        progress: Progress = no_progress,
    ) -> "Chooser":
        """Measure every matrix of a float file, with the shipped calibration text or `text`."""
        file = GGUFFile.open(source)
        if quantized := next((one for one in file.tensors.values() if not one.kind.is_float), None):
            raise BuildError(f"{source}: {quantized.name} is {quantized.kind.name}; choose a mix from the float file")
        shapes = {name: info.shape for name, info in file.tensors.items() if is_quantizable(name, info.shape)}
        matrix.check_covers({name: info.shape for name, info in file.tensors.items()})
        texts = Calibration(spec, Tokenizer.from_gguf(file), text or default_text()).texts(TEXTS, longest=LONGEST)
        probe = PerturbationProbe(file, texts, pooling=spec.pooling)
        trial = _Trial(probe, matrix, threads=threads)
        errors: dict[str, dict[QuantType, float]] = {}
        sensitivities: dict[str, float] = {}
        for done, (name, shape) in enumerate(shapes.items()):
            errors[name] = dict(_errors(probe, name, shape, matrix.importance(name)))
            kind = PROBE if PROBE in errors[name] else max(errors[name], key=lambda one: one.bits_per_weight)
            sensitivities[name] = max(trial.error({name: kind}), 1e-12) / max(errors[name][kind], 1e-300)
            progress(done + 1, len(shapes))
        landscape = Landscape(_sizes(file, matrix), errors, sensitivities)
        return cls(file, matrix, landscape, trial, *_checked(landscape, trial))

    def choose(
        self,
        budget: Budget,
        *,
        keep: Types | None = None,
        trials: int = DEFAULT_TRIALS,
        progress: Progress = no_progress,
    ) -> Chosen:
        """The best mix within the budget; BuildError when no mix is small enough.

        `keep` fixes the types of some tensors (UsageError for a type that a tensor cannot have). `trials` limits the
        measurements of the refinement.
        """
        landscape = self.landscape.keeping(_kept(self.landscape.sizes, keep or {}))
        limit = _byte_budget(budget, landscape.sizes, self.stock("Q4_K_M"))
        found = refine(landscape, landscape.best(limit), limit, trial=self.trial, trials=trials, progress=progress)
        shapes = {name: self.file.tensors[name].shape for name in found.types}
        recipe = MixRecipe(
            self._nearest(landscape.size(found.types)),
            found.types,
            shapes,
            ", ".join(self.matrix.datasets),
            float(f"{found.error:.4g}"),
        )
        every = {name: info.shape for name, info in self.file.tensors.items()}
        made = plan(self.file, recipe.mix(every, self.matrix))
        return Chosen(recipe, made, self.correlation, self.checked, found.trials)

    def stock(self, file_type: str) -> QuantizePlan:
        """The plan of a stock file type with the same importance matrix."""
        return plan(self.file, Mix(file_type, imatrix=self.matrix))

    def _nearest(self, size: int) -> str:
        """The stock file type whose matrices are nearest in size."""
        return min(STOCK_REFERENCE, key=lambda name: abs(_matrices(self.stock(name), self.landscape.sizes) - size))


def check_budget(source: Path, matrix: ImportanceMatrix, budget: Budget, *, keep: Types | None = None) -> None:
    """Raise the errors of `Chooser.choose` without measuring: a budget too small, an impossible type in `keep`."""
    file = GGUFFile.open(source)
    matrix.check_covers({name: info.shape for name, info in file.tensors.items()})
    sizes = _sizes(file, matrix)
    kept = _kept(sizes, keep or {})
    rows = {name: {kept[name]: row[kept[name]]} if name in kept else row for name, row in sizes.items()}
    _byte_budget(budget, rows, plan(file, Mix("Q4_K_M", imatrix=matrix)))


def _kept(sizes: Sizes, keep: Types) -> Types:
    for name, kind in keep.items():
        row = sizes.get(name, {})
        if kind not in row:
            raise UsageError(
                f"keep_embedding={kind.name}: expected one of {', '.join(one.name for one in row) or 'no type'}",
                param="keep_embedding",
            )
    return keep


def _matrices(made: QuantizePlan, sizes: Sizes) -> int:
    return sum(_padded(head.size_bytes) for head in made.tensors if head.name in sizes)


def _byte_budget(budget: Budget, sizes: Sizes, stock: QuantizePlan) -> int:
    """Bytes for the matrices: the budget without header, norms and biases."""
    weights = sum(math.prod(head.shape) for head in stock.tensors)
    if budget.bits_per_weight is None:
        assert budget.size_bytes is not None
        fixed, whole = stock.size_bytes - _matrices(stock, sizes), budget.size_bytes
    else:
        fixed = sum(head.size_bytes for head in stock.tensors if head.name not in sizes)
        whole = int(budget.bits_per_weight * weights / 8)
    least = sum(min(row.values()) for row in sizes.values())
    if whole - fixed < least:
        raise BuildError(_too_small(budget, fixed + least, weights))
    return whole - fixed


def _sizes(file: GGUFFile, matrix: ImportanceMatrix) -> dict[str, dict[QuantType, int]]:
    """Bytes of every matrix in every possible type."""
    found: dict[str, dict[QuantType, int]] = {}
    for name, info in file.tensors.items():
        if is_quantizable(name, info.shape):
            kinds = _kinds(name, info.shape, matrix.importance(name))
            found[name] = {kind: _padded(kind.size_bytes(info.shape)) for kind in kinds}
    return found


def _kinds(name: str, shape: tuple[int, ...], importance: NDArray[np.float32] | None) -> list[QuantType]:
    """The possible types of a tensor: its rows divide into blocks, and column weights exist if they are required."""
    fitting = [kind for kind in CANDIDATES if shape[1] % kind.block == 0]
    return [kind for kind in fitting if importance is not None or not demands_imatrix(name, kind, "Q4_K_M")]


def _too_small(budget: Budget, least: int, weights: int) -> str:
    if budget.size_bytes is not None:
        return f"target_size={budget.size_bytes:,}: expected at least {least:,}, the model's smallest mix"
    return f"target_bpw={budget.bits_per_weight}: expected at least {8 * least / weights:.3f}, the model's smallest mix"


def _padded(size: int) -> int:
    return -(-size // 32) * 32


def _errors(
    probe: PerturbationProbe, name: str, shape: tuple[int, ...], importance: NDArray[np.float32] | None
) -> Iterator[tuple[QuantType, float]]:
    """The weighted squared error of every possible type of a tensor, from rows spread over it."""
    count = min(shape[0], max(LEAST_ROWS, SAMPLE_WEIGHTS // shape[1]))
    rows = probe.weights(name)[np.linspace(0, shape[0] - 1, count).astype(np.int64)]
    weights = np.ones(shape[1], np.float32) if importance is None else importance
    for kind in _kinds(name, shape, importance):
        yield kind, weighted_squares(requantized(rows, kind, importance) - rows, weights) * shape[0] / count


def _checked(landscape: Landscape, trial: _Trial) -> tuple[float, int]:
    """Correlation of log estimated and log measured errors over a sample of single changes, and the sample's size."""
    costs = landscape.costs()
    pairs = [(name, kind) for name in list(costs)[1::CHECKED_EVERY] for kind in CHECKED if kind in costs[name]]
    real = [max(trial.error({name: kind}), 1e-12) for name, kind in pairs]
    estimated = [max(costs[name][kind], 1e-12) for name, kind in pairs]
    if len(pairs) < 3:  # noqa: PLR2004 - no correlation of two
        return 1.0, len(pairs)
    return float(np.corrcoef(np.log(real), np.log(estimated))[0, 1]), len(pairs)


def embedding_kept(kind: QuantType | QuantizePlan) -> Types:
    """The `keep` that fixes the embedding table's type: a type, or the type in a plan."""
    if isinstance(kind, QuantizePlan):
        return {head.name: head.kind for head in kind.tensors if head.name == EMBEDDING}
    return {EMBEDDING: kind}
