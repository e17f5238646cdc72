"""Result files: JSON that says what was measured, of which file, by which code on which machine, with every sample.

Reading checks the whole structure; writing is whole or not at all. Knows neither how results are made nor how shown.
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
    """What was measured; of a server only reference and task are known. `dimensions` are the trained sizes."""

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
        """A short name for tables and plots: the file's, or what is served and where."""
        if self.file:
            return Path(self.file).stem
        if "://" not in self.reference:
            return self.reference
        address, _, model = self.reference.partition("#")
        return f"{model or 'default'} at {urlsplit(address).netloc}"


@dataclass(frozen=True, slots=True)
class BenchmarkFacts:
    """What it was measured on; `documents` is 0 for pairs, whose number is `queries`.

    `form` is what of pages was embedded (`images` or `OCR text`), `visual` the hash of the set that both are of.
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
    """One vector size: measure -> mean and interval, and the samples behind them in the order of `query_ids`."""

    dimensions: int
    means: dict[str, Interval]
    samples: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Against:
    """Nearness to a reference model at full width: cosine of every vector, paired difference of every measure."""

    model: ModelFacts
    cosine_mean: float
    cosine_lowest: float
    cosines: list[float]
    differences: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class QualityResult:
    """One model on one benchmark. `query_ids` is empty for pairs; `tower_sha256` is that of what saw its images."""

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
    """Speed on texts of one length (`tokens` a text; None for the mixed corpus): a pass over all texts a sample.

    `stages_s` has the seconds of each stage, sample by sample, where they can be told apart (in process).
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
    """Milliseconds from request to answer, one sample a request, and the rate at which tokens went through.

    `clients` ask at once, each with `inputs` texts a request; 0 clients are calls in process. `stages_s` has the
    seconds that the requests spent in each of the server's stages, where it tells.
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
    """The machine's one-minute load while measuring: before the first sample, then once a round."""

    before: float
    rounds: list[float]
    idle: bool


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """One contender: a file in an engine, or a server. `compared_with` were measured in turns with it."""

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
    """Write a result file whole."""
    with atomic_write(path) as file:
        file.write(_ADAPTER.dump_json(result, indent=1) + b"\n")


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def read(path: Path) -> Result:
    """Read a result file; anything else is a FileFormatError naming the field."""
    try:
        return _ADAPTER.validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise FileFormatError(f"{path}: not a result file ({where}: {first['msg']})") from None


def read_all(paths: Iterable[Path]) -> list[Result]:
    """Read files and folders of result files; none at all is a ModelNotFoundError."""
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        raise ModelNotFoundError("no result files there; `nestling eval quality` and `eval speed` write them")
    return [read(file) for file in files]


def model_facts(reference: str, path: Path) -> ModelFacts:
    """Read what a model file says of itself, and hash it."""
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
