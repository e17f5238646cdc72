"""Ollama's dialect: `/api/embed` and `/api/embeddings`, and what its clients ask to see what is there.

Facts are those of Ollama's API documentation (docs/api.md) and of its `api/types.go`. A name without a tag means
`:latest`, so `:latest` at its end means nothing here. There are no roles: a prefix that a text begins with is its own,
others get `Query: `, or what the model string names (`starter/retrieval.passage`).
"""

import time
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from nestling._util.version import __version__
from nestling.errors import FileFormatError
from nestling.formats.card import Card
from nestling.models import local
from nestling.server.api import answers
from nestling.server.api.bodies import Body, texts_or_ids
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.core.refusals import InvalidError
from nestling.server.core.requests import Embedding, Reading
from nestling.server.http.problems import Problem

NANOSECONDS = BILLION = 1_000_000_000


class Named(Body):
    """What all of Ollama's requests have."""

    model: str | None = None
    """NAME or NAME/TASK.ROLE, with or without `:latest`; the first served model by default."""
    keep_alive: str | float | None = None
    """Left to the server's `--idle-unload-s`, which the answer's header says."""
    options: dict[str, Any] | None = None
    """`num_ctx`: tokens of the longest text. The rest is about generating text."""

    @property
    def name(self) -> str | None:
        """The model's name without `:latest`."""
        return self.model.removesuffix(":latest") if self.model else None

    def reading(self, *, truncate: bool) -> Reading:
        """How texts are read: cut at `num_ctx` unless `truncate` is false."""
        limit = (self.options or {}).get("num_ctx")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise InvalidError("options.num_ctx: expected a whole number from 1", param="options")
        return Reading(truncate=truncate, limit=limit if truncate else None, typed=True)


class EmbedRequest(Named):
    """`POST /api/embed`."""

    input: str | list[str]
    truncate: bool | None = None
    """false: refuse texts that are too long; cut on the right by default."""
    dimensions: int | None = None
    """One of the trained sizes; the full width by default."""


class EmbeddingsRequest(Named):
    """`POST /api/embeddings`, which Ollama has superseded by `/api/embed`."""

    prompt: str


class ShowRequest(Body):
    """`POST /api/show`."""

    model: str | None = None
    name: str | None = None
    """The same as model."""
    verbose: bool | None = None
    """Left alone: there is nothing more to say."""


async def _embed(call: Call) -> AsyncGenerator[bytes, None]:
    started, request = time.perf_counter(), await call.read(EmbedRequest)
    name = request.model or call.service.catalog.default.name
    if request.input in ("", []):  # Ollama's way to load a model and nothing more
        await call.service.loaded(call.service.catalog.target(request.name))
        yield to_json({"model": name, "embeddings": []})
        return
    inputs = await call.run(_texts, call, request.input)
    target = call.service.catalog.target(request.name)
    wanted = Embedding(
        inputs, target, request.reading(truncate=request.truncate is not False), dimensions=request.dimensions
    )
    _note_keep_alive(call, request)
    async with call.service.embedded(wanted) as found:
        call.warnings.extend(found.warnings)
        facts = {"model": name, "total_duration": _nanoseconds(started), "load_duration": 0}
        facts["prompt_eval_count"] = found.tokens
        head = to_json(facts)[:-1] + b',"embeddings":'
        for piece in answers.pieces(chain([head], answers.vectors_listed(found.values), [b"}"])):
            yield piece


async def _embeddings(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(EmbeddingsRequest)
    target = call.service.catalog.target(request.name)
    if not request.prompt:
        await call.service.loaded(target)
        yield b'{"embedding":[]}'
        return
    _note_keep_alive(call, request)
    async with call.service.embedded(Embedding([request.prompt], target, request.reading(truncate=True))) as found:
        call.warnings.extend(found.warnings)
        yield b'{"embedding":%b}' % answers.vector(found.values[0])


def _texts(call: Call, value: str | list[str]) -> Any:  # noqa: ANN401 - Inputs
    return texts_or_ids(value, most=call.service.settings.max_inputs)


def _note_keep_alive(call: Call, request: Named) -> None:
    if request.keep_alive is not None:
        call.warnings.append("keep_alive: this server unloads models by its own --idle-unload-s")


def _nanoseconds(started: float) -> int:
    return int((time.perf_counter() - started) * NANOSECONDS)


async def _tags(call: Call) -> AsyncGenerator[bytes, None]:
    names = [one.name for one in await call.service.served()]
    references = [call.service.catalog.target(name).reference for name in names]
    paths = await call.service.run(_paths, references, short=False)
    yield to_json({"models": [_facts(name, path) for name, path in zip(names, paths, strict=True)]})


async def _ps(call: Call) -> AsyncGenerator[bytes, None]:
    loaded = call.service.models.loaded
    yield to_json({"models": [{**_facts(one.reference, one.embedder.path), "size_vram": 0} for one in loaded]})


def _paths(references: Sequence[str]) -> list[Path | None]:
    """The file of each reference; None for one that is made when it is first used."""
    here = {str(one.reference): one.path for one in local.available()}
    return [Path(one) if local.looks_like_path(one) else here.get(one) for one in references]


def _facts(name: str, path: Path | None) -> dict[str, object]:
    """What is known of a served file: nothing of one that is not there yet."""
    facts: dict[str, object] = {"name": name, "model": name}
    if path is None or not path.exists():
        return facts
    stat, card = path.stat(), _card(path)
    facts |= {"modified_at": datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(), "size": stat.st_size}
    if card is None:
        return facts | {"details": {"format": "gguf"}}
    details = {"format": "gguf", "family": card.family, "families": [card.family], "quantization_level": card.file_type}
    size = f"{card.parameters / 1e6:.1f}M" if card.parameters < BILLION else f"{card.parameters / BILLION:.1f}B"
    return facts | {"digest": card.sha256, "details": {**details, "parameter_size": size}}


def _card(path: Path) -> Card | None:
    try:
        return Card.read(path)
    except FileFormatError:
        return None


async def _show(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(ShowRequest)
    name = request.model or request.name
    target = call.service.catalog.target(name.removesuffix(":latest") if name else None)
    embedder = await call.service.loaded(target)
    spec = embedder.spec
    info = {
        "general.architecture": "qwen2vl",
        "qwen2vl.context_length": spec.max_tokens,
        "qwen2vl.embedding_length": spec.dimensions[-1],
        "nestling.dimensions": list(spec.dimensions),
        "nestling.task": spec.task,
    }
    details = {"format": "gguf", "family": spec.family, "families": [spec.family]}
    yield to_json({"details": details, "model_info": info, "capabilities": ["embedding"]})


async def _version(_call: Call) -> AsyncGenerator[bytes, None]:
    yield to_json({"version": __version__})


def _error(problem: Problem) -> bytes:
    return to_json({"error": problem.message})


DIALECT = Dialect(
    name="ollama",
    error=_error,
    routes=(
        Route("/api/embed", _embed, "Ollama: a vector for each text.", body=EmbedRequest),
        Route("/api/embeddings", _embeddings, "Ollama: the vector of one text.", body=EmbeddingsRequest),
        Route("/api/show", _show, "Ollama: what a model is.", body=ShowRequest),
        Route("/api/tags", _tags, "Ollama: what is served."),
        Route("/api/ps", _ps, "Ollama: what is in memory."),
        Route("/api/version", _version, "Ollama: the version of this server."),
    ),
)
