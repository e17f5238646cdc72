"""The table of verbs."""

from typing import Annotated, Any

import typer

from nestling import __version__
from nestling.cli import building, bulking, embedding, evaluating, hubbing, quantizing, reranking, serving

app = typer.Typer(
    help="jina-embeddings-v4 on your own hardware: build small GGUF files, embed with them, serve them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: dict[str, Any] = {
    "build": building.build,
    "convert": building.convert,
    "multivector": reranking.multivector,
    "imatrix": quantizing.imatrix,
    "quantize": quantizing.quantize,
    "inspect": building.inspect,
    "pull": hubbing.pull,
    "list": building.list_models,
    "show": hubbing.show,
    "rm": hubbing.rm,
    "publish": hubbing.publish,
    "verify": building.verify,
    "embed": embedding.embed,
    "similarity": embedding.similarity,
    "rerank": reranking.rerank,
    "bulk": bulking.bulk,
    "search": bulking.search,
    "serve": serving.serve,
    "report": evaluating.report,
}
for _name, _verb in _VERBS.items():
    app.command(_name)(_verb)


app.add_typer(evaluating.app, name="eval")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nestling {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the verb."""
