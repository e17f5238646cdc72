"""What the server does, without HTTP: a body in, a body out, in pieces.

A request is read, its model found, its texts tokenized, embedded and written. What takes long runs in threads, so that
the event loop is free for others; what is short runs at once, because a thread's hand-over would cost more.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
from pydantic_core import to_json

from nestling.embedder import Embedder, spec_of
from nestling.engine.base import TokenIds
from nestling.errors import NestlingError
from nestling.gguf_io import GGUFFile
from nestling.recognise import read_spec
from nestling.serve import answers
from nestling.serve.cache import ResultCache
from nestling.serve.inputs import Input, Reader, are_texts, limit_of
from nestling.serve.metrics import Registry
from nestling.serve.models import Load, Model, ModelPool
from nestling.serve.names import Catalog, Offer, Target
from nestling.serve.scheduler import Scheduler
from nestling.serve.settings import MIB, ServeSettings
from nestling.serve.wire import (
    DetokenizeRequest,
    EmbeddingRequest,
    Form,
    TokenizeRequest,
    texts_or_ids,
)
from nestling.spec import ModelSpec, Role
from nestling.store import resolve
from nestling.vectors import Floats

LOG = logging.getLogger("nestling.serve")
SHORT_CHARACTERS = 4000
"""Texts that tokenize in about a millisecond."""
SHORT_NUMBERS = 10_000
"""Vector components that are written in about a millisecond."""
SHORT_BODY = 64_000
"""Bytes of JSON that parse in about a millisecond."""
HOUSEKEEPING_S = 5.0
Result = TypeVar("Result")


def loader(settings: ServeSettings) -> Load:
    """How models are loaded for real."""
    spec = read_spec(settings.spec) if settings.spec else None
    return lambda reference: Embedder.load(reference, engine=settings.engine, threads=settings.threads, spec=spec)


class Service:
    """Everything behind the routes. Made before the event loop runs; `start` and `stop` within it."""

    def __init__(self, settings: ServeSettings, load: Load | None = None) -> None:
        self.settings, self.metrics = settings, Registry()
        spec = read_spec(settings.spec) if settings.spec else None
        self.catalog = Catalog(
            settings.model,
            spec_of_file=lambda path: spec_of(GGUFFile.open(resolve(path)), spec),
            aliases=settings.aliases,
        )
        budget, idle_s = settings.memory_budget_mb * MIB, settings.idle_unload_s
        self.models = ModelPool(load or loader(settings), budget_bytes=budget, idle_s=idle_s)
        self.cache = ResultCache(settings.cache_mb * MIB)
        self.in_flight, self.draining = 0, False
        self._reader = Reader(settings.token_input)
        self._specs: dict[str, ModelSpec] = {}
        self._noted: set[str] = set()
        self._add_gauges()

    async def start(self) -> None:
        """Load and self-test the models that must be ready: each served reference's default, or with `preload` all."""
        self.scheduler = Scheduler(
            reset=self.models.reset,
            metrics=self.metrics,
            max_tokens=self.settings.max_queue_tokens,
            largest_batch=self.settings.batch_tokens,
        )
        self._threads = ThreadPoolExecutor(2, "wire")
        self._started = asyncio.create_task(self._load_first())
        self._housekeeper = asyncio.create_task(self._keep_house())

    async def ready(self) -> None:
        """Wait until the first models are loaded; raises what kept them from it."""
        await asyncio.shield(self._started)

    async def stop(self) -> None:
        """Finish what is queued and give everything back."""
        self._started.cancel()
        self._housekeeper.cancel()
        with suppress(asyncio.CancelledError, NestlingError):
            await self._started
        await asyncio.to_thread(self.scheduler.stop)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.models.close()

    @property
    def is_ready(self) -> bool:
        """True once the self-test has passed, until draining begins."""
        started = self._started.done() and not self._started.cancelled() and self._started.exception() is None
        return started and not self.draining

    async def embed(self, body: bytes) -> list[bytes]:
        """`POST /v1/embeddings`."""
        request = await self._run(EmbeddingRequest.parse, body, short=len(body) < SHORT_BODY)
        self._note(request.unknown)
        request.refuse_unsupported()
        form = request.form
        check = partial(texts_or_ids, request.input, most=self.settings.max_inputs)
        inputs = await self._run(check, short=len(body) < SHORT_BODY)
        roles = {"prompt_name": request.prompt_name, "input_type": request.input_type}
        target = self.catalog.target(request.model, task=request.task, roles=roles)
        async with self.models.use(target.reference) as model:
            dimension = model.embedder.spec.dimension(request.dimensions)
            ids = await self._ids(inputs, request, target, model)
            pooled, tokens = await self._pooled(model, ids), sum(map(len, ids))
            self.metrics.texts.add(target.reference, amount=len(ids))
            self.metrics.tokens.add(target.reference, amount=tokens)
            return await self._written(pooled, request, form=form, dimension=dimension, tokens=tokens)

    async def tokenize(self, body: bytes) -> list[bytes]:
        """`POST /tokenize`."""
        request = await self._run(TokenizeRequest.parse, body, short=len(body) < SHORT_CHARACTERS)
        self._note(request.unknown)
        roles = {"prompt_name": request.prompt_name}
        target = self.catalog.target(request.model, task=request.task, roles=roles)
        async with self.models.use(target.reference) as model:
            write = partial(_tokenized, request.texts, model.embedder, target.role or Role.RAW)
            return await self._run(write, short=len(body) < SHORT_CHARACTERS)

    async def detokenize(self, body: bytes) -> list[bytes]:
        """`POST /detokenize`."""
        request = await self._run(DetokenizeRequest.parse, body, short=len(body) < SHORT_CHARACTERS)
        self._note(request.unknown)
        async with self.models.use(self.catalog.target(request.model).reference) as model:
            decode = model.embedder.tokenizer.decode
            text = await self._run(decode, request.tokens, short=len(body) < SHORT_CHARACTERS)
            return [to_json({"content": text, "prompt": text})]

    async def list_models(self) -> bytes:
        """`GET /v1/models`: each served reference, in each file type that is here, and each task by its own name."""
        await self.ready()
        offers = [(offer, kind) for offer in self.catalog.offers for kind in offer.kinds()]
        items = [item for offer, kind in offers for item in _listed(kind, self._specs[offer.name])]
        return to_json({"object": "list", "data": list({item["id"]: item for item in items}.values())})

    async def _load_first(self) -> None:
        for offer in self.catalog.offers:
            for task in offer.tasks if self.settings.preload else offer.tasks[:1]:
                async with self.models.use(offer.reference(task)) as model:
                    self._specs[offer.name] = model.embedder.spec

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self.models.unload_idle()

    async def _ids(self, inputs: Input, request: EmbeddingRequest, target: Target, model: Model) -> list[TokenIds]:
        limit = limit_of(request, model.embedder.spec)
        read = partial(self._reader.read, inputs, model.embedder, role=target.role, limit=limit)
        with self._timed("tokenize"):
            return await self._run(read, short=not are_texts(inputs) or _is_short(inputs))

    async def _pooled(self, model: Model, ids: Sequence[TokenIds]) -> Floats:
        known = [self.cache.get(model.reference, one) for one in ids]
        missing = [index for index, row in enumerate(known) if row is None]
        self.metrics.cache_hits.add(amount=len(ids) - len(missing))
        if not missing:
            return np.stack([row for row in known if row is not None])
        fresh = await self.scheduler.pool(model, [ids[index] for index in missing])
        for index, row in zip(missing, fresh, strict=True):
            known[index] = row
            self.cache.put(model.reference, ids[index], row)
        return fresh if len(missing) == len(ids) else np.stack([row for row in known if row is not None])

    async def _written(
        self, pooled: Floats, request: EmbeddingRequest, *, form: Form, dimension: int, tokens: int
    ) -> list[bytes]:
        name = request.model or self.catalog.default.name

        def write() -> list[bytes]:
            rows = answers.rows(pooled, dimension, normalised=request.normalized is not False)
            return answers.embeddings(rows, form=form, model=name, tokens=tokens)

        with self._timed("serialize"):
            return await self._run(write, short=len(pooled) * dimension < SHORT_NUMBERS)

    async def _run(self, work: Callable[..., Result], *values: Any, short: bool) -> Result:  # noqa: ANN401 - work's own
        if short:
            return work(*values)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)

    @contextmanager
    def _timed(self, stage: str) -> Any:  # noqa: ANN401 - a context manager without a value
        start = time.perf_counter()
        yield
        self.metrics.stage.observe(time.perf_counter() - start, stage)

    def _note(self, fields: Any) -> None:  # noqa: ANN401 - an iterable of names
        for name in fields:
            shown = name if name.isidentifier() and len(name) < 50 else "(not a name)"  # noqa: PLR2004 - a log line's worth
            if shown not in self._noted and len(self._noted) < 100:  # noqa: PLR2004 - a bounded log
                self._noted.add(shown)
                LOG.info("unknown field ignored", extra={"fields": {"field": shown}})

    def _add_gauges(self) -> None:
        add = self.metrics.gauge
        add("nestling_in_flight_requests", "Requests being answered", lambda: self.in_flight)
        add("nestling_queue_tokens", "Tokens that wait for the engine", lambda: self.scheduler.waiting_tokens)
        add("nestling_models_loaded", "Models in memory", lambda: len(self.models.loaded))
        add(
            "nestling_models_bytes",
            "Memory that loading them added",
            lambda: sum(m.size_bytes for m in self.models.loaded),
        )
        add("nestling_cache_bytes", "Size of the result cache", lambda: self.cache.size_bytes)


def _tokenized(texts: str | list[str], embedder: Embedder, role: Role) -> list[bytes]:
    prefix, listed = embedder.spec.prefix(role), [texts] if isinstance(texts, str) else texts
    tokens = [ids.tolist() for ids in embedder.tokenizer.encode([prefix + text for text in listed])]
    answer = {"tokens": tokens[0] if isinstance(texts, str) else tokens, "count": sum(map(len, tokens))}
    return [to_json({**answer, "max_model_len": embedder.spec.max_tokens})]


def _listed(offer: Offer, spec: ModelSpec) -> list[dict[str, Any]]:
    shared = {
        "object": "model",
        "created": 0,
        "owned_by": "nestling",
        "max_model_len": spec.max_tokens,
        "dimensions": spec.dimensions,
    }
    whole = {"id": offer.name, **shared, "tasks": offer.tasks}
    if len(offer.tasks) == 1:
        return [whole]
    return [whole, *({"id": offer.name_of(task), **shared, "tasks": (task,)} for task in offer.tasks)]


def _is_short(texts: Sequence[str]) -> bool:
    return sum(map(len, texts)) < SHORT_CHARACTERS
