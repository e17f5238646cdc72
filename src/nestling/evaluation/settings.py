"""What is measured and how: the settings of quality and of speed, with their defaults. Data alone; loads no library.

The command line takes its defaults from here.
"""

from dataclasses import dataclass
from pathlib import Path

from nestling.engine.registry import DEFAULT_ENGINE, EngineName
from nestling.errors import UsageError
from nestling.spec import Task


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """What to measure. No `benchmarks` are those shipped for each model's task, no `dimensions` all trained ones."""

    out: Path
    benchmarks: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()
    against: str | None = None
    engine: str = DEFAULT_ENGINE
    threads: int | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        EngineName.parse(self.engine)


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """How to measure.

    `lengths` are tokens a text, `rounds` those that count, `pass_tokens` the tokens of a pass over a bucket, `cell_s`
    the seconds that a latency cell takes in a round (each client asks at least once), `together` the contenders that
    are loaded at once.
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
        """Refuse what cannot be measured."""
        for one in self.engines:
            EngineName.parse(one)
        numbers = (*self.lengths, self.rounds, self.together, self.pass_tokens, *self.clients, *self.inputs)
        if min(numbers) < 1 or self.cell_s < 0:
            raise UsageError("rounds, lengths, pass_tokens, clients, inputs and together: at least 1", param="rounds")

    def told(self) -> dict[str, int | str]:
        """What a result file says of them."""
        threads = self.threads or "all"
        return {
            "rounds": self.rounds,
            "pass_tokens": self.pass_tokens,
            "threads": threads,
            "cell_ms": round(1000 * self.cell_s),
        }
