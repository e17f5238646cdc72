"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4). Knows nothing of what is counted.

Metrics belong to one `Registry`, not to the process, so that two servers of one test do not share them.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
Labels = tuple[str, ...]


class Counter:
    """A number that grows, for each combination of label values."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self._labels = name, text, tuple(labels)
        self._values: dict[Labels, float] = {} if labels else {(): 0}
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: float = 1) -> None:
        """Count `amount` more for these label values."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, *labels: str) -> float:
        """What has been counted so far."""
        return self._values.get(labels, 0)

    def lines(self) -> Iterator[str]:
        """The samples."""
        for labels, value in sorted(self._values.copy().items()):
            yield _sample(self.name, zip(self._labels, labels, strict=True), value)


class Gauge:
    """A number that is read when it is asked for."""

    kind = "gauge"

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self.name, self.text, self._read = name, text, read

    def lines(self) -> Iterator[str]:
        """The sample."""
        yield _sample(self.name, (), self._read())


class Histogram:
    """How often values fell at or below each bound, for each value of one label (or none)."""

    kind = "histogram"

    def __init__(self, name: str, text: str, *, bounds: Sequence[float], label: str | None = None) -> None:
        self.name, self.text, self._bounds, self._label = name, text, tuple(bounds), label
        self._counts: dict[str, list[int]] = {} if label else {"": [0] * (len(bounds) + 1)}
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, label: str = "") -> None:
        """Take one value in."""
        with self._lock:
            counts = self._counts.setdefault(label, [0] * (len(self._bounds) + 1))
            counts[bisect_left(self._bounds, value)] += 1
            self._sums[label] = self._sums.get(label, 0) + value

    def lines(self) -> Iterator[str]:
        """The samples: cumulative buckets, sum and count."""
        with self._lock:
            counts = {label: list(row) for label, row in self._counts.items()}
            sums = dict(self._sums)
        for label, row in sorted(counts.items()):
            own = [(self._label, label)] if self._label else []
            total = 0
            for bound, count in zip((*map(str, self._bounds), "+Inf"), row, strict=True):
                total += count
                yield _sample(f"{self.name}_bucket", [*own, ("le", bound)], total)
            yield _sample(f"{self.name}_sum", own, sums.get(label, 0))
            yield _sample(f"{self.name}_count", own, total)


Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class Registry:
    """The metrics of one server."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        stages = "Time a request spends in each stage"
        self._all: list[Counter | Gauge | Histogram] = []
        self.requests = self._kept(Counter("nestling_requests_total", "Requests answered", ["path", "status"]))
        self.texts = self._kept(Counter("nestling_texts_total", "Texts embedded", ["model"]))
        self.tokens = self._kept(Counter("nestling_tokens_total", "Tokens embedded, prefixes included", ["model"]))
        self.rejected = self._kept(
            Counter("nestling_rejected_total", "Requests refused because of a limit", ["reason"])
        )
        self.dropped = self._kept(Counter("nestling_dropped_texts_total", "Texts dropped because their client left"))
        self.resets = self._kept(Counter("nestling_engine_resets_total", "Engines loaded anew after a failure"))
        self.cache_hits = self._kept(Counter("nestling_cache_hits_total", "Texts answered from the result cache"))
        self.duration = self._kept(
            Histogram("nestling_request_seconds", "Time to answer a request", bounds=SECONDS, label="path")
        )
        self.stage = self._kept(Histogram("nestling_stage_seconds", stages, bounds=SECONDS, label="stage"))
        self.batch_tokens = self._kept(
            Histogram("nestling_batch_tokens", "Tokens in a batch", bounds=[2**n for n in range(4, 15)])
        )
        self.batch_fill = self._kept(
            Histogram(
                "nestling_batch_fill",
                "Share of its token budget that a batch used",
                bounds=[n / 10 for n in range(1, 11)],
            )
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a number that `read` tells."""
        self._kept(Gauge(name, text, read))

    def render(self) -> str:
        """Everything, as Prometheus scrapes it."""
        return "".join(_block(metric) for metric in self._all)

    def _kept(self, metric: Metric) -> Metric:
        self._all.append(metric)
        return metric


def _block(metric: Counter | Gauge | Histogram) -> str:
    head = [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}"]
    return "\n".join([*head, *metric.lines()]) + "\n"


def _sample(name: str, labels: Iterable[tuple[str | None, str]], value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{pairs}}} {value:.10g}" if pairs else f"{name} {value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
