"""The commands that measure: `eval quality`, `eval speed`, and `report`, which shows their results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestling._util.extras import need
from nestling._util.files import check_output_folder
from nestling._util.text import read_text
from nestling.cli.console import Bars, show_table
from nestling.cli.group import Verbs
from nestling.cli.options import DeviceOption, EngineOption, JsonOption, ThreadsOption
from nestling.evaluation.settings import QualitySettings, SpeedSettings
from nestling.spec import Task

if TYPE_CHECKING:
    from nestling.evaluation.tables import Table

app = typer.Typer(help="Measure quality and speed.", cls=Verbs)

ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...", help="Model references, families, GGUF files, folders of them, or URL#MODEL of a server."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The folder for result files.")]
RESULTS = Path("results")
_QUALITY, _SPEED = QualitySettings(RESULTS), SpeedSettings(RESULTS)
"""Where the defaults of the options are declared."""


@app.command()
def quality(
    models: ModelsArgument,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            "-b",
            help="A shipped set, a folder, a file of pairs, a hub data set, or `all`; may be repeated.",
        ),
    ] = None,
    dimensions: Annotated[
        list[int] | None,
        typer.Option("--dimensions", "-d", help="A vector size; may be repeated; all trained sizes by default."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="REF", help="The reference model; the largest file of a task by default."),
    ] = None,
    engine: EngineOption = _QUALITY.engine,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="The task of a server's model.")] = None,
    out: OutOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Measure retrieval and similarity with confidence intervals; existing results are kept."""
    need("ir_measures", wanted_for="nestling eval", extra="eval")
    from nestling.evaluation import quality as library
    from nestling.evaluation import tables

    check_output_folder(out)
    settings = QualitySettings(
        out=out,
        benchmarks=tuple(benchmark or ()),
        dimensions=tuple(dimensions or ()),
        against=against,
        engine=engine,
        device=device,
        threads=threads,
        task=Task.parse(task) if task else None,
    )
    with Bars() as bars:
        measured = list(library.measure(models, settings, steps=bars.step))
    if as_json:
        _print_files([one.path for one in measured])
        return
    _show(tables.quality([one.result for one in measured]))
    kept = sum(not one.fresh for one in measured)
    typer.echo(
        f"{len(measured)} result files in {out}" + (f", {kept} of them kept from an earlier run" if kept else "")
    )


@app.command()
def speed(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Model references, GGUF files or folders.")
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option(metavar="URL#MODEL", help="An OpenAI-compatible server; may be repeated.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option("--engine", "-e", help="An engine; may be repeated.")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens per text; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds, after one warm-up round.")] = _SPEED.rounds,
    pass_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of one pass over the texts of a length.")
    ] = _SPEED.pass_tokens,
    clients: Annotated[list[int] | None, typer.Option(help="Concurrent clients; may be repeated.")] = None,
    inputs: Annotated[list[int] | None, typer.Option(help="Texts per request; may be repeated.")] = None,
    together: Annotated[
        int, typer.Option(min=1, help="Models or servers that are loaded together and measured in turn.")
    ] = _SPEED.together,
    cell_s: Annotated[
        float, typer.Option("--cell-seconds", min=0, help="Seconds per latency measurement and round.")
    ] = _SPEED.cell_s,
    out: OutOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Measure tokens per second, latency, load time and memory, models in turn; needs an idle machine."""
    need("nestling.evaluation.results", wanted_for="nestling eval", extra="eval")
    from nestling.errors import UsageError
    from nestling.evaluation import speed as library
    from nestling.evaluation import tables

    check_output_folder(out)
    if not models and not url:
        raise UsageError("nothing to measure: expected a MODEL or --url", param="models")
    settings = SpeedSettings(
        out=out,
        engines=tuple(engine or _SPEED.engines),
        device=device,
        threads=threads,
        lengths=tuple(length or _SPEED.lengths),
        rounds=rounds,
        pass_tokens=pass_tokens,
        cell_s=cell_s,
        together=together,
        clients=tuple(clients or _SPEED.clients),
        inputs=tuple(inputs or _SPEED.inputs),
    )
    with Bars() as bars:
        timed = library.measure([*(models or []), *(url or [])], settings, steps=bars.step)
    if as_json:
        _print_files([one.path for one in timed])
        return
    found = [one.result for one in timed]
    _show(tables.speed(found))
    if warning := tables.load_warning(found):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{len(timed)} result files in {out}")


def report(
    results: Annotated[list[Path], typer.Argument(help="Result files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write the report into.")],
) -> None:
    """Write report.md and a self-contained report.html from result files."""
    need("nestling.evaluation.plots", wanted_for="nestling report", extra="eval")
    from nestling.evaluation import report as library
    from nestling.evaluation.results import read_all

    check_output_folder(out)
    for path in library.write(read_all(results), out):
        typer.echo(str(path))


def _show(tables: Sequence["Table"]) -> None:
    for table in tables:
        show_table(table.title, list(table.columns), [list(row) for row in table.rows])
        for note in table.notes:
            typer.echo(note)
        typer.echo("")


def _print_files(paths: Sequence[Path]) -> None:
    typer.echo(json.dumps([json.loads(read_text(path)) | {"path": str(path)} for path in paths], indent=1))
