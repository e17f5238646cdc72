"""The commands `imatrix` and `quantize`: a stock file type or a chosen mix, with an importance matrix."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nestling._util.files import check_output
from nestling.cli.console import Bars, say_written, show_table
from nestling.cli.options import CalibrationOption, ChunksOption, DeviceOption, JsonOption, SpecOption, ThreadsOption
from nestling.engine.names import DEFAULT_ENGINE, EngineName
from nestling.errors import UsageError
from nestling.formats.quant_types import parse_file_type
from nestling.models import content, local
from nestling.pipeline.quantization.search.search import DEFAULT_TRIALS

if TYPE_CHECKING:
    from nestling.formats.quant_types import QuantType
    from nestling.pipeline.quantization.imatrix import ImportanceMatrix
    from nestling.pipeline.quantization.plan import Mix, QuantizePlan
    from nestling.pipeline.quantization.quantize import QuantizeReport
    from nestling.pipeline.quantization.search.recipe_file import MixRecipe
    from nestling.spec import ModelSpec

SourceArgument = Annotated[
    str,
    typer.Argument(metavar="REF", help="A float model (F32, F16 or BF16): a GGUF file or name-task:QUANT."),
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="The GGUF file to write.")]
ImatrixOption = Annotated[
    Path | None, typer.Option("--imatrix", metavar="FILE", help="An importance matrix of this model.")
]
TensorTypeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN=TYPE", help="The type of tensors whose names match; may be repeated."),
]
EmbeddingTypeOption = Annotated[str | None, typer.Option(metavar="TYPE", help="The embedding table's type.")]
TargetBitsOption = Annotated[
    float | None, typer.Option(metavar="BITS", help="Choose the best mix with so many bits per weight.")
]
TargetSizeOption = Annotated[
    int | None, typer.Option(metavar="BYTES", help="Choose the best mix for a file of so many bytes.")
]
KeepEmbeddingOption = Annotated[
    str | None, typer.Option(metavar="TYPE", help="The embedding table's type in a chosen mix.")
]
TrialsOption = Annotated[int, typer.Option(min=1, help="Measurements for the refinement of a chosen mix.")]
RecipeOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Apply a mix that was saved with --recipe-out.")
]
RecipeOutOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Save the chosen mix.")]
RequantizeOption = Annotated[
    bool, typer.Option("--allow-requantize", help="Allow a quantized source, which loses quality.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the tensors' types and sizes without writing a GGUF file.")
]


def imatrix(
    model: SourceArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The GGUF file to write.")],
    calibration: CalibrationOption = None,
    chunks: ChunksOption = None,
    spec: SpecOption = None,
    engine: Annotated[str, typer.Option("--engine", "-e", help="auto, openvino or torch.")] = DEFAULT_ENGINE,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Collect an importance matrix: run calibration text through a float model and weight its matrices' columns."""
    from nestling.engine.observers import ObserverOptions
    from nestling.pipeline.quantization.calibration import collect

    on = ObserverOptions(EngineName.parse(engine), device, threads)
    check_output(out, sources=[calibration])
    with Bars() as bars:
        source = content.check(local.resolve(model, steps=bars.step))
        check_output(out, sources=[source])
        matrix = collect(
            source,
            spec=_spec(source, spec),
            text=calibration,
            on=on,
            limit=chunks,
            progress=bars.step(out.name),
        )
        sha256 = matrix.write(out)
    facts = {"path": str(out), "sha256": sha256, "entries": len(matrix.entries), "chunks": matrix.chunk_count}
    if as_json:
        say_written(out, json.dumps(facts))
        return
    say_written(out, f"{out}: {len(matrix.entries)} matrices over {matrix.chunk_count} chunks, sha256 {sha256}")


def quantize(
    model: SourceArgument,
    quant: Annotated[str | None, typer.Argument(help="The file type to make, such as Q4_K_M.")] = None,
    out: OutOption = None,
    imatrix: ImatrixOption = None,
    tensor_type: TensorTypeOption = None,
    token_embedding_type: EmbeddingTypeOption = None,
    target_bpw: TargetBitsOption = None,
    target_size: TargetSizeOption = None,
    keep_embedding: KeepEmbeddingOption = None,
    calibration: CalibrationOption = None,
    trials: TrialsOption = DEFAULT_TRIALS,
    recipe: RecipeOption = None,
    recipe_out: RecipeOutOption = None,
    allow_requantize: RequantizeOption = False,
    dry_run: DryRunOption = False,
    spec: SpecOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize a float GGUF file to a file type, as llama-quantize does, or to the best mix for a size."""
    from nestling.pipeline.quantization.plan import parse_quant_type, plan_file
    from nestling.pipeline.quantization.quantize import quantize as run

    stock = _Stock(quant, tuple(tensor_type or ()), token_embedding_type)
    kept = parse_quant_type(keep_embedding, param="keep_embedding") if keep_embedding else None
    wish = _Wish(target_bpw, target_size, kept, calibration, trials, recipe_out)
    _check_order(stock, wish, recipe)
    if out is None and not dry_run:
        raise UsageError("out: expected --out FILE or --dry-run", param="out")
    _check_outputs(out, recipe_out, [imatrix, calibration, recipe])
    with Bars() as bars:
        source = content.check(local.resolve(model, steps=bars.step))
        _check_outputs(out, recipe_out, [source])
        work = _Work(source, _read(imatrix), spec, threads, bars)
        mix = replace(_mix(work, stock, wish, recipe), allow_requantize=allow_requantize)
        if out is None or dry_run:
            _show_plan(plan_file(source, mix), as_json=as_json)
            return
        report = run(source, out=out, mix=mix, threads=threads, progress=bars.step(out.name))
    _show_report(report, as_json=as_json)


def _check_outputs(out: Path | None, recipe_out: Path | None, sources: list[Path | None]) -> None:
    for param, path in (("out", out), ("recipe_out", recipe_out)):
        if path is not None:
            check_output(path, sources=sources, param=param)


@dataclass(frozen=True, slots=True)
class _Stock:
    """A stock file type with exceptions."""

    quant: str | None
    tensor_type: tuple[str, ...]
    token_embedding_type: str | None


@dataclass(frozen=True, slots=True)
class _Wish:
    """The options of the search for a mix."""

    bits_per_weight: float | None
    size_bytes: int | None
    keep_embedding: "QuantType | None"
    calibration: Path | None
    trials: int
    recipe_out: Path | None

    @property
    def given(self) -> bool:
        return (self.bits_per_weight, self.size_bytes) != (None, None)


@dataclass(frozen=True, slots=True)
class _Work:
    """The model, its importance matrix, and how to process them."""

    model: Path
    matrix: "ImportanceMatrix | None"
    spec: Path | None
    threads: int | None
    bars: Bars


def _check_order(stock: _Stock, wish: _Wish, recipe: Path | None) -> None:
    sources = {"a file type": stock.quant, "--target-bpw": wish.bits_per_weight, "--target-size": wish.size_bytes}
    _check_sources({**sources, "--recipe": recipe})
    own = {"tensor_type": stock.tensor_type, "token_embedding_type": stock.token_embedding_type}
    _check_unused(own, used=stock.quant is not None, needed="a file type")
    wishes = {name: getattr(wish, name) for name in ("keep_embedding", "recipe_out", "calibration")}
    _check_unused(wishes, used=wish.given, needed="--target-bpw or --target-size")


def _check_sources(given: Mapping[str, object]) -> None:
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        wrong = f", found {' and '.join(found)}" if found else ""
        raise UsageError(f"quant: expected exactly one of {', '.join(given)}{wrong}", param="quant")


def _check_unused(options: Mapping[str, object], *, used: bool, needed: str) -> None:
    name = next((name for name, value in options.items() if value), None)
    if name and not used:
        raise UsageError(f"{name}: expected only with {needed}", param=name)


def _read(path: Path | None) -> "ImportanceMatrix | None":
    from nestling.pipeline.quantization.imatrix import ImportanceMatrix

    return ImportanceMatrix.read(path) if path else None


def _needed(matrix: "ImportanceMatrix | None") -> "ImportanceMatrix":
    if matrix is None:
        raise UsageError(
            "imatrix: choosing a mix needs an importance matrix: --imatrix FILE, as `nestling imatrix` makes it",
            param="imatrix",
        )
    return matrix


def _spec(model: Path, given: Path | None) -> "ModelSpec":
    from nestling.formats.gguf import GGUFFile
    from nestling.models.families import read_spec
    from nestling.models.file_spec import spec_of

    return spec_of(GGUFFile.open(model), read_spec(given) if given else None)


def _mix(work: _Work, stock: _Stock, wish: _Wish, recipe: Path | None) -> "Mix":
    from nestling.formats.gguf import GGUFFile
    from nestling.pipeline.quantization.plan import Mix, parse_quant_type, parse_tensor_type
    from nestling.pipeline.quantization.search.recipe_file import MixRecipe

    if stock.quant:
        exceptions = tuple(parse_tensor_type(one) for one in stock.tensor_type)
        name = stock.token_embedding_type
        embedding = parse_quant_type(name, param="token_embedding_type") if name else None
        return Mix(parse_file_type(stock.quant), exceptions, embedding, work.matrix)
    found = MixRecipe.read(recipe) if recipe else _chosen(work, wish)
    if wish.recipe_out:
        found.write(wish.recipe_out)
    shapes = {name: info.shape for name, info in GGUFFile.open(work.model).tensors.items()}
    return found.mix(shapes, work.matrix)


def _chosen(work: _Work, wish: _Wish) -> "MixRecipe":
    from nestling._util.cpu import usable_threads
    from nestling.pipeline.quantization.search.search import Budget, Chooser, check_budget, embedding_kept

    matrix = _needed(work.matrix)
    keep = embedding_kept(wish.keep_embedding) if wish.keep_embedding else None
    budget = Budget(wish.size_bytes, wish.bits_per_weight)
    check_budget(work.model, matrix, budget, keep=keep)  # depends on sizes only: fail before measuring
    chooser = Chooser.measure(
        work.model,
        matrix=matrix,
        spec=_spec(work.model, work.spec),
        text=wish.calibration,
        threads=work.threads or usable_threads(),
        progress=work.bars.step("measuring the tensors"),
    )
    return chooser.choose(budget, keep=keep, trials=wish.trials, progress=work.bars.step("refining the mix")).recipe


def _show_report(report: "QuantizeReport", *, as_json: bool) -> None:
    facts = {name: getattr(report, name) for name in ("sha256", "size_bytes", "bits_per_weight")}
    if as_json:
        say_written(report.path, json.dumps({"path": str(report.path), **facts}))
        return
    size = f"{report.size_bytes:,} bytes, {report.bits_per_weight:.2f} bits per weight"
    say_written(report.path, f"{report.path}: {size}, sha256 {report.sha256}")


def _show_plan(made: "QuantizePlan", *, as_json: bool) -> None:
    """Print the size table of a dry run."""
    facts = {"size_bytes": made.size_bytes, "bits_per_weight": made.bits_per_weight}
    rows = [(head.name, head.kind.name, head.size_bytes) for head in made.tensors]
    if as_json:
        tensors = [{"name": name, "type": kind, "size_bytes": size} for name, kind, size in rows]
        typer.echo(json.dumps({**facts, "tensors": tensors}))
        return
    title = f"{made.size_bytes:,} bytes, {made.bits_per_weight:.3f} bits per weight; dry run, nothing written"
    show_table(title, ["tensor", "type", "bytes"], [[name, kind, str(size)] for name, kind, size in rows])
