"""The commands `rerank` and `multivector`, which builds the head that MaxSim needs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nestling._util.files import check_output_folder
from nestling.cli.console import Bars, show_table
from nestling.cli.embed import Backend, load, naming, read_inputs
from nestling.cli.hub import open_checkpoint
from nestling.cli.options import (
    ArithmeticOption,
    DeviceOption,
    EngineOption,
    FamilyOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    SpecOption,
    TaskOption,
)
from nestling.engine.arithmetic import DEFAULT_ARITHMETIC
from nestling.engine.names import DEFAULT_ENGINE
from nestling.models import local
from nestling.models.reranking import DEFAULT_SCORING
from nestling.spec import Task


def rerank(
    query: Annotated[str, typer.Argument(help="The query.")],
    documents: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Candidates.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A file with one candidate per line; `-` is standard input.")
    ] = None,
    image: ImagesOption = None,
    model: ModelOption = local.STARTER,
    task: TaskOption = None,
    top_n: Annotated[
        int | None, typer.Option("--top-n", "-n", help="Number of candidates to show; all by default.")
    ] = None,
    scoring: Annotated[
        str, typer.Option(help="maxsim (a vector per token) or cosine (a vector per text).")
    ] = DEFAULT_SCORING,
    engine: EngineOption = DEFAULT_ENGINE,
    device: DeviceOption = None,
    arithmetic: ArithmeticOption = DEFAULT_ARITHMETIC,
    spec: SpecOption = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are too long, instead of refusing them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rank texts and images by their similarity to a query, best first."""
    rows = read_inputs(documents, file, image)
    reference = local.with_task(model, task, default=Task.RETRIEVAL)
    with Bars() as bars:
        embedder = load(reference, task, Backend(engine, device, arithmetic), spec, bars)
        with naming(rows, lines_of=None if documents else file or Path("-")):
            best = embedder.rerank(query, rows, top_n=top_n, scoring=scoring, truncate=truncate)
    if as_json:
        results = [{"index": one.index, "relevance_score": one.score, "text": str(rows[one.index])} for one in best]
        typer.echo(json.dumps({"model": reference, "scoring": scoring, "results": results}, ensure_ascii=False))
        return
    cells = [[f"{one.score:.4f}", str(one.index + 1), str(rows[one.index])] for one in best]
    show_table(f"{scoring}, {reference}", ["score", "line", "text"], cells)


def multivector(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, org/repo on the hub, or `starter`.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="A task; may be repeated; all by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; the model cache by default.")] = None,
    family: FamilyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build only the multi-vector heads of a checkpoint's tasks, for models without one; `build` includes them."""
    from nestling.models.families import family_of
    from nestling.pipeline.pipeline import Pipeline

    if out is not None:
        check_output_folder(out)
    tasks = [Task.parse(one) for one in task] if task else list(Task)
    with Bars() as bars:
        source = open_checkpoint(checkpoint, bars)
        name = local.STARTER if checkpoint == local.STARTER else family_of(source, family)
        built = Pipeline(source, out or local.family_folder(name), name, threads=1).projectors(tasks)
    if as_json:
        typer.echo(
            json.dumps([{"path": str(one.path), "sha256": one.card.sha256, "fresh": one.fresh} for one in built])
        )
        return
    for one in built:
        typer.echo(f"{one.path}: {one.card.size_bytes:,} bytes, sha256 {one.card.sha256}")
