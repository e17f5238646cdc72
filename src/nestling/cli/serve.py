"""The verb that serves. Every flag is a setting of `serve.settings`, which reads flags, environment and defaults."""

from pathlib import Path
from typing import Annotated

import typer

from nestling._util.extras import need

Repeated = list[str] | None


def _flag(help_text: str, *names: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, help=help_text, show_default=False)
    return option


def serve(
    model: Annotated[
        Repeated, _flag("A model reference, several times; a family is all three tasks.", "--model", "-m")
    ] = None,
    adapters: Annotated[
        bool | None, _flag("Serve a family's tasks from one base with adapters, in the memory of one.", "--adapters")
    ] = None,
    spec: Annotated[
        Path | None, _flag("What the served files are for that do not say so themselves, as JSON.", "--spec")
    ] = None,
    host: Annotated[str | None, _flag("Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, _flag("Port to listen on; 0 for a free one [8080].")] = None,
    engine: Annotated[str | None, _flag("auto, openvino, llamacpp or reference [auto].", "--engine", "-e")] = None,
    threads: Annotated[int | None, _flag("Threads [all usable processors].")] = None,
    preload: Annotated[bool | None, _flag("Load every model before the server is ready.", "--preload")] = None,
    token_input: Annotated[str | None, _flag("Token ids as input: reject, model or cl100k [reject].")] = None,
    alias: Annotated[Repeated, _flag("NAME or NAME=MODEL: another name for a model, several times.")] = None,
    api_key: Annotated[Repeated, _flag("A key that clients must send; better in a file or the environment.")] = None,
    api_key_file: Annotated[Path | None, _flag("A file with one key a line.")] = None,
    cors_origin: Annotated[Repeated, _flag("A web origin that may call the server, several times.")] = None,
    max_inputs: Annotated[int | None, _flag("Texts a request [2048].")] = None,
    max_body_bytes: Annotated[int | None, _flag("Bytes of a request's body [2000000].")] = None,
    max_in_flight: Annotated[int | None, _flag("Requests in flight before 429 [512].")] = None,
    max_queue_tokens: Annotated[int | None, _flag("Tokens waiting before 429 [1000000].")] = None,
    batch_tokens: Annotated[int | None, _flag("Tokens that go through the engine together [16384].")] = None,
    memory_budget_mb: Annotated[int | None, _flag("MiB for loaded models [half of the memory].")] = None,
    idle_unload_s: Annotated[int | None, _flag("Seconds after which an unused model is unloaded [never].")] = None,
    cache_mb: Annotated[int | None, _flag("MiB of remembered answers [0: none].")] = None,
    drain_s: Annotated[int | None, _flag("Seconds that SIGTERM leaves to work in progress [30].")] = None,
) -> None:
    """Serve /v1/embeddings for OpenAI's clients. Every flag is also a variable: --port is NESTLING_PORT."""
    flags = dict(locals())
    need("nestling.server.process", wanted_for="nestling serve", extra="serve")
    from nestling.server.process import run
    from nestling.server.settings import read_settings

    run(read_settings(flags))
