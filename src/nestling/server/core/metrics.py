"""The server's Prometheus metrics. Knows nothing of HTTP.

Each server has a registry of its own, instead of the process's, so that two servers of one process do not share them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one server."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the package leaves it untyped
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "path", "status")
        self.texts = self._counter("texts", "Texts embedded", "model")
        self.tokens = self._counter("tokens", "Tokens embedded, prefixes included", "model")
        self.rejected = self._counter("rejected", "Requests refused because of a limit", "reason")
        self.dropped = self._counter("dropped_texts", "Texts dropped because their client left")
        self.resets = self._counter("engine_resets", "Engines reloaded after a failure", "device")
        self.cache_hits = self._counter("cache_hits", "Texts answered from the result cache")
        self.duration = self._histogram("request_seconds", "Time to answer a request, until its last byte", "path")
        self.stage = self._histogram("stage_seconds", "Time a request spends in each stage", "stage")
        tokens, tenths = [2**n for n in range(4, 15)], [n / 10 for n in range(1, 11)]
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch", "device", buckets=tokens)
        fill = "Share of its token budget that a batch used"
        self.batch_fill = self._histogram("batch_fill", fill, "device", buckets=tenths)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value `read` returns at each scrape."""
        Gauge(name, text, registry=self._registry).set_function(read)

    def device_gauge(self, name: str, text: str, devices: Iterable[str], read: Callable[[str], float]) -> None:
        """Add a gauge for each device, whose value `read` returns at each scrape."""
        made = Gauge(name, text, ("device",), registry=self._registry)
        for device in devices:
            made.labels(device).set_function(partial(read, device))
            self.resets.labels(device)  # so that it is there before the first one

    def facts(self, name: str, text: str, labels: Sequence[str], read: Callable[[], Iterable[Sequence[str]]]) -> None:
        """Add an info gauge: always 1, with facts as labels, whose values `read` returns at each scrape."""
        self._registry.register(_Facts(name, text, labels, read))

    def value(self, name: str, **labels: str) -> float:
        """The present value of a sample by its full name; 0 before its first observation."""
        return self._registry.get_sample_value(name, labels) or 0.0

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"nestling_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"nestling_{name}", text, labels, buckets=buckets, registry=self._registry)


@dataclass(frozen=True)
class _Facts(Collector):
    name: str
    text: str
    labels: Sequence[str]
    read: Callable[[], Iterable[Sequence[str]]]

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        for values in self.read():
            family.add_metric(values, 1)
        yield family
