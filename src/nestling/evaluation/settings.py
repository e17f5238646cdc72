"""The settings of quality and speed measurements, with the defaults of the command line. Imports no heavy library."""

from dataclasses import dataclass
from pathlib import Path

from nestling.engine.names import DEFAULT_ENGINE, EngineName
from nestling.errors import UsageError
from nestling.spec import Task


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """What to measure: by default the shipped `benchmarks` for each model's task, at all trained `dimensions`."""

    out: Path
    benchmarks: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()
    against: str | None = None
    engine: str = DEFAULT_ENGINE
    threads: int | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        EngineName.parse(self.engine)


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """How to measure.

    `lengths` in tokens per text, `rounds` without the warm-up, `pass_tokens` per pass over a bucket, `cell_s` seconds
    per latency measurement and round (each client sends at least one request), `together` contenders loaded at the same
    time.
    """

    out: Path
    engines: tuple[str, ...] = (DEFAULT_ENGINE,)
    threads: int | None = None
    lengths: tuple[int, ...] = (16, 128, 512, 2048)
    rounds: int = 5
    pass_tokens: int = 4096
    cell_s: float = 2.0
    cell_tokens: int = 64
    clients: tuple[int, ...] = (1, 8, 64)
    inputs: tuple[int, ...] = (1, 16, 256)
    task: Task = Task.RETRIEVAL
    together: int = 4

    def __post_init__(self) -> None:
        """Check the settings."""
        for one in self.engines:
            EngineName.parse(one)
        numbers = (*self.lengths, self.rounds, self.together, self.pass_tokens, *self.clients, *self.inputs)
        if min(numbers) < 1 or self.cell_s < 0:
            raise UsageError(
                "rounds, lengths, pass_tokens, clients, inputs, together: expected at least 1", param="rounds"
            )

    def told(self) -> dict[str, int | str]:
        """The settings in a result file."""
        threads = self.threads or "all"
        return {
            "rounds": self.rounds,
            "pass_tokens": self.pass_tokens,
            "threads": threads,
            "cell_ms": round(1000 * self.cell_s),
        }
