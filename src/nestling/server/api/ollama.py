"""Ollama's dialect: `/api/embed` and `/api/embeddings`, and what its clients ask to see what is there.

Facts are those of Ollama's API documentation (docs/api.md), of its `api/types.go` and `server/routes.go`. There are no
roles: a prefix that a text begins with is its own, others get `Query: `, or what the model string names
(`starter/retrieval.passage`).
"""

import re
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from nestling._util.version import __version__
from nestling.errors import TextLengthError
from nestling.models import local
from nestling.server.api import answers, ollama_models
from nestling.server.api.bodies import WRONG_TYPE, Body, texts_or_ids
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.core.refusals import InvalidError, NotServedError
from nestling.server.core.requests import Embedding, Reading
from nestling.server.http.problems import Problem

NANOSECONDS = 1_000_000_000
_DURATION = re.compile(r"[-+]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)")
"""Go's form of a duration: `5m`, `1h30m`."""


class Named(Body):
    """What all of Ollama's requests have."""

    model: str | None = None
    """NAME or NAME/TASK.ROLE, with or without `:latest`; the first served model by default."""
    keep_alive: str | float | None = None
    """Left to the server's `--idle-unload-s`, which the answer's header says."""
    options: dict[str, Any] | None = None
    """`num_ctx`: tokens of the longest text, the model's limit at most. The rest is about generating text."""

    def reading(self, *, truncate: bool) -> Reading:
        """How texts are read: beyond `num_ctx` they are cut, or refused where `truncate` is false."""
        longest = (self.options or {}).get("num_ctx")
        if longest is not None and type(longest) is not int:
            raise InvalidError("options.num_ctx: expected an integer", param="options", code=WRONG_TYPE)
        allowed = longest if longest and longest > 0 else None  # as in Ollama: the model's limit
        return Reading(truncate=truncate, longest=allowed, longest_name="options.num_ctx", typed=True)

    def check_keep_alive(self) -> str:
        """A warning for what is left alone, empty where nothing is; InvalidError for what is no duration."""
        if self.keep_alive is None:
            return ""
        if isinstance(self.keep_alive, str) and not _DURATION.fullmatch(self.keep_alive):
            said = f"keep_alive={self.keep_alive[:40]!r}: expected a number of seconds or a duration such as 5m"
            raise InvalidError(said, param="keep_alive")
        return "keep_alive: this server unloads models by its own --idle-unload-s"


class EmbedRequest(Named):
    """`POST /api/embed`."""

    input: str | list[str] | None = None
    """A text or several; nothing loads the model."""
    truncate: bool | None = None
    """false: refuse texts that are too long; cut on the right by default."""
    dimensions: int | None = None
    """One of the trained sizes; the full width by default, and for 0."""


class EmbeddingsRequest(Named):
    """`POST /api/embeddings`, which Ollama has superseded by `/api/embed`."""

    prompt: str | None = None
    """A text; nothing loads the model."""


class ShowRequest(Body):
    """`POST /api/show`."""

    model: str | None = None
    name: str | None = None
    """The same as model."""
    verbose: bool | None = None
    """true: `model_info` has the arrays of the file's fields too, such as the vocabulary."""


async def _embed(call: Call) -> AsyncGenerator[bytes, None]:
    started, request = time.perf_counter(), await call.read(EmbedRequest)
    _note(call, request.check_keep_alive())
    name = request.model or call.service.catalog.default.name
    target = call.service.catalog.target(request.model)
    reading = request.reading(truncate=request.truncate is not False)
    await call.service.loaded(target)
    loaded = _nanoseconds(started)
    if not request.input:  # Ollama's way to load a model and nothing more
        yield to_json({"model": name, "embeddings": []})
        return
    inputs = await call.run(_texts, call, request.input)
    wanted = Embedding(inputs, target, reading, dimensions=request.dimensions or None)
    async with call.service.embedded(wanted) as found:
        call.warnings.extend(found.warnings)
        facts = {"model": name, "total_duration": _nanoseconds(started), "load_duration": loaded}
        facts["prompt_eval_count"] = found.tokens
        head = to_json(facts)[:-1] + b',"embeddings":'
        for piece in answers.pieces(chain([head], answers.vectors_listed(found.values), [b"}"])):
            yield piece


async def _embeddings(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(EmbeddingsRequest)
    _note(call, request.check_keep_alive())
    target, reading = call.service.catalog.target(request.model), request.reading(truncate=True)
    if not request.prompt:
        await call.service.loaded(target)
        yield b'{"embedding":[]}'
        return
    async with call.service.embedded(Embedding([request.prompt], target, reading)) as found:
        call.warnings.extend(found.warnings)
        yield b'{"embedding":%b}' % answers.vector(found.values[0])


def _texts(call: Call, value: str | list[str]) -> Any:  # noqa: ANN401 - Inputs
    return texts_or_ids(value, most=call.service.settings.max_inputs)


def _note(call: Call, warning: str) -> None:
    if warning:
        call.warnings.append(warning)


def _nanoseconds(started: float) -> int:
    return int((time.perf_counter() - started) * NANOSECONDS)


async def _tags(call: Call) -> AsyncGenerator[bytes, None]:
    names = [one.name for one in await call.service.served()]
    references = [call.service.catalog.target(name).reference for name in names]
    yield to_json({"models": await call.service.run(_entries, names, references, short=False)})


def _entries(names: Sequence[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """An entry for each name; a reference without a file is one that is made when it is first used."""
    here = {str(one.reference): one.path for one in local.available()}
    paths = [Path(one) if local.looks_like_path(one) else here.get(one) for one in references]
    return [ollama_models.entry(name, path) for name, path in zip(names, paths, strict=True)]


async def _ps(call: Call) -> AsyncGenerator[bytes, None]:
    models = call.service.models
    entries = [
        partial(
            ollama_models.loaded_entry,
            one.reference,
            one.embedder.path,
            size=one.size_bytes,
            context=one.embedder.spec.max_tokens,
            left_s=models.unloaded_in_s(one),
        )
        for one in models.loaded
    ]
    yield to_json({"models": await call.service.run(lambda: [read() for read in entries], short=False)})


async def _show(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(ShowRequest)
    name = request.model or request.name or call.service.catalog.default.name
    embedder = await call.service.loaded(call.service.catalog.target(name))

    def answer() -> bytes:
        verbose = bool(request.verbose)
        return to_json(ollama_models.shown_model(name, embedder.path, embedder.spec, verbose=verbose))

    yield await call.service.run(answer, short=False)


async def _version(_call: Call) -> AsyncGenerator[bytes, None]:
    yield to_json({"version": __version__})


def _error(problem: Problem) -> bytes:
    """With the words that clients look for."""
    message = problem.message
    if issubclass(problem.kind, NotServedError):
        message = message.replace("model=", "model ", 1).replace(": not served here", " not found", 1)
    if issubclass(problem.kind, TextLengthError):
        message = f"the input length exceeds the context length: {message}"
    return to_json({"error": message})


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
