"""The command `vision`, which builds the file of a vision tower."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestling._util import files
from nestling.cli.console import Bars, say_written
from nestling.cli.hub import open_checkpoint
from nestling.cli.options import FamilyOption, JsonOption
from nestling.models import local

if TYPE_CHECKING:
    from nestling.pipeline.conversion.checkpoint import Checkpoint


def vision(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, org/repo on the hub, or `starter`.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The file to write; in the model cache by default."),
    ] = None,
    family: FamilyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build only the vision tower of a checkpoint, one file for all tasks (`mmproj-*-BF16.gguf`)."""
    from nestling.models.families import family_of

    if out:
        files.check_output(out)
    with Bars() as bars:
        source = open_checkpoint(checkpoint, bars)
        name = local.STARTER if checkpoint == local.STARTER else family_of(source, family)
        made = _streamed(source, out, name) if out and files.is_stream(out) else _made(source, out, name, bars)
    say_written(Path(made["path"]), json.dumps(made) if as_json else f"{made['path']}: sha256 {made['sha256']}")


def _made(source: "Checkpoint", out: Path | None, family: str, bars: Bars) -> dict[str, str]:
    """Build a file with its card, or keep an existing one."""
    from nestling.pipeline.pipeline import Pipeline

    folder = out.parent if out else local.family_folder(family)
    built = Pipeline(source, folder, family, threads=1, steps=bars.step).tower(out)
    return {"path": str(built.path), "sha256": built.card.sha256}


def _streamed(source: "Checkpoint", out: Path, family: str) -> dict[str, str]:
    """Write to a pipe or a device, without a card."""
    from nestling.pipeline.conversion.vision import write_tower

    return {"path": str(out), "sha256": write_tower(source, out=out, family=family)}
