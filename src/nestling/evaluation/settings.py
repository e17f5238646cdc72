"""The settings of quality and speed measurements, with the defaults of the command line. Imports no heavy library."""

from dataclasses import dataclass
from pathlib import Path

from nestling.engine.names import DEFAULT_ENGINE, EngineName, check_device, parse_device, takes_device
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
    device: str | None = None
    threads: int | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        name = EngineName.parse(self.engine)
        if self.device is not None:
            check_device(name, parse_device(self.device))

    @property
    def runs_on(self) -> str:
        """The engine and its device, as a result names them."""
        return on_device(self.engine, self.device)


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """How to measure.

    `device` is for those of the `engines` that run on it; the others run on the CPU. `lengths` in tokens per text,
    `rounds` without the warm-up, `pass_tokens` per pass over a bucket, `cell_s` seconds per latency measurement and
    round (each client sends at least one request), `together` contenders loaded at the same time.
    """

    out: Path
    engines: tuple[str, ...] = (DEFAULT_ENGINE,)
    device: str | None = None
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
        names = [EngineName.parse(one) for one in self.engines]
        if self.device is not None and not any(takes_device(one, parse_device(self.device)) for one in names):
            check_device(names[0], self.device)
        numbers = (*self.lengths, self.rounds, self.together, self.pass_tokens, *self.clients, *self.inputs)
        if min(numbers) < 1 or self.cell_s < 0:
            raise UsageError(
                "rounds, lengths, pass_tokens, clients, inputs, together: expected at least 1", param="rounds"
            )

    def device_of(self, engine: str) -> str | None:
        """The device of one of the engines: `device`, if the engine runs there, else its own default."""
        taken = self.device is not None and takes_device(EngineName.parse(engine), self.device)
        return self.device if taken else None

    def told(self) -> dict[str, int | str]:
        """The settings in a result file."""
        threads = self.threads or "all"
        return {
            "rounds": self.rounds,
            "pass_tokens": self.pass_tokens,
            "threads": threads,
            "cell_ms": round(1000 * self.cell_s),
        }


def on_device(engine: str, device: str | None) -> str:
    """An engine as results name it: with its device, if that was named."""
    return engine if device is None else f"{engine} on {device}"
