"""Encoders for quality measurements of texts or pages: a local model, or a server by its URL.

A reference is a model reference (`starter-retrieval:Q4_K_M`, a GGUF file) or `URL#MODEL` of an OpenAI-compatible
server, such as `http://localhost:8080/v1#starter/retrieval`. A server's model that ends in `/TASK` is requested as
`MODEL.ROLE`, which nestling's server understands; for other models the published prefix is added to each text here.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nestling._util.ahead import ahead
from nestling._util.progress import Progress, no_progress
from nestling.engine.names import DEFAULT_ENGINE
from nestling.engine.protocol import plain
from nestling.errors import EngineError, InputError, ModelNotFoundError, UsageError
from nestling.evaluation.pages import Page
from nestling.evaluation.remote import Connection
from nestling.models import hub_models, local
from nestling.models.embedder import Embedder
from nestling.models.local import ModelReference
from nestling.spec import Role, Task, prefixes_for
from nestling.vectors import Floats

REQUEST_TEXTS, REQUEST_PAGES = 64, 4
"""Texts, or pages, per request to a server, whose bodies have a size limit."""
Inputs = Sequence[str | Page]


class Encoder(Protocol):
    """Texts or pages to vectors of full width. `task` is the model's task, None if unknown."""

    name: str
    task: Task | None

    def encode_iter(self, inputs: Inputs, *, role: Role) -> Iterator[tuple[list[int], Floats]]:
        """Embed inputs of one role, in batches and any order: yields (indices of b inputs, (b, D) float32).

        InputError with the index of an input that cannot be embedded.
        """
        ...

    def close(self) -> None:
        """Free its resources."""
        ...


class LocalEncoder:
    """A model file, loaded in this process."""

    def __init__(self, embedder: Embedder, *, name: str) -> None:
        self.name, self._embedder = name, embedder
        self.task: Task | None = embedder.spec.task

    def encode_iter(self, inputs: Inputs, *, role: Role) -> Iterator[tuple[list[int], Floats]]:
        """Embed inputs of one role, in the engine's batches."""
        texts = [one for one in inputs if isinstance(one, str)]
        if len(texts) < len(inputs):
            return self._pages([one for one in inputs if isinstance(one, Page)])
        return self._embedder.embed_iter(plain(self._embedder.tokenize(texts, prompt_name=role)))

    def _pages(self, pages: Sequence[Page]) -> Iterator[tuple[list[int], Floats]]:
        """Embed pages; the next ones are decoded in the meantime, so that few are in memory."""
        done = 0
        for items in ahead(self._embedder.vision.grouped(page.read() for page in pages)):
            for places, vectors in self._embedder.embed_iter(items):
                yield [done + place for place in places], vectors
            done += len(items)

    def close(self) -> None:
        """Unload the model."""
        self._embedder.close()


class RemoteEncoder:
    """An OpenAI-compatible server; a failed request is an EngineError."""

    def __init__(self, url: str, *, task: Task | None = None) -> None:
        address, _, model = url.partition("#")
        self.name, self._model = url, model
        self._connection = Connection(address)
        self._named_task = _task_of(model)
        self.task = self._named_task or task
        if self.task is None:
            raise UsageError(f"{url}: expected a task, with --task or as URL#MODEL/TASK", param="task")

    def encode_iter(self, inputs: Inputs, *, role: Role) -> Iterator[tuple[list[int], Floats]]:
        """Embed inputs of one role, in requests."""
        return in_requests(inputs, lambda some: self._connection.embed(self.body(some, role=role)))

    def body(self, inputs: Inputs, *, role: Role) -> dict[str, Any]:
        """The request body for some inputs; images as in Jina's API."""
        if self._named_task:
            return {"input": [_sent(one, "") for one in inputs], "model": f"{self._model}.{role}"}
        assert self.task is not None, "checked in __init__"
        prefix = prefixes_for(self.task)[role]
        return {"input": [_sent(one, prefix) for one in inputs], "model": self._model}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _sent(one: str | Page, prefix: str) -> str | dict[str, str]:
    return prefix + one if isinstance(one, str) else {"image": base64.b64encode(one.read()).decode()}


def _task_of(model: str) -> Task | None:
    tail = model.rpartition("/")[2] if "/" in model else ""
    return Task(tail) if tail in set(Task) else None


def is_url(reference: str | Path) -> bool:
    """True for a reference to a server."""
    return str(reference).startswith(("http://", "https://"))


def check_device_used(references: Sequence[str], device: str | None) -> None:
    """UsageError for a device where all references are servers, which choose their own."""
    if device is not None and all(map(is_url, references)):
        raise UsageError(f"device={device!r}: is for local models; a server chooses its own", param="device")


def expand(references: Sequence[str]) -> list[str]:
    """Expand families to their three models and folders to their GGUF files, without duplicates."""
    return list(dict.fromkeys(one for reference in references for one in _expanded(reference)))


def _expanded(reference: str) -> list[str]:
    if is_url(reference):
        return [reference]
    if Path(reference).is_dir():
        files = [path for path in sorted(Path(reference).glob("*.gguf")) if hub_models.is_model(path.name)]
        if not files:
            raise ModelNotFoundError(f"{reference}: no GGUF files in this folder")
        return [str(path) for path in files]
    if local.looks_like_path(reference):
        return [reference]
    model = ModelReference.parse(reference)
    if model.base:
        raise UsageError(
            f"model={reference!r}: a base has several tasks; serve it with --adapters and measure URL#MODEL/TASK"
        )
    return [str(ModelReference(model.family, task, model.quant)) for task in ([model.task] if model.task else Task)]


def open_encoder(
    reference: str,
    *,
    engine: str = DEFAULT_ENGINE,
    device: str | None = None,
    threads: int | None = None,
    task: Task | None = None,
) -> Encoder:
    """Open a reference; `task` is the task of a server's model that does not name one."""
    if is_url(reference):
        return RemoteEncoder(reference, task=task)
    embedder = Embedder.load(local.resolve(reference), engine=engine, device=device, threads=threads)
    return LocalEncoder(embedder, name=str(reference))


def in_requests(inputs: Inputs, encode: Callable[[Inputs], Floats]) -> Iterator[tuple[list[int], Floats]]:
    """Embed texts of similar length together, longest first, or pages in order: yields (indices, vectors)."""
    order = sorted(range(len(inputs)), key=lambda place: -_length(inputs[place]))
    step = REQUEST_TEXTS if all(isinstance(one, str) for one in inputs) else REQUEST_PAGES
    for start in range(0, len(order), step):
        places = order[start : start + step]
        try:
            yield places, encode([inputs[place] for place in places])
        except InputError as error:
            raise error.at(places[error.index]) from None


def _length(one: str | Page) -> int:
    return len(one) if isinstance(one, str) else 0


def encode_all(encoder: Encoder, inputs: Inputs, *, role: Role, progress: Progress = no_progress) -> Floats:
    """Embed all inputs: -> (B, D) float32 in their order.

    EngineError for a wrong shape, NaN or a zero vector. `progress` counts inputs.
    """
    rows: dict[int, Floats] = {}
    try:
        for places, vectors in encoder.encode_iter(inputs, role=role):
            rows.update(zip(places, checked(vectors, len(places), encoder.name), strict=True))
            progress(len(rows), len(inputs))
    except InputError as error:
        one = inputs[error.index]
        named = f"{role} {one!r:.60}" if isinstance(one, str) else str(one)
        raise type(error)(f"{error.reason} ({named})", index=error.index) from None
    if len({len(row) for row in rows.values()}) > 1:
        raise EngineError(f"{encoder.name}: vectors of different widths")
    return np.stack([rows[place] for place in range(len(inputs))])


def checked(vectors: Floats, count: int, name: str) -> Floats:
    """The vectors unchanged; EngineError unless they are `count` finite rows other than zero."""
    if vectors.ndim != 2 or len(vectors) != count:  # noqa: PLR2004 - a matrix
        raise EngineError(f"{name}: expected {count} vectors, found an array of shape {vectors.shape}")
    norms = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise EngineError(f"{name}: returned a vector that is zero or not finite")
    return vectors
