"""The verbs that quantize a file: with a stock recipe, with a mix of one's own, and the importance matrix for both."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestling.cli.console import Bars, show_table
from nestling.cli.options import JsonOption, SpecOption, ThreadsOption
from nestling.errors import UsageError
from nestling.quants import parse_file_type

if TYPE_CHECKING:
    from nestling.build.imatrix import ImportanceMatrix
    from nestling.build.mix_recipe import MixRecipe
    from nestling.build.plan import Mix, QuantizePlan
    from nestling.spec import ModelSpec

CalibrationOption = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="Plain text; the package's own by default.")
]


def imatrix(
    model: Annotated[Path, typer.Argument(help="A float GGUF file (F32, F16 or BF16).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The GGUF file to write.")],
    calibration: CalibrationOption = None,
    chunks: Annotated[int | None, typer.Option(min=1, help="Take so many chunks of 512 tokens only.")] = None,
    spec: SpecOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Collect an importance matrix: run calibration text through a model and weigh the columns of its matrices."""
    from nestling.calibrating import collect
    from nestling.engine.loading import usable_threads

    with Bars() as bars:
        matrix = collect(
            model,
            spec=_spec(model, spec),
            text=calibration,
            threads=threads or usable_threads(),
            limit=chunks,
            progress=bars.step(out.name),
        )
        sha256 = matrix.write(out)
    facts = {"path": str(out), "sha256": sha256, "entries": len(matrix.entries), "chunks": matrix.chunk_count}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{out}: {len(matrix.entries)} matrices over {matrix.chunk_count} chunks, sha256 {sha256}")


def quantize(
    model: Annotated[Path, typer.Argument(help="A float GGUF file (F32, F16 or BF16).")],
    quant: Annotated[str | None, typer.Argument(help="The file type to make, such as Q4_K_M.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The GGUF file to write.")] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="An importance matrix of this model.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=TYPE", help="Another type for tensors whose names match; several times."),
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="The embedding table's type.")
    ] = None,
    target_bpw: Annotated[
        float | None, typer.Option(min=0.1, metavar="BITS", help="Choose the best mix of so many bits per weight.")
    ] = None,
    target_size: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Choose the best mix for a file of so many bytes.")
    ] = None,
    keep_embedding: Annotated[
        str | None, typer.Option(metavar="TYPE", help="The embedding table's type in a chosen mix.")
    ] = None,
    calibration: CalibrationOption = None,
    trials: Annotated[int, typer.Option(min=1, help="Measurements that refine a chosen mix.")] = 100,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="Apply a mix that was chosen before.")] = None,
    recipe_out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the chosen mix.")] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a quantized file for a source, at a cost in quality.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the tensors' types and sizes; write nothing.")
    ] = False,
    spec: SpecOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize a float GGUF file: a file type as llama-quantize makes it, or the best mix for a size."""
    from nestling.build.plan import plan_file
    from nestling.build.quantize import quantize as run

    stock = {"tensor_type": tensor_type, "token_embedding_type": token_embedding_type}
    wishes = {"keep_embedding": keep_embedding, "recipe_out": recipe_out, "calibration": calibration}
    target = target_bpw if target_bpw is not None else target_size
    _check_sources({"a file type": quant, "--target-bpw": target_bpw, "--target-size": target_size, "--recipe": recipe})
    _check_unused(stock, used=quant is not None, needed="a file type")
    _check_unused(wishes, used=target is not None, needed="--target-bpw or --target-size")
    if out is None and not dry_run:
        raise UsageError("out: the file to write is missing: --out FILE, or --dry-run", param="out")
    with Bars() as bars:
        matrix = _read(imatrix)
        if target is not None:
            wish = _Wish(target_bpw, target_size, keep_embedding, trials, calibration)
            found = _choose(model, wish, _needed(matrix), _spec(model, spec), threads, bars)
            if recipe_out:
                found.write(recipe_out)
            mix = _applied(model, found, matrix)
        else:
            mix = (
                _stock(quant, tensor_type, token_embedding_type, matrix) if quant else _reapplied(model, recipe, matrix)
            )
        mix = replace(mix, allow_requantize=allow_requantize)
        if out is None or dry_run:
            _show_plan(plan_file(model, mix), as_json=as_json)
            return
        report = run(model, out=out, mix=mix, threads=threads, progress=bars.step(out.name))
    facts = {"path": str(out), "sha256": report.sha256, "size_bytes": report.size_bytes}
    facts |= {"bits_per_weight": report.bits_per_weight}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(
        f"{out}: {report.size_bytes:,} bytes, {report.bits_per_weight:.2f} bits per weight, sha256 {report.sha256}"
    )


@dataclass(frozen=True, slots=True)
class _Wish:
    bits_per_weight: float | None
    size_bytes: int | None
    keep_embedding: str | None
    trials: int
    calibration: Path | None


def _check_sources(given: Mapping[str, object]) -> None:
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        wrong = "nothing says what to make" if not found else f"{' and '.join(found)} exclude each other"
        raise UsageError(f"quant: {wrong}; give one of {', '.join(given)}", param="quant")


def _check_unused(options: Mapping[str, object], *, used: bool, needed: str) -> None:
    name = next((name for name, value in options.items() if value), None)
    if name and not used:
        raise UsageError(f"{name}: this goes with {needed}", param=name)


def _read(path: Path | None) -> "ImportanceMatrix | None":
    from nestling.build.imatrix import ImportanceMatrix

    return ImportanceMatrix.read(path) if path else None


def _needed(matrix: "ImportanceMatrix | None") -> "ImportanceMatrix":
    if matrix is None:
        raise UsageError(
            "imatrix: a mix is chosen with an importance matrix: --imatrix FILE, as `nestling imatrix` makes it",
            param="imatrix",
        )
    return matrix


def _spec(model: Path, given: Path | None) -> "ModelSpec":
    from nestling.embedder import spec_of
    from nestling.gguf_io import GGUFFile
    from nestling.recognise import read_spec

    return spec_of(GGUFFile.open(model), read_spec(given) if given else None)


def _stock(
    quant: str, tensor_type: list[str] | None, token_embedding_type: str | None, matrix: "ImportanceMatrix | None"
) -> "Mix":
    from nestling.build.plan import Mix, parse_quant_type, parse_tensor_type

    exceptions = tuple(parse_tensor_type(one) for one in tensor_type or ())
    embedding = token_embedding_type and parse_quant_type(token_embedding_type, param="token_embedding_type")
    return Mix(parse_file_type(quant), exceptions, embedding or None, matrix)


def _choose(
    model: Path, wish: _Wish, matrix: "ImportanceMatrix", spec: "ModelSpec", threads: int | None, bars: Bars
) -> "MixRecipe":
    from nestling.build.plan import parse_quant_type
    from nestling.choosing import Budget, Chooser, embedding_kept
    from nestling.engine.loading import usable_threads

    keep = wish.keep_embedding and parse_quant_type(wish.keep_embedding, param="keep_embedding")
    chooser = Chooser.measure(
        model,
        spec=spec,
        matrix=matrix,
        text=wish.calibration,
        threads=threads or usable_threads(),
        progress=bars.step("measuring the tensors"),
    )
    chosen = chooser.choose(
        Budget(wish.size_bytes, wish.bits_per_weight),
        keep=embedding_kept(keep) if keep else None,
        trials=wish.trials,
        progress=bars.step("refining the mix"),
    )
    return chosen.recipe


def _reapplied(model: Path, recipe: Path | None, matrix: "ImportanceMatrix | None") -> "Mix":
    from nestling.build.mix_recipe import MixRecipe

    assert recipe
    return _applied(model, MixRecipe.read(recipe), matrix)


def _applied(model: Path, recipe: "MixRecipe", matrix: "ImportanceMatrix | None") -> "Mix":
    from nestling.gguf_io import GGUFFile

    return recipe.mix({name: info.shape for name, info in GGUFFile.open(model).tensors.items()}, matrix)


def _show_plan(made: "QuantizePlan", *, as_json: bool) -> None:
    """The size table of a dry run."""
    facts = {"size_bytes": made.size_bytes, "bits_per_weight": made.bits_per_weight}
    rows = [(head.name, head.kind.name, head.size_bytes) for head in made.tensors]
    if as_json:
        tensors = [{"name": name, "type": kind, "size_bytes": size} for name, kind, size in rows]
        typer.echo(json.dumps({**facts, "tensors": tensors}))
        return
    title = f"{made.size_bytes:,} bytes, {made.bits_per_weight:.3f} bits per weight; nothing is written"
    show_table(title, ["tensor", "type", "bytes"], [[name, kind, str(size)] for name, kind, size in rows])
