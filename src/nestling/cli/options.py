"""The options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.names import DEVICES, EngineName
from nestling.spec import Task

ModelOption = Annotated[
    str, typer.Option("--model", "-m", metavar="REF", help="A path to a GGUF file or name[-task][:QUANT].")
]
TaskOption = Annotated[str | None, typer.Option("--task", "-t", help=f"One of {', '.join(Task)}.")]
PromptOption = Annotated[
    str, typer.Option("--prompt", "-p", help="The role, which chooses the prefix: query, passage or raw.")
]
DimensionsOption = Annotated[
    int | None, typer.Option("--dimensions", "-d", help="A trained vector size; the full width by default.")
]
EngineOption = Annotated[str, typer.Option("--engine", "-e", help=f"{', '.join(EngineName)}.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help=f"For torch: {DEVICES}; the first GPU by default."),
]
ArithmeticOption = Annotated[str, typer.Option("--arithmetic", metavar="NAME", help=f"{', '.join(ArithmeticName)}.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Compute threads; all usable processors by default.")
]
SpecOption = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        metavar="FILE",
        help="JSON description (task, prefixes, dimensions, pooling) of a GGUF file without nestling metadata.",
    ),
]
CalibrationOption = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="A calibration text; the shipped one by default.")
]
FamilyOption = Annotated[
    str | None, typer.Option("--family", help="The family name for the files of your own checkpoint.")
]
ImagesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        "-i",
        metavar="FILE",
        help="A PNG, JPEG, WebP, GIF or BMP file, embedded after the texts; may be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ChunksOption = Annotated[
    int | None,
    typer.Option("--chunks", min=1, help="Number of calibration chunks of 512 tokens."),
]
