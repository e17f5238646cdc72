"""Descriptions of models for Ollama's clients: the entries of `/api/tags` and `/api/ps`, the response of `/api/show`.

Facts are those of Ollama's docs/api.md and api/types.go. Reads headers of GGUF files, so not for the event loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from nestling.errors import FileFormatError
from nestling.formats.card import Card
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import FILE_TYPES
from nestling.server.core.catalog import LATEST
from nestling.spec import ModelSpec

BILLION = 1_000_000_000
NEVER = datetime(9999, 12, 31, tzinfo=UTC)
"""When a model expires that is never unloaded."""
_NO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time: what Ollama's types have where there is no file."""
_LEFT_OUT = ("general.name", "tokenizer.chat_template")
"""Fields of a file that Ollama leaves out of `model_info`."""
_QUANTIZATIONS = {number: name for name, number in FILE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class _Summary:
    """What a file's header says: architecture, name of its file type, number of parameters."""

    architecture: str = ""
    file_type: str = ""
    parameters: int = 0


def shown(name: str) -> str:
    """A name with its tag, `latest` where it has none."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST


def entry(name: str, path: Path | None) -> dict[str, Any]:
    """A model of `/api/tags`; empty where its file is not there yet."""
    path = path if path and path.is_file() else None
    return {
        "name": shown(name),
        "model": shown(name),
        "modified_at": _modified(path),
        "size": path.stat().st_size if path else 0,
        "digest": _digest(path),
        "details": details(path),
    }


def loaded_entry(name: str, path: Path | None, *, size: int, context: int, left_s: float | None) -> dict[str, Any]:
    """A model of `/api/ps`: bytes that it takes, tokens of its longest text, seconds until it is unloaded."""
    facts = entry(name, path)
    del facts["modified_at"]
    expires = NEVER if left_s is None else datetime.now(UTC) + timedelta(seconds=left_s)
    more = {"expires_at": expires.isoformat(), "size_vram": 0, "context_length": context}
    return {**facts, "size": size or facts["size"], **more}


def shown_model(name: str, path: Path | None, spec: ModelSpec, *, verbose: bool) -> dict[str, Any]:
    """The answer of `/api/show`; arrays of the file's fields are empty unless `verbose`."""
    info = _info(GGUFFile.open(path), verbose=verbose) if path else {}
    own = {"nestling.dimensions": list(spec.dimensions), "nestling.task": spec.task}
    return {
        "modelfile": f"# What nestling serves.\nFROM {shown(name)}\nPARAMETER num_ctx {spec.max_tokens}\n",
        "parameters": f"num_ctx                        {spec.max_tokens}",
        "template": "{{ .Prompt }}",
        "details": details(path),
        "model_info": {**info, **own},
        "capabilities": ["embedding"],
        "modified_at": _modified(path),
    }


def details(path: Path | None) -> dict[str, Any]:
    """A model's `details`; empty where there is no file."""
    known = _summary(path) if path else _Summary()
    return {
        "parent_model": "",
        "format": "gguf",
        "family": known.architecture,
        "families": [known.architecture] if known.architecture else [],
        "parameter_size": _size(known.parameters) if known.parameters else "",
        "quantization_level": known.file_type,
    }


def _info(file: GGUFFile, *, verbose: bool) -> Mapping[str, Any]:
    fields = {key: one.value for key, one in file.metadata.items() if key not in _LEFT_OUT}
    short = {key: [] if isinstance(value, tuple) and not verbose else value for key, value in fields.items()}
    return {**short, "general.parameter_count": _parameters(file)}


def _parameters(file: GGUFFile) -> int:
    return sum(prod(one.shape) for one in file.tensors.values())


def _size(parameters: int) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters < BILLION else f"{parameters / BILLION:.1f}B"


def _modified(path: Path | None) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat() if path else _NO_TIME


def _digest(path: Path | None) -> str:
    """The SHA-256 that the file's card has; empty without a card of this file: hashing takes seconds."""
    try:
        card = Card.read(path) if path else None
    except FileFormatError:
        card = None
    return card.sha256 if card and path and card.size_bytes == path.stat().st_size else ""


def _summary(path: Path) -> _Summary:
    found = path.stat()
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=64)
def _read(path: Path, _mtime_ns: int, _size_bytes: int) -> _Summary:
    """Of a file that is as it was; a header of 150,000 tokens takes a second."""
    try:
        file = GGUFFile.open(path)
    except FileFormatError:
        return _Summary()
    architecture, number = (file.metadata.get(f"general.{key}") for key in ("architecture", "file_type"))
    file_type = _QUANTIZATIONS.get(number.value, "unknown") if number else "unknown"
    return _Summary(str(architecture.value) if architecture else "", file_type, _parameters(file))
