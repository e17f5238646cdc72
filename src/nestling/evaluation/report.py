"""The report: Markdown with SVG files, and one self-contained HTML page.

All numbers are from the given results, through `tables` and `figures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from textwrap import fill

from nestling._util.files import atomic_write
from nestling.evaluation import extras, figures, tables
from nestling.evaluation.figures import Figure
from nestling.evaluation.results import QualityResult, Result, SpeedResult
from nestling.evaluation.tables import Table

TITLE = "Quality and speed"
WIDTH = 120
"""Of a line of Markdown's text."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, its text, figures and tables."""

    heading: str
    text: Sequence[str]
    drawings: Sequence[Figure]
    tables: Sequence[Table]


def write(results: Sequence[Result], out: Path) -> list[Path]:
    """Write `report.md`, `report.html` and the figures into a folder; returns the paths of the two reports."""
    plots = extras.need("nestling.evaluation.plots", wanted_for="drawing the report")
    sections = contents(results)
    drawn = {figure.slug: plots.draw(figure) for section in sections for figure in section.drawings}
    pages = {"report.md": markdown(sections), "report.html": html(sections, drawn)}
    for slug, svg in drawn.items():
        _write(out / "figures" / f"{slug}.svg", svg)
    for name, text in pages.items():
        _write(out / name, text.encode())
    return [out / name for name in pages]


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def contents(results: Sequence[Result]) -> list[Section]:
    """The sections of the report; those without results are left out."""
    quality = [one for one in results if isinstance(one, QualityResult)]
    speed = [one for one in results if isinstance(one, SpeedResult)]
    warning = tables.load_warning(speed)
    found = [Section("All sets", [], [], tables.published(quality))]
    found += [
        Section(tables.title(group), [] if number else [_QUALITY], figures.quality(group), tables.quality(group))
        for number, group in enumerate(tables.by_benchmark(quality))
    ]
    warned = [f"Warning: {warning}."] if warning else []
    found.append(Section("Speed", [_SPEED, *warned], figures.speed(speed), tables.speed(speed)))
    return [section for section in found if section.tables] + [
        Section("Where the numbers come from", _sources(results), [], [])
    ]


_QUALITY = (
    "Exact search by cosine; scores are at full width unless dimensions are named. Intervals are percentile bootstrap"
    " intervals over queries at 95 %. Differences are paired by query, which removes the variance between queries. A"
    " difference whose interval contains 0 is not significant."
)
_SPEED = (
    "All models took turns in every round, each file in its own process. Tokens per second are medians over rounds and"
    " count special tokens and prefixes; load is the time until the first vector."
)


def _sources(results: Sequence[Result]) -> list[str]:
    lines = []
    for one in results:
        machine, origin = one.origin.machine, one.origin
        packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
        code = f"nestling {origin.version}, commit {origin.commit or 'unknown'}"
        memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
        where = f"{machine.processor}, {machine.processors} processors, {memory}, {machine.system}"
        lines.append(f"{code}; {where}; Python {machine.python}, {packages}")
    began = sorted(one.origin.started for one in results)
    files = sorted({f"{one.model.label}: SHA-256 {one.model.sha256}" for one in results if one.model.sha256})
    return [f"{len(results)} result files, measured from {began[0]} to {began[-1]}.", *dict.fromkeys(lines), *files]


def markdown(sections: Sequence[Section]) -> str:
    """The report in Markdown; figures are files in `figures/`."""
    parts = [f"# {TITLE}"]
    for section in sections:
        parts.append(f"## {section.heading}")
        parts += (
            map(_wrapped, section.text)
            if section.tables
            else ["\n".join(_wrapped(f"- {line}") for line in section.text)]
        )
        parts += [f"![{figure.title}](figures/{figure.slug}.svg)" for figure in section.drawings]
        parts += [_markdown_table(table) for table in section.tables]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    return fill(text, WIDTH, subsequent_indent="  " if text.startswith("- ") else "", break_on_hyphens=False)


def _markdown_table(table: Table) -> str:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [row(table.columns), row(["---"] + ["---:"] * (len(table.columns) - 1)), *map(row, table.rows)]
    return "\n".join([f"### {table.title}", "", *lines, *(f"\n{note}" for note in table.notes)])


def html(sections: Sequence[Section], drawn: dict[str, bytes]) -> str:
    """The report as one HTML page with embedded styles and figures."""
    parts = [f"<h1>{TITLE}</h1>"]
    for section in sections:
        parts.append(f"<h2>{escape(section.heading)}</h2>")
        parts += [f"<p>{escape(line)}</p>" for line in section.text]
        parts += [_html_figure(figure, drawn[figure.slug]) for figure in section.drawings]
        parts += [_html_table(table) for table in section.tables]
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{TITLE}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>\n{style}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _html_figure(figure: Figure, svg: bytes) -> str:
    text = svg.decode()
    return f'<figure role="img" aria-label="{escape(figure.title)}">{text[text.index("<svg") :]}</figure>'


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in table.notes)
    grid = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f"<h3>{escape(table.title)}</h3><div class=wide>{grid}</div>{notes}"
