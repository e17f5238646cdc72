"""The commands that build, show and check files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nestling._util import files
from nestling._util.text import read_text
from nestling.cli.console import Bars, say_written, show_table
from nestling.cli.hub import open_checkpoint
from nestling.cli.options import CalibrationOption, ChunksOption, FamilyOption, JsonOption, SpecOption, ThreadsOption
from nestling.errors import UsageError
from nestling.formats.quant_types import FILE_TYPES, FLOAT_FILE_TYPES, parse_file_type
from nestling.models import hub_models, local
from nestling.models.towers import stored_towers
from nestling.pipeline.conversion.convert import DEFAULT_FILE_TYPE
from nestling.spec import BASE_STEM, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nestling._util.progress import TotalProgress
    from nestling.models.fidelity import Fidelity
    from nestling.pipeline.pipeline import BuiltFile

EVERY = tuple(name for name in FILE_TYPES if name != "Q2_K_S")
"""The file types of the published collection."""
LADDER = "F32,F16,BF16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M"


def build(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint folder, org/repo on the hub, or `starter` for the shipped checkpoint.")
    ] = local.STARTER,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="A task; may be repeated; all by default.")
    ] = None,
    quant: Annotated[
        str, typer.Option("--quant", "-q", help="File types, separated by commas; `all` for every one.")
    ] = LADDER,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; the model cache by default.")] = None,
    family: FamilyOption = None,
    keep_adapters: Annotated[
        bool,
        typer.Option("--keep-adapters", help="Build one base for all tasks, and each task's LoRA adapter as a file."),
    ] = False,
    calibration: CalibrationOption = None,
    chunks: ChunksOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a checkpoint's task models in the given file types; existing files are kept."""
    from nestling._util.cpu import usable_threads
    from nestling._util.progress import TotalProgress
    from nestling.models.families import family_of
    from nestling.pipeline import self_test
    from nestling.pipeline.eta import COMPARE, weights
    from nestling.pipeline.pipeline import Pipeline
    from nestling.pipeline.quantization.calibration import for_pipeline

    if keep_adapters and task:
        raise UsageError(
            "keep_adapters: not supported with --task, since the base is for all tasks", param="keep_adapters"
        )
    if out is not None:
        files.check_output_folder(out)
    starter = checkpoint == local.STARTER
    tasks = [Task.parse(one) for one in task] if task else list(Task)
    kinds, workers = _kinds(quant), threads or usable_threads()
    with Bars() as bars:
        source = open_checkpoint(checkpoint, bars)
        name = local.STARTER if starter else family_of(source, family)
        folder = out or local.family_folder(name)
        collect = for_pipeline(threads=workers, text=calibration, limit=chunks)
        total = TotalProgress(bars.step("everything"))
        pipeline = Pipeline(source, folder, name, workers, bars.step, collect, total, self_test.prove)
        if not as_json:
            compared = len(set(kinds).difference(FLOAT_FILE_TYPES)) * weights(pipeline.shapes)
            total.expect({one: COMPARE * compared / workers for one in ([BASE_STEM] if keep_adapters else tasks)})
        built = pipeline.build_base(kinds) if keep_adapters else pipeline.build(tasks, kinds)
        fidelity = {} if as_json else _fidelity(built, folder, workers, bars, total)
    if as_json:
        typer.echo(json.dumps([_card_json(file.path, file.fresh) for file in built], indent=2))
        return
    columns = ["file", "bits per weight", "MiB", "cosine to F16", "lowest", "worst tensor, relative error", ""]
    show_table(f"{folder}", columns, [_row(file, fidelity.get(file.path)) for file in built])


def _kinds(quant: str) -> list[str]:
    return list(EVERY) if quant.lower() == "all" else [parse_file_type(one) for one in quant.split(",")]


def _row(file: "BuiltFile", fidelity: "Fidelity | None") -> list[str]:
    card = file.card
    return [
        file.path.name,
        f"{card.bits_per_weight:.2f}",
        f"{card.size_bytes / 2**20:.1f}",
        f"{fidelity.mean:.6f}" if fidelity else "",
        f"{fidelity.lowest:.6f}" if fidelity else "",
        f"{card.worst_tensor} {card.worst_error:.3g}" if card.worst_tensor else "",
        "built" if file.fresh else "kept",
    ]


def _fidelity(
    built: "Sequence[BuiltFile]", folder: Path, threads: int, bars: Bars, total: "TotalProgress"
) -> "dict[Path, Fidelity]":
    """The fidelity to F16 of every quantized file: measured, or cached from an earlier run for the same bytes."""
    from nestling.models.fidelity import Record

    record, found = Record.read(folder), dict[Path, "Fidelity"]()
    quantized = [file.card for file in built if file.card.file_type not in FLOAT_FILE_TYPES]
    for base in built:
        cards = [card for card in quantized if card.task == base.card.task]
        if base.card.file_type == "F16" and cards:
            progress = total.part(base.card.task, progress=bars.step(f"comparing with {base.path.name}"))
            found |= record.complete(cards, base.card, threads=threads, progress=progress)
    return found


def _card_json(path: Path, fresh: bool) -> dict[str, Any]:
    return {"path": str(path), "fresh": fresh, **json.loads(read_text(path.with_suffix(".json")))}


def convert(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, org/repo on the hub, or `starter`.")],
    task: Annotated[str, typer.Option("--task", "-t", help=f"One of {', '.join(Task)}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The GGUF file to write.")],
    quant: Annotated[
        str, typer.Option("--quant", "-q", help=f"One of {', '.join(FLOAT_FILE_TYPES)}.")
    ] = DEFAULT_FILE_TYPE,
    family: FamilyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge one task's LoRA adapter into the text model and write a float GGUF file."""
    from nestling.models.families import family_of
    from nestling.pipeline.conversion.convert import convert as run

    files.check_output(out)
    with Bars() as bars:
        source = open_checkpoint(checkpoint, bars)
        report = run(
            source,
            task=Task.parse(task),
            out=out,
            family=local.STARTER if checkpoint == local.STARTER else family_of(source, family),
            file_type=parse_file_type(quant),
            progress=bars.step(out.name),
        )
    counts = {name: getattr(report.counts, name) for name in report.counts.__dataclass_fields__}
    if as_json:
        facts = {"path": str(out), "sha256": report.sha256, "size_bytes": report.size_bytes, "parameters": counts}
        say_written(out, json.dumps(facts))
        return
    say_written(out, f"{out}: {report.size_bytes:,} bytes, sha256 {report.sha256}")
    say_written(out, "parameters: " + ", ".join(f"{name} {value:,}" for name, value in counts.items()))


def inspect(
    file: Annotated[str, typer.Argument(help="A GGUF file or a model reference.")],
    as_json: JsonOption = False,
) -> None:
    """Show a GGUF file's metadata and tensors."""
    from nestling.formats.gguf import GGUFFile

    with Bars() as bars:
        found = GGUFFile.open(local.resolve(file, steps=bars.step), pieces=True)
    if found.piece:
        typer.echo(f"{found.path}: {found.piece} of a split model", err=True)
    fields = {key: field.value for key, field in found.metadata.items()}
    tensors = list(found.tensors.values())
    if as_json:
        listed = [{**asdict(one), "kind": one.kind.name, "size_bytes": one.size_bytes} for one in tensors]
        typer.echo(json.dumps({"path": str(found.path), "metadata": fields, "tensors": listed}, ensure_ascii=False))
        return
    show_table(str(found.path), ["field", "value"], [[key, _brief(value)] for key, value in fields.items()])
    rows = [[one.name, " x ".join(map(str, one.shape)), one.kind.name, str(one.size_bytes)] for one in tensors]
    show_table(f"{len(rows)} tensors", ["tensor", "shape", "type", "bytes"], rows)


def _brief(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 8:  # noqa: PLR2004 - what fits on a line
        return f"[{len(value)} items] {', '.join(map(repr, value[:4]))}, ..."
    return str(value)


def list_models(as_json: JsonOption = False) -> None:
    """List the models on this machine, pulled or built, and those of the starter, which are built on first use."""
    found = {str(m.reference): m.path for m in local.available()}
    found |= {str(m.reference): m.path for m in hub_models.models() if m.name is None}
    found |= {f"{path.stem} (images)": path for path in stored_towers()}
    sizes = {reference: path.stat().st_size if path else None for reference, path in found.items()}
    if as_json:
        rows = [{"reference": r, "size_bytes": sizes[r], "path": str(p) if p else None} for r, p in found.items()]
        typer.echo(json.dumps(rows, indent=2))
        return
    words = {r: "built on first use" if size is None else f"{size / 2**20:.1f} MiB" for r, size in sizes.items()}
    cells = [[reference, words[reference], str(path or "")] for reference, path in found.items()]
    show_table(f"models in {files.cache_folder()}", ["reference", "size", "file"], cells)


def verify(
    file: Annotated[str, typer.Argument(help="A GGUF file or a model reference.")],
    against: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also report the cosine to another file's vectors.")
    ] = None,
    spec: SpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a file: structure, hash, finite weights, agreement of engines; exit code 1 when a check fails."""
    from nestling.evaluation.verify import verify as run
    from nestling.models.families import read_spec

    with Bars() as bars:
        path = local.resolve(file, steps=bars.step)
        other = local.resolve(against, steps=bars.step) if against else None
        checks = run(path, against=other, spec=read_spec(spec) if spec else None)
    if as_json:
        typer.echo(json.dumps([{"check": c.name, "passed": c.passed, "detail": c.detail} for c in checks], indent=2))
    else:
        show_table(
            str(path), ["check", "", "detail"], [[c.name, "ok" if c.passed else "FAILED", c.detail] for c in checks]
        )
    if not all(check.passed for check in checks):
        raise typer.Exit(1)
