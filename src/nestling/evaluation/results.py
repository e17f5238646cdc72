"""Result files: JSON with the measurements and all samples, the model file, the code version and the machine.

Reading checks the structure, writing is atomic. Does not know how results are measured or shown.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError

from nestling._util.files import atomic_write, sha256_file
from nestling._util.text import read_text
from nestling.errors import FileFormatError, ModelNotFoundError
from nestling.evaluation.metrics import Interval
from nestling.evaluation.origins import Origin
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import FILE_TYPES
from nestling.models.file_spec import spec_of


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The measured model; of a server only reference and task are known. `dimensions` are the trained sizes."""

    reference: str
    file: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    parameters: int | None = None
    file_type: str | None = None
    family: str | None = None
    task: str | None = None
    dimensions: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """A short name for tables and plots: the file's name, or the server's model and host."""
        if self.file:
            return Path(self.file).stem
        if "://" not in self.reference:
            return self.reference
        address, _, model = self.reference.partition("#")
        return f"{model or 'default'} at {urlsplit(address).netloc}"


@dataclass(frozen=True, slots=True)
class BenchmarkFacts:
    """The benchmark; for pairs, `documents` is 0 and `queries` is the number of pairs.

    For pages, `form` is what was embedded (`images` or `OCR text`) and `visual` the hash of the set with both.
    """

    name: str
    kind: Literal["retrieval", "pairs"]
    tasks: list[str]
    sha256: str
    documents: int
    queries: int
    form: str = ""
    visual: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores at one vector size: metric -> mean and interval, and its samples in the order of `query_ids`."""

    dimensions: int
    means: dict[str, Interval]
    samples: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Against:
    """Comparison with a reference model at full width: cosine of every vector, paired difference of every metric."""

    model: ModelFacts
    cosine_mean: float
    cosine_lowest: float
    cosines: list[float]
    differences: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class QualityResult:
    """One model on one benchmark. `query_ids` is empty for pairs; `tower_sha256` is the hash of the vision tower."""

    origin: Origin
    model: ModelFacts
    engine: str
    benchmark: BenchmarkFacts
    query_ids: list[str]
    scores: list[Scores]
    against: Against | None
    encode_s: float
    tower_sha256: str | None = None
    kind: Literal["quality"] = "quality"
    format: Literal[1] = 1

    @property
    def full(self) -> Scores:
        """The scores of the full width."""
        return self.scores[-1]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Speed on texts of one length (`tokens` each; None for mixed lengths); a sample is one pass over all texts.

    `stages_s` has the seconds of each stage per sample, for local models only.
    """

    name: str
    tokens: int | None
    texts: int
    samples_tokens: list[int]
    samples_s: list[float]
    stages_s: dict[str, list[float]]
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency in milliseconds, one sample per request, and throughput.

    `clients` send requests of `inputs` texts concurrently; 0 clients means calls in process. `stages_s` has the total
    seconds in each stage of the server, if it reports them.
    """

    clients: int
    inputs: int
    tokens_per_input: int
    samples_ms: list[float]
    p50_ms: float
    p99_ms: float
    tokens_per_s: float
    stages_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Load:
    """The machine's one-minute load average: before the first sample, then once per round."""

    before: float
    rounds: list[float]
    idle: bool


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """The speed of a file in an engine, or of a server; `compared_with` lists those measured in turn with it."""

    origin: Origin
    model: ModelFacts
    engine: str
    settings: dict[str, int | str]
    compared_with: list[str]
    load: Load
    load_time_s: float | None
    peak_memory_bytes: int | None
    buckets: list[Bucket] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    kind: Literal["speed"] = "speed"
    format: Literal[1] = 1


Result = QualityResult | SpeedResult
_ADAPTER: TypeAdapter[Result] = TypeAdapter(Annotated[Result, Field(discriminator="kind")])


def write(path: Path, result: Result) -> None:
    """Write a result file atomically."""
    with atomic_write(path) as file:
        file.write(_ADAPTER.dump_json(result, indent=1) + b"\n")


def slug(text: str) -> str:
    """A text as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def read(path: Path) -> Result:
    """Read a result file; FileFormatError naming the field for anything else."""
    try:
        return _ADAPTER.validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise FileFormatError(f"{path}: not a result file ({where}: {first['msg']})") from None


def read_all(paths: Iterable[Path]) -> list[Result]:
    """Read result files and folders of them; ModelNotFoundError if there are none."""
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        raise ModelNotFoundError("no result files; `nestling eval quality` and `nestling eval speed` write them")
    return [read(file) for file in files]


def model_facts(reference: str, path: Path) -> ModelFacts:
    """The facts of a model file, with its hash."""
    file = GGUFFile.open(path)
    spec, tensors = spec_of(file), file.tensors.values()
    parameters = sum(prod(info.shape) for info in tensors)
    number = file.metadata.get("general.file_type")
    return ModelFacts(
        reference=reference,
        file=path.name,
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        bits_per_weight=round(8 * sum(info.size_bytes for info in tensors) / parameters, 4),
        parameters=parameters,
        file_type=next((name for name, kind in FILE_TYPES.items() if number and kind == number.value), None),
        family=spec.family,
        task=spec.task,
        dimensions=spec.dimensions,
    )
