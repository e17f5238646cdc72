"""Draw figures as SVG with matplotlib; the only module that imports it.

The colours are Okabe and Ito's, which colour-blind readers can distinguish; every series also has its own marker. Equal
figures give equal bytes.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from nestling.evaluation.figures import Figure, Point, Series

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "X")
WIDTH_IN, ROW_IN = 8.0, 0.26
HEIGHT_IN, LABELLED_IN = 5.0, 6.5
"""Height of a figure of lines, and of one with labelled points, in inches."""
_STYLE: Any = {
    "svg.hashsalt": "nestling", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True, "figure.dpi": 100, "axes.titlesize": 11,
}  # fmt: skip
FAR_PT = 26
"""A label farther away than this gets a line to its point."""
_REACH = tuple(
    (dx, dy)
    for far in (9, 18, 28, 40, 54)
    for dx, dy in ((0, far), (0, -far), (far, 0), (-far, 0), (far, far), (-far, far), (far, -far), (-far, -far))
)
"""Offsets at which a label may be placed, in points, nearest first."""


def draw(figure: Figure, *, form: str = "svg") -> bytes:
    """Draw a figure: -> the bytes of an SVG (or PNG) document."""
    with mpl.rc_context(_STYLE):
        file = io.BytesIO()
        compose(figure).savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
        return file.getvalue()


def compose(figure: Figure) -> Canvas:
    """Lay a figure out."""
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(WIDTH_IN, _height(figure)), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(figure.title, loc="left")
        axes.set_xlabel(figure.x_label)
        if figure.rows:
            _dot_rows(axes, figure.series)
        else:
            axes.set_ylabel(figure.y_label)
            _scatter(canvas, axes, figure)
        return canvas


def _height(figure: Figure) -> float:
    points = [point for series in figure.series for point in series.points]
    if figure.rows:
        return 1.6 + ROW_IN * len(points)
    return LABELLED_IN if any(point.label for point in points) else HEIGHT_IN


def _dot_rows(axes: Any, series: Sequence[Series]) -> None:  # noqa: ANN401 - matplotlib's Axes
    points = [point for one in series for point in one.points]
    for point in points:
        axes.plot([point.low, point.high], [point.y, point.y], color=COLOURS[0], linewidth=2, alpha=0.5)
    axes.plot([point.x for point in points], [point.y for point in points], "o", color=COLOURS[0], markersize=6)
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks([point.y for point in points], [point.label for point in points])
    axes.set_ylim(len(points) - 0.5, -0.5)


def _scatter(canvas: Canvas, axes: Any, figure: Figure) -> None:  # noqa: ANN401 - matplotlib's Axes
    for number, series in enumerate(figure.series):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 6}
        line = "-" if series.joined else "none"
        xs, ys = [point.x for point in series.points], [point.y for point in series.points]
        axes.plot(xs, ys, linestyle=line, linewidth=1.5, label=series.name, **style)
    _scales(axes, figure)
    if len(figure.series) > 1 or figure.series[0].joined:
        canvas.legend(loc="outside lower center", ncols=3, frameon=False)
    _labels(canvas, axes, [point for series in figure.series for point in series.points if point.label])


def _scales(axes: Any, figure: Figure) -> None:  # noqa: ANN401 - matplotlib's Axes
    axes.margins(x=0.08, y=0.14)
    if figure.y_label.startswith("tokens"):
        axes.set_ylim(bottom=0)
    if not figure.x_log:
        return
    axes.set_xscale("log", base=2)
    if figure.x_ticks:
        axes.set_xticks(figure.x_ticks, [f"{tick:g}" for tick in figure.x_ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())


def _labels(canvas: Canvas, axes: Any, points: Sequence[Point]) -> None:  # noqa: ANN401 - matplotlib's Axes
    """Place labels where they cover no other label or point; a thin line connects one that is far from its point."""
    FigureCanvasAgg(canvas)  # measures texts
    canvas.draw_without_rendering()
    pixels = canvas.dpi / 72
    marks = [axes.transData.transform((point.x, point.y)) for point in points]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    for point, mark in zip(points, marks, strict=True):
        text = axes.annotate(
            point.label, (point.x, point.y), (0, 0), textcoords="offset points", fontsize=8, ha="center", va="center"
        )
        size = text.get_window_extent()
        box, place = _free(mark, size, taken, axes.bbox, pixels)
        text.set_position(place)
        taken.append(box)
        if abs(place[0]) + abs(place[1]) > FAR_PT:
            axes.annotate(
                "",
                (point.x, point.y),
                place,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6},
                zorder=1,
            )


def _free(
    mark: NDArray[np.float64], size: Bbox, taken: Sequence[Bbox], inside: Bbox, pixels: float
) -> tuple[Bbox, tuple[float, float]]:
    """The nearest free place of a label: its box in pixels and its offset in points; the last place if none is free."""
    for dx, dy in _REACH:
        offset = (dx + (size.width / pixels / 2 if dx > 0 else -size.width / pixels / 2 if dx < 0 else 0), dy)
        x, y = mark[0] + offset[0] * pixels, mark[1] + offset[1] * pixels
        box = Bbox.from_extents(x - size.width / 2, y - size.height / 2, x + size.width / 2, y + size.height / 2)
        within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        if within and not any(box.overlaps(other) for other in taken):
            break
    return box, offset
