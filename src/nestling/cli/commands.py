"""The table of commands."""

from typing import Annotated, Any

import typer

from nestling._util.version import __version__
from nestling.cli import build, bulk, embed, evaluate, hub, quantize, rerank, serve, vision
from nestling.cli.group import Verbs
from nestling.server.settings import check_variables

app = typer.Typer(
    help="jina-embeddings-v4 on your own hardware: build small GGUF files, embed with them, serve them.",
    cls=Verbs,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: dict[str, Any] = {
    "build": build.build,
    "convert": build.convert,
    "multivector": rerank.multivector,
    "vision": vision.vision,
    "imatrix": quantize.imatrix,
    "quantize": quantize.quantize,
    "inspect": build.inspect,
    "pull": hub.pull,
    "list": build.list_models,
    "show": hub.show,
    "rm": hub.rm,
    "cache": hub.cache,
    "publish": hub.publish,
    "verify": build.verify,
    "embed": embed.embed,
    "similarity": embed.similarity,
    "rerank": rerank.rerank,
    "bulk": bulk.bulk,
    "search": bulk.search,
    "serve": serve.serve,
    "report": evaluate.report,
}
for _name, _verb in _VERBS.items():
    app.command(_name)(_verb)


app.add_typer(evaluate.app, name="eval")


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
    """Options before the command."""
    check_variables()
