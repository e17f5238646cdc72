"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from nestling.spec import Task

ModelOption = Annotated[
    str, typer.Option("--model", "-m", metavar="REF", help="A path to a GGUF file or name[-task][:QUANT].")
]
TaskOption = Annotated[str | None, typer.Option("--task", "-t", help=f"One of {', '.join(Task)}.")]
PromptOption = Annotated[
    str, typer.Option("--prompt", "-p", help="query, passage or raw: which prefix is put in front.")
]
DimensionsOption = Annotated[
    int | None, typer.Option("--dimensions", "-d", help="A trained vector size; the full one by default.")
]
EngineOption = Annotated[str, typer.Option("--engine", "-e", help="auto, openvino, llamacpp, torch or reference.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Of torch: cuda[:N], xpu[:N], mps or cpu; the first GPU by default."),
]
ArithmeticOption = Annotated[
    str, typer.Option("--arithmetic", metavar="NAME", help="auto, float32, bf16, int8-groups, int8-rows or int8-mixed.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads; all usable processors by default.")
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
    Path | None, typer.Option("--calibration", metavar="FILE", help="Plain text; the package's own by default.")
]
FamilyOption = Annotated[
    str | None, typer.Option("--family", help="The family name of the files of a checkpoint of your own.")
]
ImagesOption = Annotated[
    list[Path] | None,
    typer.Option("--image", "-i", metavar="FILE", help="PNG, JPEG, WebP, GIF or BMP, after the texts; several times."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
ChunksOption = Annotated[
    int | None,
    typer.Option("--chunks", min=1, help="Calibrate with so many chunks of 512 tokens."),
]
