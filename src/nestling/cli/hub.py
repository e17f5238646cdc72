"""The commands that pull, show, remove and publish models."""

import json
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestling._util.cpu import usable_threads
from nestling.cli.console import Bars, show_table
from nestling.cli.options import JsonOption, SpecOption
from nestling.errors import UsageError
from nestling.models import hub, hub_models, local, removal
from nestling.spec import Task

if TYPE_CHECKING:
    from nestling.engine.openvino.weight_files import Expansion
    from nestling.formats.gguf import GGUFFile
    from nestling.pipeline.conversion.checkpoint import Checkpoint


def pull(
    reference: Annotated[
        str, typer.Argument(help="org/repo[:QUANT] on the hub, or a published name such as jina-v4-retrieval:Q4_K_M.")
    ],
    images: Annotated[
        bool, typer.Option("--images", help="Also download the vision tower, which is needed for images.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Download a model, or a checkpoint to build from, into the hub's cache; interrupted downloads resume."""
    with Bars() as bars:
        paths = [
            path
            for one in hub_models.references(reference)
            for path in hub_models.pull(one, images=images, steps=bars.step)
        ]
    if as_json:
        typer.echo(json.dumps([{"path": str(path)} for path in paths], indent=2))
        return
    for path in paths:
        typer.echo(str(path))


def open_checkpoint(checkpoint: str, bars: Bars) -> "Checkpoint":
    """Open a checkpoint: a folder, `starter`, or org/repo, which is downloaded if necessary."""
    from nestling.pipeline.conversion.checkpoint import Checkpoint

    if checkpoint == local.STARTER:
        return Checkpoint.open(local.starter_checkpoint())
    wanted = None if Path(checkpoint).exists() else hub_models.reference_of(checkpoint)
    return Checkpoint.open(hub_models.pull(wanted, steps=bars.step)[0] if wanted else Path(checkpoint))


def show(
    model: Annotated[str, typer.Argument(help="A model reference or a GGUF file.")],
    spec: SpecOption = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Time the arithmetics on this processor; loading takes the best from then on."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a model's specification, source and contents."""
    with Bars() as bars:
        found = _facts(local.resolve(model, steps=bars.step), spec, tune=tune)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for title, facts in found.items():
        show_table(title, ["", ""], [[key, _words(value)] for key, value in facts.items()])


def _facts(path: Path, spec: Path | None, *, tune: bool) -> dict[str, dict[str, Any]]:
    from nestling.formats.card import Card
    from nestling.formats.gguf import GGUFFile
    from nestling.formats.mmproj import STEM, VisionFile, is_tower
    from nestling.models.families import read_spec
    from nestling.models.file_spec import specs_of

    file, card = GGUFFile.open(path), Card.read(path)
    parameters = sum(prod(one.shape) for one in file.tensors.values())
    stored = sum(one.size_bytes for one in file.tensors.values())
    weights = {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "parameters": parameters,
        "bits_per_weight": round(8 * stored / parameters, 4) if parameters else 0,
        "tensor_types": dict(sorted(Counter(one.kind.name for one in file.tensors.values()).items())),
        "hub_hash": hub.known_hash(path),
    }
    if is_tower(file):
        vision = VisionFile.open(path)
        purpose = {"task": STEM} | asdict(vision.shape) | asdict(vision.spec)
        return {"file": weights, "spec": purpose, "card": asdict(card) if card else {}}
    purposes = [asdict(one) for one in specs_of(file, read_spec(spec) if spec else None)]
    purpose = purposes[0] if len(purposes) == 1 else {one["task"]: one for one in purposes}
    return {"file": weights, "spec": purpose, "engine": _engine(file, tune=tune), "card": asdict(card) if card else {}}


def _engine(file: "GGUFFile", *, tune: bool) -> dict[str, str]:
    """What `auto` takes for a file, and why; a trial is run only if it is asked for."""
    from nestling.engine.names import EngineName
    from nestling.engine.registry import preferred

    name, reason = preferred()
    found = {"name": name.value, "reason": reason}
    if name is not EngineName.OPENVINO:
        return found
    from nestling.engine.openvino import choice

    threads = usable_threads()
    chosen = choice.tune(file, threads=threads) if tune else choice.expected(file, threads=threads)
    if chosen is None:
        return found | {"arithmetic": "decided by a trial at the first load"}
    return found | {"arithmetic": str(chosen.name), "arithmetic_reason": chosen.reason}


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one!r}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def rm(
    model: Annotated[str, typer.Argument(help="A model name or org/repo; without a task or file type, all of them.")],
    as_json: JsonOption = False,
) -> None:
    """Delete a model's files from this machine; the shipped starter is built again when it is used."""
    gone, freed = removal.remove(model)
    if as_json:
        typer.echo(json.dumps({"removed": gone, "freed_bytes": freed}, indent=2))
        return
    typer.echo("\n".join([*gone, f"{freed / 2**20:,.1f} MiB freed"]))


def cache(
    clean: Annotated[
        bool, typer.Option("--clean", help="Delete all cached weights; they are made again when a model is loaded.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the weight cache (weights dequantized for the OpenVINO engine), or clean it."""
    from nestling.engine.openvino import weight_files

    limit, found = weight_files.limit_bytes(), weight_files.expansions()[::-1]
    total, rows = sum(one.size_bytes for one in found), [_expansion(one) for one in found]
    cells = [
        [", ".join(one.models) or "unknown", _gb(one.size_bytes), row["last_used"], "stale" if one.is_stale else ""]
        for one, row in zip(found, rows, strict=True)
    ]
    for one in found if clean else []:
        one.remove()
    if as_json:
        where = {"folder": str(weight_files.folder()), "limit_bytes": limit, "size_bytes": total, "removed": clean}
        typer.echo(json.dumps(where | {"expansions": rows}, indent=2, ensure_ascii=False))
        return
    show_table(f"weights in {weight_files.folder()}", ["models", "size", "last used (UTC)", ""], cells)
    typer.echo(f"{_gb(total)} {'deleted' if clean else f'of at most {_gb(limit)}'}")


def _expansion(one: "Expansion") -> dict[str, Any]:
    return {
        "path": str(one.path),
        "models": sorted(one.models),
        "size_bytes": one.size_bytes,
        "last_used": datetime.fromtimestamp(one.last_used, UTC).isoformat(timespec="seconds"),
        "stale": one.is_stale,
    }


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 10**9:.2f} GB"


def publish(
    folder: Annotated[Path, typer.Argument(help="A folder with files of `nestling build`.")],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/REPO", help="The repository; created if it does not exist.")
    ],
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="The task, if the folder has files of several.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="ORG/REPO", help="The source repository of the weights, if the cards do not name it."),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="Result files of `nestling eval` for the model card; may be repeated."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes/--dry-run", help="Upload; by default, only show what would be uploaded.", show_default=False
        ),
    ] = False,
) -> None:
    """Show, and with --yes upload, a folder's files as a hub repository with a model card."""
    from nestling.models import publish

    with Bars() as bars:
        made = publish.plan(
            folder,
            repository,
            task=Task.parse(task) if task else None,
            base_model=base_model,
            scores=_scores(folder, results) if results else "",
            progress=bars.step("hashing"),
        )
    show_table(f"to {repository}", ["file", "bytes"], [[name, str(size)] for name, size in made.sizes().items()])
    typer.echo(f"\n{publish.README}:\n\n{made.readme}")
    if not yes:
        typer.echo("Nothing was uploaded; use --yes to upload.")
        return
    typer.echo(f"uploaded: {publish.send(made, private=private)}")


def _scores(folder: Path, results: list[Path]) -> str:
    """The quality tables, as Markdown, of the result files about a file of the folder."""
    from nestling.evaluation.results import QualityResult, read_all
    from nestling.evaluation.tables import quality
    from nestling.formats.card import cards_in
    from nestling.models.publish import table

    hashes = {card.sha256 for card in cards_in(folder)}
    found = [one for one in read_all(results) if isinstance(one, QualityResult) and one.model.sha256 in hashes]
    if not found:
        raise UsageError("results: expected a quality result of a file in this folder", param="results")
    parts = [[f"### {one.title}", table(one.columns, one.rows), *one.notes] for one in quality(found)]
    return "\n\n".join(["## Scores", *(line for part in parts for line in part)])
