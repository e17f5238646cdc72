"""The contents of the report's figures: results to points, without a plotting library.

Every number is a field of a result; sizes are divided by 2^20 to MiB.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nestling.evaluation.metrics import LEVEL
from nestling.evaluation.results import QualityResult, Scores, SpeedResult, slug
from nestling.evaluation.tables import MIB, by_benchmark, headline, labels, subject
from nestling.evaluation.texts import MIXED

MOST_LINES = 6
"""The most lines that can be distinguished in one figure."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point with its label; `low` and `high` are the ends of its error bar along the measured axis."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind; with `joined` they are connected by a line."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure to draw; with `rows` it is a dot chart: a labelled row per point, x is its value, y has no scale."""

    slug: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_log: bool = False
    rows: bool = False
    x_ticks: tuple[float, ...] = field(default=())


def quality(results: Sequence[QualityResult]) -> list[Figure]:
    """For each benchmark: quality by file size, difference to the reference, quality by dimensions."""
    found: list[Figure] = []
    for group in by_benchmark(results):
        sized = [one for one in group if one.model.size_bytes]
        found += [_forms(group)] if group[0].benchmark.visual and len(group) > 1 else []
        found += [_against_size(sized)] if len({_size(one) for one in sized}) > 1 else []
        found += [_differences(group)] if any(one.against for one in group) else []
        found += [_curves(cut)] if (cut := [one for one in group if len(one.scores) > 1]) else []
    return found


def speed(results: Sequence[SpeedResult]) -> list[Figure]:
    """Speed by file size on texts of mixed lengths, and speed by text length."""
    sized = [one for one in results if one.model.size_bytes and any(bucket.name == MIXED for bucket in one.buckets)]
    found = [_speed_against_size(sized)] if len(sized) > 1 else []
    measured = [one for one in results if any(bucket.tokens for bucket in one.buckets)]
    return found + ([_speed_by_length(measured)] if measured else [])


def _slug(kind: str, group: Sequence[QualityResult]) -> str:
    return slug(f"{kind}-{group[0].model.task}-{group[0].benchmark.name}")


def _size(result: QualityResult | SpeedResult) -> float:
    return (result.model.size_bytes or 0) / MIB


def _kind(result: QualityResult) -> str:
    """The kind of quantization, by the beginning of the file type's name."""
    name = result.model.file_type or ""
    return next((kind for start, kind in _KINDS.items() if name.startswith(start)), "other")


_KINDS = {"IQ": "IQ types", "Q": "Q types", "F": "float", "BF": "float"}


def _forms(group: Sequence[QualityResult]) -> Figure:
    """Images, OCR text and BM25 side by side."""
    main = headline(group[0])
    found = [one.full.means[main] for one in group]
    points = (
        Point(label, one.mean, place, one.low, one.high)
        for place, (label, one) in enumerate(zip(labels(group), found, strict=True))
    )
    return Figure(
        _slug("pages", group),
        f"Images and OCR text: {subject(group)}",
        f"{main} with its {LEVEL:.0%} interval",
        "",
        (Series("", tuple(points)),),
        rows=True,
    )


def _against_size(group: Sequence[QualityResult]) -> Figure:
    main = headline(group[0])
    kinds: dict[str, list[Point]] = {}
    for label, one in zip(labels(group), group, strict=True):
        kinds.setdefault(one.benchmark.form or _kind(one), []).append(
            Point(label, _size(one), one.full.means[main].mean)
        )
    return Figure(
        _slug("size", group),
        f"Quality against size: {subject(group)}",
        "file size, MiB (log scale)",
        main,
        tuple(Series(kind, tuple(points)) for kind, points in kinds.items()),
        x_log=True,
    )


def _differences(group: Sequence[QualityResult]) -> Figure:
    main = headline(group[0])
    references = {one.against.model.file_type or one.against.model.label for one in group if one.against}
    points: list[Point] = []
    for label, one in zip(labels(group), group, strict=True):
        if one.against:
            gap, size = one.against.differences[main], f", {_size(one):.1f} MiB" if one.model.size_bytes else ""
            points.append(Point(f"{label}{size}", gap.mean, len(points), gap.low, gap.high))
    return Figure(
        _slug("difference", group),
        f"Difference to the reference: {subject(group)}",
        f"{main} minus that of {' or '.join(sorted(references))}, with the {LEVEL:.0%} interval",
        "",
        (Series("", tuple(points)),),
        rows=True,
    )


def _spread(count: int) -> list[int]:
    """At most `MOST_LINES` of `count` indices, evenly spaced from the first to the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(MOST_LINES, count)).tolist()})


def _curves(group: Sequence[QualityResult]) -> Figure:
    main, names = headline(group[0]), labels(group)

    def point(scores: Scores) -> Point:
        return Point("", scores.dimensions, scores.means[main].mean)

    return Figure(
        _slug("matryoshka", group),
        f"Truncated vectors: {subject(group)}",
        "dimensions kept (log scale)",
        main,
        tuple(
            Series(names[place], tuple(map(point, group[place].scores)), joined=True) for place in _spread(len(group))
        ),
        x_log=True,
        x_ticks=tuple(sorted({float(scores.dimensions) for one in group for scores in one.scores})),
    )


def _speed_against_size(results: Sequence[SpeedResult]) -> Figure:
    series: list[Series] = []
    for engine in dict.fromkeys(one.engine for one in results):
        found = [one for one in results if one.engine == engine]
        names = (
            labels(found) if not series else [""] * len(found)
        )  # the points of other engines have the same file sizes
        points = [
            Point(name, _size(one), bucket.tokens_per_s)
            for name, one in zip(names, found, strict=True)
            for bucket in one.buckets
            if bucket.name == MIXED
        ]
        series.append(Series(engine, tuple(points)))
    name = "Speed against size, texts of mixed length"
    return Figure("speed-size", name, "file size, MiB (log scale)", "tokens per second", tuple(series), x_log=True)


def _speed_by_length(results: Sequence[SpeedResult]) -> Figure:
    ordered = sorted(results, key=lambda one: -max(bucket.tokens_per_s for bucket in one.buckets))
    chosen = [ordered[place] for place in _spread(len(ordered))]
    series = tuple(
        Series(
            name if one.engine in name else f"{name} ({one.engine})",
            tuple(Point("", bucket.tokens, bucket.tokens_per_s) for bucket in one.buckets if bucket.tokens),
            joined=True,
        )
        for name, one in zip(labels(chosen), chosen, strict=True)
    )
    ticks = tuple(sorted({point.x for one in series for point in one.points}))
    return Figure(
        "speed-length",
        "Speed by text length",
        "tokens per text (log scale)",
        "tokens per second",
        series,
        x_log=True,
        x_ticks=ticks,
    )
