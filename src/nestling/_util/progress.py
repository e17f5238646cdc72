"""Progress of long work: named steps and how much of each is done. Does not know who displays it."""

from collections.abc import Callable, Mapping

Progress = Callable[[int, int], None]
"""Called with (done, total) during long work; in bytes unless a docstring names another unit."""
Steps = Callable[[str], Progress]
"""Called with a step's name when it begins; returns the `Progress` callback of that step."""


def no_progress(_done: int, _total: int) -> None:
    """A `Progress` callback that does nothing."""


def silent(_step: str) -> Progress:
    """`Steps` without any display."""
    return no_progress


class TotalProgress:
    """Progress over all steps of a job: each expected step has an estimate in seconds; reports milliseconds."""

    def __init__(self, report: Progress = no_progress) -> None:
        self._report, self._open, self._done = report, dict[str, float](), 0.0

    def expect(self, steps: Mapping[str, float]) -> None:
        """Add steps: name -> estimated seconds."""
        self._open |= steps

    def skip(self, name: str) -> None:
        """Drop a step whose result exists already."""
        self._open.pop(name, None)

    def part(self, *names: str, progress: Progress) -> Progress:
        """A `Progress` callback for these steps, which run together; it calls `progress` as well."""
        effort = sum(self._open.pop(name, 0.0) for name in names)
        before = self._done
        self._done += effort
        everything = self._done + sum(self._open.values())

        def report(done: int, total: int) -> None:
            progress(done, total)
            self._report(round(1000 * (before + effort * done / max(total, 1))), round(1000 * everything))

        return report
