"""The commands that embed: `embed` and `similarity`."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nestling._util.files import atomic_write, check_output
from nestling._util.progress import Progress
from nestling._util.spelling import member
from nestling._util.text import decode_text
from nestling.cli.console import Bars, show_table
from nestling.cli.options import (
    ArithmeticOption,
    DeviceOption,
    DimensionsOption,
    EngineOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    PromptOption,
    SpecOption,
    TaskOption,
)
from nestling.cli.output import DEFAULT_FORMAT, Embedded, Format, render
from nestling.cli.profile import Watch
from nestling.engine.arithmetic import DEFAULT_ARITHMETIC
from nestling.engine.names import DEFAULT_ENGINE
from nestling.engine.protocol import Item, Profiled
from nestling.errors import ImageError, NestlingError, TextError, UsageError
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.models.families import read_spec
from nestling.spec import DEFAULT_ROLE, Task
from nestling.vectors import Floats, cosine

TextsArgument = Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to embed.")]
FormatOption = Annotated[str, typer.Option("--format", help=f"The output format: {', '.join(Format)}.")]


def embed(
    texts: TextsArgument = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A file with one text per line; `-` is standard input.")
    ] = None,
    image: ImagesOption = None,
    model: ModelOption = local.STARTER,
    task: TaskOption = None,
    prompt: PromptOption = DEFAULT_ROLE,
    dimensions: DimensionsOption = None,
    engine: EngineOption = DEFAULT_ENGINE,
    device: DeviceOption = None,
    arithmetic: ArithmeticOption = DEFAULT_ARITHMETIC,
    spec: SpecOption = None,
    form: FormatOption = DEFAULT_FORMAT,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file; standard output by default.")] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Truncate texts that are too long; an error by default.")
    ] = False,
    multivector: Annotated[
        bool, typer.Option("--multivector", help="Write a vector for every token, including those of the prefix.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Print the time of each stage to standard error.")] = False,
) -> None:
    """Embed texts and images; the prefix of the task is added to each text."""
    way = member(Format, form, param="format")
    _refuse(way, out, dimensions, multivector=multivector)
    rows = read_inputs(texts, file, image)
    reference = local.with_task(model, task, default=Task.RETRIEVAL)
    watch = Watch()
    with Bars() as bars:
        with watch.stage("load"):
            embedder = load(reference, task, Backend(engine, device, arithmetic), spec, bars, profile=profile)
        with watch.stage("tokenize"), naming(rows, lines_of=None if texts else file or Path("-")):
            items = embedder.items(rows, prompt_name=prompt, truncate=truncate)
        with watch.stage("embed"):
            vectors = _vectors(embedder, items, dimensions, bars.step("embedding"), multivector=multivector)
    with watch.stage("serialize"):
        content = render(Embedded([*map(str, rows)], vectors, reference, sum(map(len, items))), way)
    _write(content, out)
    if isinstance(embedder.engine, Profiled) and profile:
        watch.show(embedder.engine.profile(), embedder.engine.reason)


def _refuse(form: Format, out: Path | None, dimensions: int | None, *, multivector: bool) -> None:
    if out is not None:
        check_output(out)
    if multivector and dimensions is not None:
        raise UsageError(
            "--dimensions: not supported with --multivector, since token vectors have one size", param="dimensions"
        )
    if multivector and form is Format.NPY:
        raise UsageError("--format npy: expected one of text, array, json, jsonl with --multivector", param="format")
    if form is Format.NPY and out is None and sys.stdout.isatty():
        raise UsageError("--format npy is binary: give --out FILE or redirect the output", param="format")


def _write(content: bytes, out: Path | None) -> None:
    if out is None:
        sys.stdout.buffer.write(content)
        return
    with atomic_write(out) as target:
        target.write(content)


def _vectors(
    embedder: Embedder, items: list[Item], dimensions: int | None, told: Progress, *, multivector: bool
) -> Floats | list[Floats]:
    if multivector:
        return embedder.multivectors(items)
    rows, done = np.empty((len(items), embedder.spec.dimension(dimensions)), np.float32), 0
    for places, found in embedder.embed_iter(items, dimension=dimensions):
        rows[places], done = found, done + len(places)
        told(done, len(items))
    return rows


def read_texts(texts: list[str] | None, file: Path | None) -> list[str]:
    """The texts of a command: its arguments, or the lines of a file or standard input."""
    if texts and file:
        raise UsageError("texts, --file: expected only one of them", param="file")
    if texts:
        return texts
    if file is None and sys.stdin.isatty():
        raise UsageError("no texts: expected arguments, --file or lines on standard input", param="input")
    raw = sys.stdin.buffer.read() if file is None or str(file) == "-" else _read(file)
    name, error = str(file or "standard input"), partial(UsageError, param="file")
    content = decode_text(raw, what=name, error=error)
    if not content:
        raise error(f"{name}: no texts: expected at least one line")
    lines = content.split("\n")  # splitlines() would also split at form feeds, U+2028 and the like
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def read_inputs(texts: list[str] | None, file: Path | None, images: list[Path] | None) -> list[str | Path]:
    """The texts of a command, then its images; with images, standard input is read only if `--file -` is given."""
    rows = [] if images and not texts and file is None else read_texts(texts, file)
    return [*rows, *(images or [])]


@contextmanager
def naming(rows: Sequence[str | Path], *, lines_of: Path | None) -> Iterator[None]:
    """Within the block, errors name an image by its path, and a text by its line if texts are the lines of a file."""
    try:
        yield
    except TextError as error:
        if lines_of is None:
            raise
        name = "standard input" if str(lines_of) == "-" else lines_of
        raise NestlingError(f"{name}: line {error.index + 1}: {error.reason}") from None
    except ImageError as error:
        path = str(rows[error.index])
        raise NestlingError(f"{path}: {error.reason.removeprefix(path + ': ')}") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}", param="file") from None


@dataclass(frozen=True, slots=True)
class Backend:
    """The engine of a command, its device, and the arithmetic of its matrix products."""

    engine: str
    device: str | None
    arithmetic: str


def load(
    reference: str, task: str | None, backend: Backend, spec: Path | None, bars: Bars, *, profile: bool = False
) -> Embedder:
    """Load the model of a command, for its task."""
    path = local.resolve(reference, steps=bars.step)
    embedder = Embedder.load(
        path,
        engine=backend.engine,
        device=backend.device,
        spec=read_spec(spec) if spec else None,
        profile=profile,
        arithmetic=backend.arithmetic,
    )
    return embedder.for_task(task) if task else embedder


def similarity(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; at least two inputs.")] = None,
    image: ImagesOption = None,
    model: ModelOption = local.STARTER,
    task: TaskOption = None,
    prompt: PromptOption = DEFAULT_ROLE,
    dimensions: DimensionsOption = None,
    engine: EngineOption = DEFAULT_ENGINE,
    device: DeviceOption = None,
    arithmetic: ArithmeticOption = DEFAULT_ARITHMETIC,
    spec: SpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the cosine similarity of every pair of texts and images."""
    rows = read_inputs(texts, None, image)
    reference = local.with_task(model, task, default=Task.TEXT_MATCHING)
    with Bars() as bars:
        embedder = load(reference, task, Backend(engine, device, arithmetic), spec, bars)
        if task is None and Task.TEXT_MATCHING in embedder.tasks:
            embedder = embedder.for_task(Task.TEXT_MATCHING)  # of a base
        with naming(rows, lines_of=None):
            vectors = embedder.embed(embedder.items(rows, prompt_name=prompt), dimension=dimensions)
    names, matrix = [*map(str, rows)], cosine(vectors, vectors)
    if as_json:
        typer.echo(json.dumps({"texts": names, "cosine": matrix.tolist()}, ensure_ascii=False))
        return
    cells = [[str(i + 1), *(f"{x:.3f}" for x in row), names[i]] for i, row in enumerate(matrix.tolist())]
    show_table("cosine", ["", *(str(i + 1) for i in range(len(names))), "text"], cells)
