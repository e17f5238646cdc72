"""How long work tells of itself: steps by name, and how much of each is done. Knows nobody who shows it."""

from collections.abc import Callable, Mapping

Progress = Callable[[int, int], None]
"""Called with (done, in all), in bytes unless it is said otherwise, while a long piece of work goes on."""
Steps = Callable[[str], Progress]
"""Called with a step's name when it begins; answers with the `Progress` of that step."""


def no_progress(_done: int, _total: int) -> None:
    """A `Progress` that ignores what it is told."""


def silent(_step: str) -> Progress:
    """`Steps` that nobody watches."""
    return no_progress


class Whole:
    """The progress of everything: pieces by name with what each takes in seconds, told in milliseconds."""

    def __init__(self, told: Progress = no_progress) -> None:
        self._told, self._open, self._done = told, dict[str, float](), 0.0

    def expect(self, pieces: Mapping[str, float]) -> None:
        """Count on these pieces too."""
        self._open |= pieces

    def skip(self, name: str) -> None:
        """Count on a piece no longer: it is there already."""
        self._open.pop(name, None)

    def part(self, *names: str, progress: Progress) -> Progress:
        """What is to be told of the progress of these pieces, which are made together; `progress` is told as well."""
        effort = sum(self._open.pop(name, 0.0) for name in names)
        before = self._done
        self._done += effort
        everything = self._done + sum(self._open.values())

        def told(done: int, total: int) -> None:
            progress(done, total)
            self._told(round(1000 * (before + effort * done / max(total, 1))), round(1000 * everything))

        return told
