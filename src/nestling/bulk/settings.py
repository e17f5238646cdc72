"""A corpus job's settings and its progress. Data alone; knows no files.

`JobSpec` determines every byte of the result and is recorded in the manifest: a rerun must have the same. `RunOptions`
do not affect the result.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from nestling._util.spelling import member
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.names import DEVICES, EngineName, check_device, kind_of, parse_device, parse_devices
from nestling.errors import UsageError
from nestling.spec import Role

INDEX_ROWS = 256
"""Rows that LanceDB needs to train an index; fewer do not need one."""
FOUND_ROWS = 10
"""Rows that a search returns by default."""
SHARD_ROWS, IMAGE_SHARD_ROWS = 1000, 64
"""Rows of a shard, without and with images: what is held in memory, and at most lost when a run dies. The largest
images take about fifteen times the work of a text of 100 tokens."""
DEFAULT_TEXT = "text"


_ARITHMETICS: dict[str, tuple[ArithmeticName, ...]] = {
    EngineName.OPENVINO: tuple(one for one in ArithmeticName if one is not ArithmeticName.AUTO),
    EngineName.TORCH: (ArithmeticName.FLOAT32, ArithmeticName.BF16, ArithmeticName.INT8_ROWS),
}
"""Those of the engines that have several."""


class VectorType(StrEnum):
    """How a vector of D numbers is stored: 4 D, 2 D, D or D / 8 bytes."""

    FLOAT = "float"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


class Sink(StrEnum):
    """The result: Parquet files alone, or with a LanceDB table."""

    PARQUET = "parquet"
    LANCE = "lance"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a sink's name."""
        return member(cls, text, param="sink")


class Runner(StrEnum):
    """Where shards run: processes of this machine, or Ray Data."""

    LOCAL = "local"
    RAY = "ray"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a runner's name."""
        return member(cls, text, param="engine")


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job computes; equal specs, sources and model files give equal bytes.

    `text_column` is `text` by default where tables have no `image_column`; with both, each row has one of the two.
    `id_column` is `id` by default where the source has it; `none`, or a source without one, makes ids `file#row`.
    `shard_rows` is 1,000 by default, 64 where there are images. `keep` names columns that go into the result. `prompt`
    is the role of texts: passage, query or raw. `backend` is the engine: openvino, llamacpp, torch or reference; there
    is no `auto`, since engines differ in the last bits. `arithmetic` is that of the products: by default int8-groups
    for openvino (float files are exact in it, too), float32 for torch on a CPU, bf16 on a card; no `auto` either.
    `device` is the kind of device, which torch needs: cuda, xpu, mps or cpu. Which card computes is a `RunOptions`.
    """

    model: str
    text_column: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    prompt: str = Role.PASSAGE
    dimensions: int | None = None
    embedding_type: str = VectorType.FLOAT
    truncate: bool = False
    backend: str = EngineName.OPENVINO
    arithmetic: str | None = None
    shard_rows: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Refuse what can never be done."""
        member(VectorType, self.embedding_type, param="embedding_type")
        Role.parse(self.prompt)
        if EngineName.parse(self.backend) is EngineName.AUTO:
            raise UsageError(
                "backend='auto': expected the name of one engine for all workers",
                param="backend",
            )
        self._check_device()
        self._check_arithmetic()
        if self.shard_rows is not None and self.shard_rows < 1:
            raise UsageError(f"shard_rows={self.shard_rows}: expected at least 1", param="shard_rows")
        if self.image_column is not None and self.image_column == self.text_column:
            raise UsageError(
                f"image_column={self.image_column!r}: is already the column of texts", param="image_column"
            )
        if taken := {"id", "vector"} & set(self.keep):
            raise UsageError(f"keep={min(taken)!r}: the result has a column of this name already", param="keep")
        if len(set(self.keep)) < len(self.keep):
            raise UsageError(f"keep={', '.join(self.keep)}: a column is named twice", param="keep")

    def _check_device(self) -> None:
        engine = EngineName.parse(self.backend)
        if self.device is None and engine is EngineName.TORCH:
            raise UsageError(f"device: expected {DEVICES} with the engine torch", param="device")
        if self.device is not None:
            check_device(engine, parse_device(self.device))
            if ":" in self.device:
                said = f"device={self.device!r}: expected {kind_of(self.device)}; RunOptions.device numbers the cards"
                raise UsageError(said, param="device")

    def _check_arithmetic(self) -> None:
        if self.arithmetic is None:
            return
        name, known = ArithmeticName.parse(self.arithmetic), _ARITHMETICS.get(self.backend)
        if name is ArithmeticName.AUTO:
            said = "arithmetic='auto': expected the name of one arithmetic for all workers"
            raise UsageError(said, param="arithmetic")
        if known is None and name is not ArithmeticName.INT8_GROUPS:
            said = f"arithmetic={self.arithmetic!r}: the engine {self.backend} takes no arithmetic"
            raise UsageError(said, param="arithmetic")
        if known is not None and name not in known:
            said = f"arithmetic={self.arithmetic!r}: expected one of {', '.join(known)} with the engine {self.backend}"
            raise UsageError(said, param="arithmetic")

    @property
    def products(self) -> str:
        """The arithmetic as `Embedder.load` takes it: `auto` for engines with only one."""
        return self._own_arithmetic if self.backend in _ARITHMETICS else ArithmeticName.AUTO

    @property
    def _own_arithmetic(self) -> str:
        if self.backend != EngineName.TORCH:
            return self.arithmetic or ArithmeticName.INT8_GROUPS
        return self.arithmetic or (ArithmeticName.FLOAT32 if self.device == "cpu" else ArithmeticName.BF16)

    def settled(self, *, tables: bool, images: bool) -> Self:
        """The same, with source-dependent defaults filled in; UsageError for column names if there are no tables."""
        for param in ("text_column", "image_column"):
            if not tables and (named := getattr(self, param)):
                raise UsageError(f"{param}={named!r}: the source is image files, which have no columns", param=param)
        return replace(
            self,
            text_column=self.text_column or (DEFAULT_TEXT if tables and not self.image_column else None),
            shard_rows=self.shard_rows or (IMAGE_SHARD_ROWS if images else SHARD_ROWS),
            arithmetic=str(self._own_arithmetic),
            device=self.device if self.backend == EngineName.TORCH else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The form in the manifest."""
        return asdict(self) | {"keep": list(self.keep), "prompt": str(Role.parse(self.prompt))}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**raw | {"keep": tuple(raw["keep"])})


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a job is run.

    `workers`: by default one for each device. `device`: torch's, several separated by commas; by default the first of
    the job's kind. On Ray, cards have no numbers, since Ray assigns them. `threads`: of each worker; by default the
    usable processors are divided among them. More than `max_rejects` rejected rows end the job; None is no limit.
    `skip_bad_files` skips files that cannot be read. `index` builds LanceDB's index.
    """

    runner: Runner = Runner.LOCAL
    workers: int | None = None
    device: str | None = None
    threads: int | None = None
    ray_address: str | None = None
    max_rejects: int | None = None
    skip_bad_files: bool = False
    sink: Sink = Sink.PARQUET
    index: bool = False

    def __post_init__(self) -> None:
        """Refuse what can never be done."""
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers={self.workers}: expected at least 1", param="workers")
        if problem := self._why_not_these_devices():
            raise UsageError(problem, param="device")
        if self.ray_address and self.runner is not Runner.RAY:
            raise UsageError("ray_address is for engine=ray", param="ray_address")
        if self.index and self.sink is not Sink.LANCE:
            raise UsageError("index is for sink=lance", param="index")

    @property
    def devices(self) -> tuple[str | None, ...]:
        """The devices, in the order of the workers if there are several; None for the engine's own."""
        return parse_devices(self.device) if self.device is not None else (None,)

    @property
    def worker_count(self) -> int:
        """The number of workers."""
        return self.workers or len(self.devices)

    def _why_not_these_devices(self) -> str | None:
        devices = self.devices
        on_cards = devices[0] is not None and kind_of(devices[0]) != "cpu"
        if on_cards and self.runner is Runner.RAY:
            numbered = next((one for one in devices if one and ":" in one), None)
            kind = kind_of(devices[0] or "")
            return numbered and f"device={self.device!r}: expected {kind} and workers; Ray assigns the cards"
        if self.worker_count != len(devices) and (on_cards or len(devices) > 1):
            return f"workers={self.workers}: expected one for each device, found device={self.device!r}"
        return None


@dataclass(frozen=True, slots=True)
class Status:
    """A job's progress: rows of the whole job and of this run, tokens and seconds of this run."""

    rows_done: int
    rows_total: int
    rows_now: int
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of this run."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at this run's speed; None before the first rows."""
        return self.seconds / self.rows_now * (self.rows_total - self.rows_done) if self.rows_now else None


ProgressCallback = Callable[[Status], None]


def no_progress(_status: Status) -> None:
    """A `ProgressCallback` that does nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job's result: rows embedded and rejected in all, what this run did, files that were skipped and why."""

    out: Path
    rows: int
    rejected: int
    shards: int
    shards_now: int
    tokens: int
    seconds: float
    skipped: tuple[str, ...]
