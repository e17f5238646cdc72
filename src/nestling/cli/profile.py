"""The time of each stage of a command, printed to standard error."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nestling.cli.console import show_table


class Watch:
    """Seconds by stage, in order of their beginning."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - began

    def show(self, inner: dict[str, float], reason: str) -> None:
        """Print the stages; `inner` and `reason` are the engine's own: stages that replace its whole time, and why."""
        stages = {"load": self.seconds["load"], "tokenize": self.seconds["tokenize"], **inner}
        stages["other"] = max(0.0, self.seconds["embed"] - sum(inner.values()))
        stages["serialize"] = self.seconds["serialize"]
        embedding = sum(stages.values()) - stages["load"]
        rows = [
            [name, f"{took:.3f}", "" if name == "load" else f"{took / embedding:.1%}"] for name, took in stages.items()
        ]
        show_table(f"time by stage ({reason})", ["stage", "seconds", "share without load"], rows, to_error=True)
