"""A small benchmark of one's own, stand-ins for encoders, and results as the evaluation writes them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nestling.evaluation import metrics, origins
from nestling.evaluation.encoders import Inputs, in_requests
from nestling.evaluation.metrics import Doubles
from nestling.evaluation.results import (
    Against,
    BenchmarkFacts,
    Bucket,
    Latency,
    Load,
    ModelFacts,
    QualityResult,
    Scores,
    SpeedResult,
)
from nestling.evaluation.scoring import difference
from nestling.formats.quant_types import FILE_TYPES
from nestling.spec import Role, Task
from nestling.vectors import Floats

DOCUMENTS = ("cats purr when they are content", "dogs bark at the moon", "the sea is deep", "a car has wheels")
QUERIES = {"q1": ("what purrs", "d0"), "q2": ("what barks", "d1"), "q3": ("deep water", "d2")}
ORIGIN = replace(origins.origin(), commit="0" * 40, started="2026-01-01T00:00:00+00:00")


def write_benchmark(folder: Path) -> Path:
    """The documents and queries in BEIR layout."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(DOCUMENTS)]
    queries = [json.dumps({"_id": name, "text": text}) for name, (text, _) in QUERIES.items()]
    qrels = [f"{name}\t{document}\t1" for name, (_, document) in QUERIES.items()]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]))
    return folder


def write_pairs(path: Path) -> Path:
    """Six scored pairs."""
    rows = [
        ("a cat", "a kitten", 5),
        ("a cat", "a dog", 3),
        ("a cat", "a bus", 0),
        ("sea", "ocean", 5),
        ("sea", "car", 1),
    ]
    path.write_text(
        "\n".join(json.dumps(dict(zip(("sentence1", "sentence2", "score"), row, strict=True))) for row in rows)
    )
    return path


class FakeEncoder:
    """Vectors from a function of each text and its role; remembers what it was asked."""

    name = "fake"

    def __init__(self, answer: Callable[[Sequence[str], Role], Floats]) -> None:
        self._answer = answer
        self.task: Task | None = Task.RETRIEVAL
        self.asked: list[tuple[tuple[str, ...], Role]] = []
        self.closed = False

    def encode_iter(self, inputs: Inputs, *, role: Role) -> Iterator[tuple[list[int], Floats]]:
        """The function's vectors."""

        def answer(some: Inputs) -> Floats:
            texts = [str(one) for one in some]
            self.asked.append((tuple(texts), role))
            return self._answer(texts, role)

        return in_requests(inputs, answer)

    def close(self) -> None:
        """Be closed."""
        self.closed = True


def model(file_type: str, bits: float) -> ModelFacts:
    """The facts of a file that was never built."""
    size, file = round(bits * 1_234_567), f"toy-text-retrieval-{file_type}.gguf"
    return ModelFacts(file, file, f"sha256 of {file_type}", size, bits, 9_876_543, file_type, "toy", Task.RETRIEVAL)


def quality_results(kinds: Sequence[str] = tuple(FILE_TYPES)) -> list[QualityResult]:
    """A result a file type, smaller files worse, the first one the reference."""
    random = np.random.default_rng(0)
    base = random.random(40)
    bits = np.geomspace(16, 2, len(kinds)).tolist()
    found: list[QualityResult] = []
    for kind, size in zip(kinds, bits, strict=True):
        scores = [_scores(base, width, random.random(40) / size / width**0.5) for width in (32, 64, 128)]
        against = _against(scores[-1], found[0]) if found else None
        benchmark = BenchmarkFacts("toy-set", "retrieval", ["retrieval"], "0" * 64, 500, 40)
        queries = [f"q{number}" for number in range(40)]
        found.append(QualityResult(ORIGIN, model(kind, size), "auto", benchmark, queries, scores, against, 1.25))
    return found


def _scores(base: Doubles, width: int, loss: Doubles) -> Scores:
    samples = {name: np.clip(base - loss, 0, 1).round(6).tolist() for name in metrics.MEASURES}
    return Scores(width, {name: metrics.interval(values) for name, values in samples.items()}, samples)


def _against(full: Scores, base: QualityResult) -> Against:
    gaps = {name: difference(full, base.full, name) for name in metrics.MEASURES}
    return Against(base.model, 0.998765, 0.991234, [0.998765, 0.991234], gaps)


def speed_results(kinds: Sequence[str] = tuple(FILE_TYPES), *, idle: bool = True) -> list[SpeedResult]:
    """A result a file type and engine."""
    found = []
    for number, kind in enumerate(kinds):
        for factor, engine in ((1.0, "openvino"), (0.4375, "llamacpp")):
            rate = 1000.0 + 17 * number
            buckets = [bucket(tokens, factor * rate * (1 - (tokens or 100) / 5000)) for tokens in (16, 512, None)]
            latency = Latency(0, 1, 64, [5.5, 6.5, 9.5], 6.5, 9.44, 321.0, {})
            others = Load(0.1 if idle else 3.5, [1.9], idle=idle)
            settings: dict[str, int | str] = {"rounds": 3, "threads": "all"}
            size = 16 - 0.5 * number
            found.append(
                SpeedResult(
                    ORIGIN, model(kind, size), engine, settings, [], others, 0.75, 123 * 2**20, buckets, [latency]
                )
            )
    return found


def bucket(tokens: int | None, rate: float) -> Bucket:
    """Three samples at a rate."""
    stages = {"tokenize": [0.125], "forward": [0.75], "serialize": [0.125]}
    return Bucket(str(tokens or "mixed"), tokens, 8, [1024], [1.0], stages, round(rate, 2))
