"""Every setting of the server, declared once: name, default, reader and help, in the fields of `ServeSettings`.

A setting's flag is `--` and its name, its variable `NESTLING_` and its name; a flag wins over the variable, that over
the default. The command line's options and the table in docs/server.md are made from this. Knows nothing of HTTP.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from nestling._util.cpu import usable_memory
from nestling._util.spelling import nearest
from nestling._util.text import read_text
from nestling.engine.arithmetic import DEFAULT_ARITHMETIC, ArithmeticName
from nestling.engine.names import DEFAULT_ENGINE, DEVICES, EngineName, parse_devices
from nestling.errors import UsageError
from nestling.server.setting_values import (
    TokenInput,
    arithmetic,
    device,
    engine,
    several,
    token_input,
    whole,
    yes,
)

PREFIX: Final = "NESTLING_"
MIB: Final = 1 << 20
OTHERS: Final = ("CACHE", "WEIGHT_CACHE_GB", "EVAL_API_KEY")
"""Variables of other parts of nestling."""
KUBERNETES: Final = ("SERVICE_", "PORT_")
"""What Kubernetes' variables for a service called nestling go on with; they are not meant for us."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a setting is read from text and described; `unset` says what its absence means.

    `metavar` is the placeholder of its value, None for a switch. A setting of `several` values may be repeated; in a
    variable they are separated by commas.
    """

    read: Callable[[Any], Any]
    help: str
    metavar: str | None
    unset: str | None = None
    short: str | None = None
    several: bool = False


def _half_of_memory_mb() -> int:
    return usable_memory() // 2 // MIB


def _number(text: str, *, low: int = 1, high: int = 1 << 40, unset: str | None = None) -> dict[str, Setting]:
    return {"setting": Setting(whole(low, high), text, "N", unset)}


def _list(text: str, metavar: str, *, short: str | None = None) -> dict[str, Setting]:
    return {"setting": Setting(several, text, metavar, "none", short, several=True)}


def _switch(text: str) -> dict[str, Setting]:
    return {"setting": Setting(yes, text, None, "no")}


def _file(text: str) -> dict[str, Setting]:
    return {"setting": Setting(Path, text, "FILE", "none")}


def _text(text: str, metavar: str, read: Callable[[Any], str] = str, short: str | None = None) -> dict[str, Setting]:
    return {"setting": Setting(read, text, metavar, short=short)}


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `nestling serve` can be told."""

    model: tuple[str, ...] = field(
        default=("starter",), metadata=_list("A model reference; a family is all three tasks.", "REF", short="-m")
    )
    adapters: bool = field(
        default=False,
        metadata=_switch("Serve a family's tasks from one base with LoRA adapters, in the memory of one model."),
    )
    spec: Path | None = field(
        default=None,
        metadata=_file(
            "JSON description (task, prompts, dimensions, pooling) of GGUF files without nestling metadata."
        ),
    )
    host: str = field(default="127.0.0.1", metadata=_text("Address to listen on.", "ADDRESS"))
    port: int = field(default=8080, metadata=_number("Port to listen on; 0 for a free one.", low=0, high=65_535))
    uds: Path | None = field(
        default=None, metadata=_file("Unix socket to listen on, in place of an address and a port.")
    )
    engine: str = field(
        default=DEFAULT_ENGINE,
        metadata=_text(f"{', '.join(EngineName)}.", "NAME", engine, short="-e"),
    )
    device: str | None = field(
        default=None,
        metadata={"setting": Setting(device, f"For torch: {DEVICES}; or several: A,B.", "NAME", unset="the first GPU")},
    )
    arithmetic: str = field(
        default=DEFAULT_ARITHMETIC,
        metadata=_text(f"For matrix products: {', '.join(ArithmeticName)}.", "NAME", arithmetic),
    )
    threads: int | None = field(
        default=None, metadata=_number("Compute threads.", high=1024, unset="all usable processors")
    )
    preload: bool = field(default=False, metadata=_switch("Load every model before the server is ready."))
    token_input: TokenInput = field(
        default=TokenInput.REJECT, metadata=_text("Token ids: reject, model or cl100k.", "MODE", token_input)
    )
    dialect: str | None = field(
        default=None,
        metadata={
            "setting": Setting(
                str, "The API that is meant by paths which several APIs share.", "NAME", "as the body says"
            )
        },
    )
    alias: tuple[str, ...] = field(default=(), metadata=_list("NAME or NAME=MODEL: another name for a model.", "NAME"))
    alias_file: Path | None = field(default=None, metadata=_file("A file with one alias per line; re-read on SIGHUP."))
    api_key: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata=_list("A key that clients must send; better in a file or the environment.", "KEY"),
    )
    api_key_file: Path | None = field(default=None, metadata=_file("A file with one key per line; re-read on SIGHUP."))
    cors_origin: tuple[str, ...] = field(default=(), metadata=_list("A web origin that may call the server.", "ORIGIN"))
    allowed_host: tuple[str, ...] = field(
        default=(),
        metadata=_list(
            "A host name that the server answers to besides localhost and IP addresses; others get 403.", "NAME"
        ),
    )
    max_inputs: int = field(default=2048, metadata=_number("Most texts per request."))
    max_client_batch_size: int = field(default=32, metadata=_number("Most texts per request of TEI's API."))
    auto_truncate: bool = field(
        default=False,
        metadata=_switch("Truncate texts that are too long, unless a request of TEI's API says otherwise."),
    )
    max_body_bytes: int = field(default=2_000_000, metadata=_number("Most bytes of a request body."))
    max_image_body_bytes: int = field(
        default=20_000_000, metadata=_number("Most bytes of a request body that may contain images.")
    )
    allow_image_urls: tuple[str, ...] = field(
        default=(),
        metadata=_list("A HOST or HOST:PORT from which images may be downloaded; * for any public host.", "HOST"),
    )
    max_in_flight: int = field(default=512, metadata=_number("Requests in flight before 429."))
    max_queue_tokens: int = field(default=1_000_000, metadata=_number("Tokens waiting before 429."))
    max_text_tokens: int | None = field(
        default=None, metadata=_number("Most tokens of a text, prefix included.", low=64, unset="what the model takes")
    )
    max_answer_mb: int = field(
        default=512, metadata=_number("MiB of vectors that are being computed or sent before 429.")
    )
    batch_tokens: int | None = field(
        default=None, metadata=_number("Most tokens of a batch.", unset="what the engine takes at once")
    )
    memory_budget_mb: int = field(
        default_factory=_half_of_memory_mb, metadata=_number("MiB for loaded models.", unset="half of the memory")
    )
    idle_unload_s: int | None = field(
        default=None, metadata=_number("Seconds after which an unused model is unloaded.", unset="never")
    )
    cache_mb: int = field(default=0, metadata=_number("MiB of cached vectors; 0 for no cache.", low=0))
    drain_s: int = field(default=30, metadata=_number("Seconds that SIGTERM leaves to requests in progress.", low=0))

    @property
    def devices(self) -> tuple[str | None, ...]:
        """Each device; None for the engine's own."""
        return parse_devices(self.device) if self.device else (None,)

    @property
    def aliases(self) -> dict[str, str]:
        """Names that clients insist on -> what they mean here (the first model for a bare name)."""
        pairs = (one.partition("=") for one in self.alias)
        return {name: target or self.model[0] for name, _, target in pairs}


_FIELDS: dict[str, Field[Any]] = {one.name: one for one in fields(ServeSettings)}
SETTINGS: dict[str, Setting] = {name: one.metadata["setting"] for name, one in _FIELDS.items()}


def flag(name: str) -> str:
    """A setting's flag."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """A setting's environment variable."""
    return PREFIX + name.upper()


def shown_default(name: str) -> str:
    """A setting's default as help and documentation say it."""
    default, setting = _FIELDS[name].default, SETTINGS[name]
    if isinstance(default, tuple):
        default = ", ".join(default) or None
    if default is None or default is False or default is MISSING:
        assert setting.unset, f"{name}: say what its absence means"
        return setting.unset
    return str(default)


def markdown_table() -> str:
    """The table of docs/server.md."""
    rows = [f"| `{flag(name)}` | {shown_default(name)} | {one.help} |" for name, one in SETTINGS.items()]
    return "\n".join(["| flag | default | |", "|---|---|---|", *rows])


def read_settings(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> ServeSettings:
    """Settings from the flags that were given (None is not given) and the environment.

    Raises:
        UsageError: A bad value, or a variable that looks like a misspelt one.
    """
    if unknown := flags.keys() - SETTINGS.keys():
        raise UsageError(f"no such setting: {', '.join(sorted(unknown))}")
    check_variables(environ)
    values: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        text = _variable(name, environ)
        for source, value in ((flag(name), flags.get(name)), (variable(name), text)):
            if value is not None:
                values[name] = _read(setting, value, name, source)
                break
    if path := values.get("api_key_file"):
        values["api_key"] = (*values.get("api_key", ()), *_keys_of(path))
    if path := values.get("alias_file"):
        values["alias"] = (*values.get("alias", ()), *_lines_of(path, "--alias-file"))
    return ServeSettings(**values)


def _read(setting: Setting, value: object, name: str, source: str) -> object:
    try:
        return setting.read(value)
    except ValueError as error:
        shown = "" if name == "api_key" else f"={value}"
        raise UsageError(f"{source}{shown}: {error}", param=name) from None


def _variable(name: str, environ: Mapping[str, str]) -> str | None:
    text = environ.get(variable(name))
    if name == "port" and text and text.startswith("tcp://"):
        return None  # Kubernetes', for a service called nestling
    return text or None


def check_variables(environ: Mapping[str, str] = os.environ) -> None:
    """UsageError for a variable that looks like a misspelt one of nestling's, the server's or another's."""
    known = [*(name.upper() for name in SETTINGS), *OTHERS]
    for full in environ:
        name = full.removeprefix(PREFIX)
        if name == full or name in known or name.startswith(KUBERNETES):
            continue
        if near := nearest(name, known, PREFIX):
            raise UsageError(f"{full}: no such variable{near}")


def _keys_of(path: Path) -> tuple[str, ...]:
    keys = _lines_of(path, "--api-key-file")
    if not keys:
        raise UsageError(f"--api-key-file: {path} holds no key; expected one per line", param="api_key_file")
    return keys


def _lines_of(path: Path, source: str) -> tuple[str, ...]:
    """The lines of a file that are not blank."""
    param = source.removeprefix("--").replace("-", "_")
    content = read_text(path, error=lambda reason: UsageError(f"{source}: {reason}", param=param))
    return tuple(line.strip() for line in content.split("\n") if line.strip())
