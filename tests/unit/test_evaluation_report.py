"""The report: every number from the results, one page that needs nothing else, figures that can be read."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from pydantic import TypeAdapter
from tests.evaluation_samples import quality_results, speed_results

from nestling.cli import evaluate
from nestling.evaluation import figures, plots, report, results, tables
from nestling.evaluation.figures import Figure
from nestling.evaluation.metrics import Interval
from nestling.evaluation.results import QualityResult, SpeedResult

QUALITY, SPEED = quality_results(), speed_results()
FIGURES = figures.quality(QUALITY) + figures.speed(SPEED)


def numbers(value: Any) -> Iterator[float]:
    """Every number in what a result file holds."""
    if isinstance(value, dict):
        for one in value.values():
            yield from numbers(one)
    elif isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


@pytest.fixture(scope="module")
def known() -> set[float]:
    kinds = TypeAdapter(list[QualityResult]), TypeAdapter(list[SpeedResult])
    dumped = kinds[0].dump_python(QUALITY, mode="json"), kinds[1].dump_python(SPEED, mode="json")
    return {one for part in dumped for one in numbers(part)}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.slug)
def test_every_number_of_a_figure_is_in_a_result_file(figure: Figure, known: set[float]) -> None:
    points = [point for series in figure.series for point in series.points]
    assert points
    for point in points:
        assert (point.x * tables.MIB if "MiB" in figure.x_label else point.x) in known
        if figure.rows:
            assert {point.low, point.high} <= known
        else:
            assert point.y in known


def test_every_number_of_a_table_is_in_a_result_file(known: set[float]) -> None:
    forms = ("{:.0f}", "{:.1f}", "{:.2f}", "{:.3f}", "{:.4f}", "{:.6f}", "{:+.3f}", "{:+.4f}", "{}")
    texts = {form.format(number) for one in known for number in (one, one / tables.MIB, 100 * one) for form in forms}
    made = tables.quality(QUALITY) + tables.published(QUALITY) + tables.speed(SPEED)
    for table in made:
        for row in table.rows:
            assert len(row) == len(table.columns)
            for cell in row[1:]:
                for number in re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w.%])", cell):
                    assert number in texts, (table.title, cell)


def test_the_figures_are_those_that_one_decides_by() -> None:
    assert [figure.slug for figure in FIGURES] == [
        "size-retrieval-toy-set",
        "difference-retrieval-toy-set",
        "matryoshka-retrieval-toy-set",
        "speed-size",
        "speed-length",
    ]
    assert all(figure.x_label and (figure.y_label or figure.rows) for figure in FIGURES)
    assert all(len(figure.series) <= figures.MOST_LINES for figure in FIGURES)


def shown(canvas: Canvas) -> list[Text]:
    """Every text that is drawn; ticks outside of the axes are not."""
    (axes,) = canvas.axes
    found = [axes.xaxis.label, axes.yaxis.label, *axes.texts, *(text for one in canvas.legends for text in one.texts)]
    found += [text for text in axes.get_children() if isinstance(text, Text)]  # the titles
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in dict.fromkeys(found) if text.get_text().strip()]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.slug)
def test_no_text_covers_another_and_none_is_cut_off(figure: Figure) -> None:
    canvas = plots.compose(figure)
    canvas.draw_without_rendering()
    boxes = {f"{number} {text.get_text()}": text.get_window_extent() for number, text in enumerate(shown(canvas))}
    assert len(boxes) > 10
    for (one, box), (other, second) in combinations(boxes.items(), 2):
        assert not box.overlaps(second), (one, other)
    for name, box in boxes.items():
        assert canvas.bbox.contains(box.x0, box.y0), name
        assert canvas.bbox.contains(box.x1, box.y1), name


def test_series_differ_in_marker_too() -> None:
    assert len(plots.COLOURS) == len(plots.MARKERS) == len(set(plots.MARKERS)) == figures.MOST_LINES


def test_equal_figures_give_equal_bytes() -> None:
    curve = next(figure for figure in FIGURES if figure.slug.startswith("matryoshka"))
    assert plots.draw(curve) == plots.draw(curve)
    assert plots.draw(curve, form="png").startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of result files, reported by the library."""
    out = tmp_path_factory.mktemp("report")
    kinds = ["F16", "Q8_0", "Q4_K_M"]
    report.write([*quality_results(kinds), *speed_results(kinds)], out)
    return out


def test_the_page_needs_nothing_else(written: Path) -> None:
    page = (written / "report.html").read_text("utf-8")
    assert page.count("<svg") == 5
    outside = re.findall(
        r"""(?:src|href)\s*=\s*["']?(?!#)([^"'\s>]+)|url\((?!#)([^)]+)\)|@import|<script|<link""", page
    )
    assert outside == []


def test_markdown_shows_the_figures_beside_it(written: Path) -> None:
    text = (written / "report.md").read_text("utf-8")
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(linked) == 5
    assert all((written / name).read_bytes().startswith(b"<?xml") for name in linked)
    assert "| toy-text-retrieval-Q8_0 |" in text
    assert "commit " + "0" * 40 in text


def test_a_busy_machine_is_said_in_the_report(tmp_path: Path) -> None:
    report.write(speed_results(["F16"], idle=False), tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "Warning: the machine was not idle: load 3.5" in text
    assert "nDCG" not in text, "no section without results"


def test_names_that_could_break_the_page_are_escaped(tmp_path: Path) -> None:
    (result,) = quality_results(["F16"])
    odd = replace(result, model=replace(result.model, file="<b>|x.gguf", file_type=None))
    report.write([odd], tmp_path)
    assert "<b>" not in (tmp_path / "report.html").read_text("utf-8")
    assert "<b>\\|x" in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (Interval(0, 0, 0), "equal"),
        (Interval(-0.1, -0.2, -0.01), "worse"),
        (Interval(0.1, 0.01, 0.2), "better"),
        (Interval(0.1, -0.01, 0.2), "not significant"),
        (Interval(-0.1, -0.2, 0), "not significant"),
    ],
)
def test_what_an_interval_lets_one_say(gap: Interval, words: str) -> None:
    assert tables.verdict(gap) == words


def test_models_are_told_apart_by_the_shortest_names() -> None:
    group = quality_results(["F16", "Q8_0"])
    assert tables.labels(group) == ["F16", "Q8_0"]
    other = replace(group[1], model=replace(group[1].model, family="other", file="other-Q8_0.gguf"))
    assert tables.labels([group[0], other]) == ["toy-text-retrieval-F16", "other-Q8_0"]
    assert tables.labels([group[0], replace(group[0], engine="llamacpp")]) == ["F16 (auto)", "F16 (llamacpp)"]
    assert tables.labels(SPEED[:2]) == ["F32 (openvino)", "F32 (llamacpp)"]


def test_the_command_reports_folders_and_files(tmp_path: Path) -> None:
    for number, result in enumerate(quality_results(["F16", "Q8_0"])):
        results.write(tmp_path / "results" / f"{number}.json", result)

    evaluate.report([tmp_path / "results", tmp_path / "results" / "0.json"], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "report.html", "figures"}
