"""The command `serve`, with options generated from the declaration of the settings."""

from functools import partial
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from nestling._util.extras import need
from nestling.server.settings import SETTINGS, Setting, flag, read_settings, shown_default


def _option(name: str, setting: Setting) -> Parameter:
    names = [flag(name), *([setting.short] if setting.short else [])]
    text = setting.help + (" May be repeated." if setting.several else "")
    option = typer.Option(*names, help=text, metavar=setting.metavar, show_default=shown_default(name))
    kind: Any = bool if setting.metavar is None else list[str] if setting.several else str
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def serve(**flags: Any) -> None:  # noqa: ANN401 - what typer read for each setting
    """Serve /v1/embeddings for OpenAI's clients. Every flag is also a variable: --port is NESTLING_PORT."""
    settings = read_settings(flags)
    need("nestling.server.process", wanted_for="nestling serve", extra="serve")
    from nestling.server.process import run

    run(settings, reread=partial(read_settings, flags))


_OPTIONS = [_option(name, setting) for name, setting in SETTINGS.items()]
serve.__signature__ = Signature(_OPTIONS)  # type: ignore[attr-defined]
serve.__annotations__ = {one.name: one.annotation for one in _OPTIONS}
