"""The commands for large corpora: `bulk` and `search`."""

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from nestling._util.extras import need
from nestling._util.files import check_output_folder
from nestling.bulk.settings import FOUND_ROWS, JobSpec, RunOptions
from nestling.cli.console import Bars, show_table
from nestling.cli.options import DeviceOption, DimensionsOption, JsonOption, ModelOption, TaskOption, ThreadsOption
from nestling.engine.names import DEVICES, kind_of, parse_devices
from nestling.errors import UsageError
from nestling.models import local
from nestling.spec import Task

if TYPE_CHECKING:
    from nestling.bulk.settings import Outcome, Status

LINE_S = 60.0
"""Seconds between progress lines without a terminal."""
SHOWN_LETTERS = 80
_SPEC, _OPTIONS = JobSpec(local.STARTER), RunOptions()
"""The defaults of the options."""


def bulk(
    source: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders or patterns: Parquet, JSON lines, CSV; or images."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DEST", help="The job's folder.")],
    model: ModelOption = local.STARTER,
    task: TaskOption = None,
    text_column: Annotated[
        str | None,
        typer.Option(help="The column of texts [`text` without --image-column].", show_default=False),
    ] = _SPEC.text_column,
    image_column: Annotated[
        str | None, typer.Option(help="The column of images: bytes, paths from the table's folder, or data URIs.")
    ] = _SPEC.image_column,
    id_column: Annotated[
        str | None,
        typer.Option(
            help="The column of ids, or `none` for file#row; `id` by default, if there is one.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Another column to copy into the result; may be repeated.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="passage, query or raw.")] = _SPEC.prompt,
    dimensions: DimensionsOption = None,
    embedding_type: Annotated[str, typer.Option(help="float, float16, int8 or binary.")] = _SPEC.embedding_type,
    truncate: Annotated[bool, typer.Option("--truncate", help="Truncate texts that are too long.")] = False,
    engine: Annotated[str, typer.Option("--engine", "-e", help="local, or ray for Ray Data.")] = _OPTIONS.runner,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Worker processes, each with an engine; one for each device by default.", show_default=False
        ),
    ] = _OPTIONS.workers,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"For torch: {DEVICES}; or several: A,B. On Ray without numbers."),
    ] = None,
    threads: ThreadsOption = None,
    backend: Annotated[str, typer.Option(help="openvino, llamacpp, torch or reference.")] = _SPEC.backend,
    arithmetic: Annotated[
        str | None,
        typer.Option(
            help="openvino: float32, bf16, int8-groups, int8-rows, int8-mixed; torch: float32, bf16, int8-rows. "
            "[int8-groups; torch: float32 on a CPU, bf16 on a card]",
            show_default=False,
        ),
    ] = _SPEC.arithmetic,
    ray_address: Annotated[str | None, typer.Option(help="An existing Ray cluster.")] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows per shard, the unit of writing and resuming [1000; 64 with images].", show_default=False
        ),
    ] = _SPEC.shard_rows,
    max_rejects: Annotated[int | None, typer.Option(min=0, help="Fail when more rows are rejected.")] = None,
    skip_bad_files: Annotated[bool, typer.Option("--skip-bad-files", help="Skip files that cannot be read.")] = False,
    sink: Annotated[str, typer.Option(help="parquet, or lance for a LanceDB table as well.")] = _OPTIONS.sink,
    index: Annotated[bool, typer.Option("--index", help="Build an index with LanceDB.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Embed a corpus into Parquet files; a rerun resumes after an interruption."""
    library = need("nestling.bulk", wanted_for="bulk", extra="bulk")
    check_output_folder(out)
    reference = local.with_task(model, task, default=Task.RETRIEVAL)
    what = JobSpec(
        model=reference,
        text_column=text_column,
        image_column=image_column,
        id_column=id_column,
        keep=tuple(keep or ()),
        prompt=prompt,
        dimensions=dimensions,
        embedding_type=embedding_type,
        truncate=truncate,
        backend=backend,
        arithmetic=arithmetic,
        shard_rows=shard_rows,
        device=None if device is None else kind_of(parse_devices(device)[0]),
    )
    how = RunOptions(
        runner=library.Runner.parse(engine),
        workers=workers,
        device=device,
        threads=threads,
        ray_address=ray_address,
        max_rejects=max_rejects,
        skip_bad_files=skip_bad_files,
        sink=library.Sink.parse(sink),
        index=index,
    )
    with Bars() as bars:
        local.resolve(reference, steps=bars.step)
    with _Shown() as shown:
        outcome = library.run(source, out, what, how, progress=shown.told)
    _tell(outcome, as_json=as_json)


class _Shown(AbstractContextManager["_Shown"]):
    """Progress on standard error: a bar on a terminal, else a line per minute."""

    def __init__(self) -> None:
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %  {task.description}"))
        console = Console(stderr=True)
        self._lines = not console.is_terminal
        self._bars = Progress(*columns, console=console, transient=True, disable=self._lines)
        self._bar = self._bars.add_task("", total=None)
        self._next = time.monotonic() + LINE_S

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def told(self, status: "Status") -> None:
        """Update the progress."""
        said = describe(status)
        self._bars.update(self._bar, completed=status.rows_done, total=status.rows_total, description=said)
        if self._lines and time.monotonic() > self._next:
            typer.echo(said, err=True)
            self._next = time.monotonic() + LINE_S


def describe(status: "Status") -> str:
    """A job's progress in one line."""
    left = status.remaining_s
    said = f"{status.rows_done:,} of {status.rows_total:,} rows"
    return said + (f", {status.tokens_per_s:,.0f} tokens/s, {duration(left)} left" if left is not None else "")


def duration(seconds: float) -> str:
    """Seconds in readable units: 3 d 4 h, 5 h 6 min, 7 min 8 s."""
    whole = round(seconds)
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {part_name}"
    return f"{whole} s"


def _tell(outcome: "Outcome", *, as_json: bool) -> None:
    if as_json:
        told = {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}
        typer.echo(json.dumps(told | {"out": str(outcome.out), "skipped": list(outcome.skipped)}))
        return
    for reason in outcome.skipped:
        typer.echo(f"skipped: {reason}", err=True)
    typer.echo(
        f"{outcome.out}: {outcome.rows:,} vectors in {outcome.shards:,} shards, {outcome.rejected:,} rows rejected; "
        f"this run: {outcome.shards_now:,} shards, {outcome.tokens:,} tokens in {duration(outcome.seconds)}"
    )


def search(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The folder of a `nestling bulk` job.")],
    query: Annotated[str | None, typer.Argument(help="The query.", show_default=False)] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", metavar="FILE", help="An image as the query.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of rows to show.")] = FOUND_ROWS,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="REF", help="The job's model file, if it was moved.")
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the rows of a corpus that are most similar to a text or an image, by exact search."""
    if (query is None) == (image is None):
        raise UsageError("query: give a text or --image FILE, one of them", param="query")
    found = need("nestling.bulk", wanted_for="search", extra="bulk").search(
        dest, image if query is None else query, top=top, model=model, threads=threads, device=device
    )
    if as_json:
        hits = [{"score": hit.score, "id": hit.id, **hit.kept} for hit in found.hits]
        typer.echo(json.dumps(hits, ensure_ascii=False, default=str))
    else:
        kept = list(found.hits[0].kept) if found.hits else []
        rows = [[f"{hit.score:.4f}", str(hit.id), *(_short(hit.kept[name]) for name in kept)] for hit in found.hits]
        show_table("", ["score", "id", *kept], rows)
    if found.rows < found.rows_total:
        typer.echo(f"unfinished: {found.rows:,} of {found.rows_total:,} rows were searched", err=True)


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_LETTERS else text[: SHOWN_LETTERS - 1] + "…"
