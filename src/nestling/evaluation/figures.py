"""Which numbers go into which figure: results to points, without a plotting library.

Every number is a field of a result, sizes in MiB excepted, which are a field divided by 2^20.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nestling.evaluation.quality import headline
from nestling.evaluation.results import QualityResult, Scores, SpeedResult
from nestling.evaluation.tables import MIB, by_benchmark, subject
from nestling.evaluation.texts import MIXED

MOST_LINES = 6
"""Lines that one can tell apart in one figure."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point with its label; `low` and `high` end its whisker along the measured axis."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind; `joined` by a line."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """What to draw. `rows` turns it into a dot chart: a labelled row a point, x its value, no scale for y."""

    slug: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_log: bool = False
    rows: bool = False
    x_ticks: tuple[float, ...] = field(default=())


def quality(results: Sequence[QualityResult]) -> list[Figure]:
    """For each benchmark: quality against size, difference to the reference, Matryoshka curve."""
    found: list[Figure] = []
    for group in by_benchmark(results):
        sized = [one for one in group if one.model.size_bytes]
        found += [_against_size(sized)] if len(sized) > 1 else []
        compared = [one for one in group if one.against]
        found += [_differences(compared)] if compared else []
        found += [_curves(group)] if len(group[0].scores) > 1 else []
    return found


def speed(results: Sequence[SpeedResult]) -> list[Figure]:
    """Speed against size on the mixed corpus, and speed by length of text."""
    sized = [one for one in results if one.model.size_bytes and any(bucket.name == MIXED for bucket in one.buckets)]
    found = [_speed_against_size(sized)] if len(sized) > 1 else []
    measured = [one for one in results if any(bucket.tokens for bucket in one.buckets)]
    return found + ([_speed_by_length(measured)] if measured else [])


def _slug(kind: str, result: QualityResult) -> str:
    return f"{kind}-{result.model.task}-{result.benchmark.name}".replace("/", "-")


def _short(result: QualityResult | SpeedResult) -> str:
    return result.model.file_type or result.model.label


def _size(result: QualityResult | SpeedResult) -> float:
    return (result.model.size_bytes or 0) / MIB


def _kind(result: QualityResult) -> str:
    """How a file type's name begins says how it is quantized."""
    name = result.model.file_type or ""
    return next((kind for start, kind in _KINDS.items() if name.startswith(start)), "other")


_KINDS = {"IQ": "IQ types", "Q": "Q types", "F": "float", "BF": "float"}


def _against_size(group: Sequence[QualityResult]) -> Figure:
    main = headline(group[0])
    points = {kind: [one for one in group if _kind(one) == kind] for kind in dict.fromkeys(map(_kind, group))}
    series = tuple(
        Series(kind, tuple(Point(_short(one), _size(one), one.full.means[main].mean) for one in found))
        for kind, found in points.items()
    )
    return Figure(
        _slug("size", group[0]),
        f"Quality against size: {subject(group[0])}",
        "file size, MiB (log scale)",
        main,
        series,
        x_log=True,
    )


def _differences(group: Sequence[QualityResult]) -> Figure:
    main = headline(group[0])
    reference = group[0].against.model if group[0].against else group[0].model
    points = []
    for place, one in enumerate(group):
        gap = one.against.differences[main] if one.against else one.full.means[main]
        points.append(
            Point(
                f"{_short(one)}, {_size(one):.1f} MiB" if one.model.size_bytes else _short(one),
                gap.mean,
                place,
                gap.low,
                gap.high,
            )
        )
    label = f"{main} minus that of {reference.file_type or reference.label}, 95 % interval paired by query"
    return Figure(
        _slug("difference", group[0]),
        f"What is lost: {subject(group[0])}",
        label,
        "",
        (Series("", tuple(points)),),
        rows=True,
    )


def _spread(group: Sequence[QualityResult]) -> list[QualityResult]:
    """At most `MOST_LINES` of them, evenly from the largest to the smallest."""
    places = np.unique(np.linspace(0, len(group) - 1, min(MOST_LINES, len(group))).round().astype(int))
    return [group[place] for place in places]


def _curves(group: Sequence[QualityResult]) -> Figure:
    main = headline(group[0])

    def point(scores: Scores) -> Point:
        return Point("", scores.dimensions, scores.means[main].mean)

    series = tuple(Series(_short(one), tuple(map(point, one.scores)), joined=True) for one in _spread(group))
    sizes = tuple(sorted({float(scores.dimensions) for one in group for scores in one.scores}))
    name = f"Truncated vectors: {subject(group[0])}"
    return Figure(
        _slug("matryoshka", group[0]), name, "dimensions kept (log scale)", main, series, x_log=True, x_ticks=sizes
    )


def _speed_against_size(results: Sequence[SpeedResult]) -> Figure:
    series: list[Series] = []
    for engine in dict.fromkeys(one.engine for one in results):
        found = [one for one in results if one.engine == engine]
        named = not series  # the other engines' points of a file stand above or below, at the same size
        points = tuple(
            Point(_short(one) if named else "", _size(one), bucket.tokens_per_s)
            for one in found
            for bucket in one.buckets
            if bucket.name == MIXED
        )
        series.append(Series(engine, points))
    name = "Speed against size, texts of mixed length"
    return Figure("speed-size", name, "file size, MiB (log scale)", "tokens per second", tuple(series), x_log=True)


def _speed_by_length(results: Sequence[SpeedResult]) -> Figure:
    largest = sorted(results, key=lambda one: -max(bucket.tokens_per_s for bucket in one.buckets))
    step = max(1, -(-len(largest) // MOST_LINES))
    series = tuple(
        Series(
            f"{_short(one)} ({one.engine})",
            tuple(Point("", bucket.tokens, bucket.tokens_per_s) for bucket in one.buckets if bucket.tokens),
            joined=True,
        )
        for one in largest[::step]
    )
    ticks = tuple(sorted({point.x for one in series for point in one.points}))
    name = "Speed by length of text"
    return Figure(
        "speed-length", name, "tokens a text (log scale)", "tokens per second", series, x_log=True, x_ticks=ticks
    )
