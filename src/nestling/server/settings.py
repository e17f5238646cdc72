"""Every setting of the server, read once: a flag wins over its `NESTLING_*` variable, that over the default.

A setting's flag is `--` and its name, its variable `NESTLING_` and its name. Knows nothing of HTTP.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from nestling._util.cpu import usable_memory
from nestling._util.text import read_text
from nestling.engine.registry import EngineName
from nestling.errors import UsageError

PREFIX: Final = "NESTLING_"
MIB: Final = 1 << 20


class TokenInput(StrEnum):
    """What is done with an `input` of token ids: refused, taken as this model's ids, or read as OpenAI's cl100k ids."""

    REJECT = "reject"
    MODEL = "model"
    CL100K = "cl100k"


def _half_of_memory_mb() -> int:
    return usable_memory() // 2 // MIB


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `nestling serve` can be told. Lists are repeated as flags and separated by commas in a variable."""

    model: tuple[str, ...] = ("starter",)
    adapters: bool = False
    spec: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    engine: str = EngineName.AUTO.value
    threads: int | None = None
    preload: bool = False
    token_input: TokenInput = TokenInput.REJECT
    alias: tuple[str, ...] = ()
    api_key: tuple[str, ...] = field(default=(), repr=False)
    api_key_file: Path | None = None
    cors_origin: tuple[str, ...] = ()
    max_inputs: int = 2048
    max_body_bytes: int = 2_000_000
    max_in_flight: int = 512
    max_queue_tokens: int = 1_000_000
    batch_tokens: int = 2048
    memory_budget_mb: int = field(default_factory=_half_of_memory_mb)
    idle_unload_s: int | None = None
    cache_mb: int = 0
    drain_s: int = 30

    @property
    def aliases(self) -> dict[str, str]:
        """Names that clients insist on -> what they mean here (the first model for a bare name)."""
        pairs = (one.partition("=") for one in self.alias)
        return {name: target or self.model[0] for name, _, target in pairs}


def read_settings(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> ServeSettings:
    """Settings from the flags that were given (None is not given) and the environment; UsageError for a bad value."""
    given = {name: value for name, value in flags.items() if value is not None}
    for name in _PARSERS:
        if name not in given and (text := _variable(name, environ)) is not None:
            given[name] = text
    if unknown := given.keys() - _PARSERS.keys():
        raise UsageError(f"no such setting: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {name: _parsed(name, value) for name, value in given.items()}
    if path := values.get("api_key_file"):
        values["api_key"] = (*values.get("api_key", ()), *_keys_of(path))
    return ServeSettings(**values)


def _variable(name: str, environ: Mapping[str, str]) -> str | None:
    text = environ.get(PREFIX + name.upper())
    if name == "port" and text and text.startswith("tcp://"):
        return None  # what Kubernetes sets for a service that is called nestling; not meant for us
    return text or None


def _parsed(name: str, value: object) -> object:
    try:
        return _PARSERS[name](value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}", param=name) from None


def _keys_of(path: Path) -> tuple[str, ...]:
    content = read_text(path, error=lambda reason: UsageError(f"api_key_file: {reason}", param="api_key_file"))
    keys = tuple(line.strip() for line in content.split("\n") if line.strip())
    if not keys:
        raise UsageError(f"api_key_file: {path} holds no key; one a line is expected", param="api_key_file")
    return keys


def _whole(low: int, high: int = 1 << 40) -> Callable[[Any], int]:
    def parse(value: Any) -> int:  # noqa: ANN401 - a flag's int or a variable's text
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = low - 1
        if not low <= number <= high:
            raise ValueError(f"{value!r}: a whole number from {low} to {high} is expected")
        return number

    return parse


def _several(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - a flag's list or a variable's text
    parts = value.split(",") if isinstance(value, str) else [str(part) for part in value]
    kept = tuple(part.strip() for part in parts if part.strip())
    if not kept:
        raise ValueError("at least one value is expected")
    return kept


def _yes(value: Any) -> bool:  # noqa: ANN401 - a flag's bool or a variable's text
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in known:
        raise ValueError(f"{value!r}: 1 or 0 is expected")
    return known[str(value).lower()]


def _token_input(value: Any) -> TokenInput:  # noqa: ANN401 - a flag's or a variable's text
    if value not in set(TokenInput):
        raise ValueError(f"{value!r}: one of {', '.join(TokenInput)} is expected")
    return TokenInput(value)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "model": _several,
    "adapters": _yes,
    "spec": Path,
    "host": str,
    "port": _whole(0, 65_535),
    "engine": lambda value: EngineName.parse(str(value)).value,
    "threads": _whole(1, 1024),
    "preload": _yes,
    "token_input": _token_input,
    "alias": _several,
    "api_key": _several,
    "api_key_file": Path,
    "cors_origin": _several,
    "max_inputs": _whole(1),
    "max_body_bytes": _whole(1),
    "max_in_flight": _whole(1),
    "max_queue_tokens": _whole(1),
    "batch_tokens": _whole(1),
    "memory_budget_mb": _whole(1),
    "idle_unload_s": _whole(1),
    "cache_mb": _whole(0),
    "drain_s": _whole(0),
}
assert set(_PARSERS) == {one.name for one in fields(ServeSettings)}, "every setting has its parser"
