"""What the server does, without HTTP: a body in, a body out, in pieces.

A request is read, its model found, its texts tokenized, embedded and written. What takes long runs in threads, so that
the event loop is free for others; what is short runs at once, because a thread's hand-over would cost more.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
from pydantic_core import to_json

from nestling.engine.protocol import TokenIds
from nestling.errors import NestlingError
from nestling.formats.gguf import GGUFFile
from nestling.models.embedder import Embedder, specs_of
from nestling.models.families import read_spec
from nestling.models.local import resolve
from nestling.models.reranking import Scoring, check_top_n, ranked
from nestling.pipeline import self_test
from nestling.server.api import answers
from nestling.server.api.inputs import Input, Reader, are_texts, limit_of
from nestling.server.api.requests import (
    DetokenizeRequest,
    EmbeddingRequest,
    Form,
    RerankRequest,
    TokenizeRequest,
    texts_or_ids,
)
from nestling.server.core import token_vectors as of_tokens
from nestling.server.core.catalog import Catalog, Target
from nestling.server.core.model_pool import Load, ModelPool, Use
from nestling.server.core.result_cache import ResultCache
from nestling.server.core.scheduler import Scheduler, pooled, token_vectors
from nestling.server.http.metrics import Registry
from nestling.server.http.problems import invalid
from nestling.server.settings import MIB, ServeSettings
from nestling.spec import ModelSpec, Role
from nestling.vectors import Floats

LOG = logging.getLogger("nestling.server")
SHORT_CHARACTERS = 4000
"""Texts that tokenize in about a millisecond."""
SHORT_NUMBERS = 10_000
"""Vector components that are written in about a millisecond."""
SHORT_BODY = 64_000
"""Bytes of JSON that parse in about a millisecond."""
HOUSEKEEPING_S = 5.0
Result = TypeVar("Result")


def loader(settings: ServeSettings) -> Load:
    """How models are loaded for real: each must give the vectors that its card has (`proving`)."""
    spec = read_spec(settings.spec) if settings.spec else None

    def load(reference: str) -> Embedder:
        embedder = Embedder.load(reference, engine=settings.engine, threads=settings.threads, spec=spec)
        self_test.check(resolve(reference), partial(embedder.encode, prompt_name=Role.RAW))
        return embedder

    return load


class Service:
    """Everything behind the routes. Made before the event loop runs; `start` and `stop` within it."""

    def __init__(self, settings: ServeSettings, load: Load | None = None) -> None:
        self.settings, self.metrics = settings, Registry()
        spec = read_spec(settings.spec) if settings.spec else None
        self.catalog = Catalog(
            settings.model,
            specs_of_file=lambda path: specs_of(GGUFFile.open(resolve(path)), spec),
            aliases=settings.aliases,
            adapters=settings.adapters,
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
        request.check_together()
        form = request.form
        check = partial(texts_or_ids, request.input, most=self.settings.max_inputs)
        inputs = await self._run(check, short=len(body) < SHORT_BODY)
        roles = {"prompt_name": request.prompt_name, "input_type": request.input_type}
        target = self.catalog.target(request.model, task=request.task, roles=roles)
        async with self._use(target) as model:
            dimension = model.embedder.spec.dimension(request.dimensions)
            values: Sequence[Floats] | Floats
            if request.late_chunking:
                values, ids = await self._chunks(inputs, target, model)
            else:
                ids = await self._ids(inputs, request, target, model)
                values = await (self._tokens if request.return_multivector else self._pooled)(model, ids)
            count = self._counted(target, texts=len(inputs), ids=ids)
            return await self._written(values, request, form=form, dimension=dimension, tokens=count)

    async def rerank(self, body: bytes) -> list[bytes]:
        """`POST /v1/rerank`."""
        request = await self._run(RerankRequest.parse, body, short=len(body) < SHORT_BODY)
        self._note(request.unknown)
        scoring, top_n = Scoring.parse(request.scoring or Scoring.MAXSIM), check_top_n(request.top_n)
        texts = request.texts(most=self.settings.max_inputs)
        target = self.catalog.target(request.model, task=request.task)
        if target.role is not None:
            raise invalid("model: a role has no meaning here: the query is one, the documents passages", param="model")
        async with self._use(target) as model:
            read = partial(of_tokens.candidates, request, texts, model.embedder, scoring)
            with self._timed("tokenize"):
                ids = await self._run(read, short=_is_short(texts))
            work = token_vectors if scoring is Scoring.MAXSIM else pooled
            values = await self.scheduler.run(model.model, ids, work, task=model.task)
            count = self._counted(target, texts=len(ids), ids=ids)
            best = ranked(await self._run(of_tokens.scores, scoring, values, short=count < SHORT_CHARACTERS), top_n)
            documents = texts if request.return_documents else None
            return answers.ranking(best, documents, scoring=scoring, model=self._name(request), tokens=count)

    async def tokenize(self, body: bytes) -> list[bytes]:
        """`POST /tokenize`."""
        request = await self._run(TokenizeRequest.parse, body, short=len(body) < SHORT_CHARACTERS)
        self._note(request.unknown)
        roles = {"prompt_name": request.prompt_name}
        target = self.catalog.target(request.model, task=request.task, roles=roles)
        async with self._use(target) as model:
            write = partial(_tokenized, request.texts, model.embedder, target.role or Role.RAW)
            return await self._run(write, short=len(body) < SHORT_CHARACTERS)

    async def detokenize(self, body: bytes) -> list[bytes]:
        """`POST /detokenize`."""
        request = await self._run(DetokenizeRequest.parse, body, short=len(body) < SHORT_CHARACTERS)
        self._note(request.unknown)
        async with self._use(self.catalog.target(request.model)) as model:
            decode = model.embedder.tokenizer.decode
            text = await self._run(decode, request.tokens, short=len(body) < SHORT_CHARACTERS)
            return [to_json({"content": text, "prompt": text})]

    async def list_models(self) -> bytes:
        """`GET /v1/models`: each served reference, in each file type that is here, and each task by its own name."""
        await self.ready()
        offers = [(offer, kind) for offer in self.catalog.offers for kind in offer.kinds()]
        items = [item for offer, kind in offers for item in kind.items(self._specs[offer.name])]
        return to_json({"object": "list", "data": list({item["id"]: item for item in items}.values())})

    async def _load_first(self) -> None:
        for offer in self.catalog.offers:
            for task in offer.tasks if self.settings.preload else offer.tasks[:1]:
                async with self.models.use(offer.reference(task)) as model:
                    self._specs[offer.name] = model.embedder.spec

    @asynccontextmanager
    async def _use(self, target: Target) -> AsyncIterator[Use]:
        async with self.models.use(target.reference) as model:
            yield Use(model, target.task)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self.models.unload_idle()

    async def _ids(self, inputs: Input, request: EmbeddingRequest, target: Target, model: Use) -> list[TokenIds]:
        limit = limit_of(request, model.embedder.spec)
        read = partial(self._reader.read, inputs, model.embedder, role=target.role, limit=limit)
        with self._timed("tokenize"):
            return await self._run(read, short=not are_texts(inputs) or _is_short(inputs))

    async def _pooled(self, model: Use, ids: Sequence[TokenIds]) -> Floats:
        known = [self.cache.get(model.reference, one) for one in ids]
        missing = [index for index, row in enumerate(known) if row is None]
        self.metrics.cache_hits.add(amount=len(ids) - len(missing))
        if not missing:
            return np.stack([row for row in known if row is not None])
        fresh = await self.scheduler.pool(model.model, [ids[index] for index in missing], task=model.task)
        for index, row in zip(missing, fresh, strict=True):
            known[index] = row
            self.cache.put(model.reference, ids[index], row)
        return fresh if len(missing) == len(ids) else np.stack([row for row in known if row is not None])

    async def _tokens(self, model: Use, ids: Sequence[TokenIds]) -> Sequence[Floats]:
        of_tokens.check_head(model.embedder, param="return_multivector")
        of_tokens.check_size(ids, param="input")
        return await self.scheduler.run(model.model, ids, token_vectors, task=model.task)

    async def _chunks(self, inputs: Input, target: Target, model: Use) -> tuple[Floats, Sequence[TokenIds]]:
        cut = partial(of_tokens.chunked, inputs, model.embedder, role=target.role or Role.QUERY)
        with self._timed("tokenize"):
            found = await self._run(cut, short=not are_texts(inputs) or _is_short(inputs))
        [rows] = await self.scheduler.run(
            model.model, [found.ids], of_tokens.pool_chunks(found.places), task=model.task
        )
        return rows, [found.ids]

    async def _written(
        self, values: Sequence[Floats] | Floats, request: EmbeddingRequest, *, form: Form, dimension: int, tokens: int
    ) -> list[bytes]:
        name = self._name(request)

        def write() -> list[bytes]:
            if request.return_multivector:
                return answers.multivectors(list(values), form=form, model=name, tokens=tokens)
            rows = answers.rows(np.asarray(values), dimension, normalised=request.normalized is not False)
            return answers.embeddings(rows, form=form, model=name, tokens=tokens)

        with self._timed("serialize"):
            return await self._run(write, short=sum(map(np.size, values)) < SHORT_NUMBERS)

    def _name(self, request: EmbeddingRequest | RerankRequest) -> str:
        return request.model or self.catalog.default.name

    def _counted(self, target: Target, *, texts: int, ids: Sequence[TokenIds]) -> int:
        """Tell the metrics what was embedded: -> the tokens."""
        count = sum(map(len, ids))
        self.metrics.texts.add(target.reference, amount=texts)
        self.metrics.tokens.add(target.reference, amount=count)
        return count

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
    tokenizer = embedder.tokenizer
    tokens = [tokenizer.close(ids).tolist() for ids in tokenizer.encode([prefix + text for text in listed])]
    answer = {"tokens": tokens[0] if isinstance(texts, str) else tokens, "count": sum(map(len, tokens))}
    return [to_json({**answer, "max_model_len": embedder.spec.max_tokens})]


def _is_short(texts: Sequence[str]) -> bool:
    return sum(map(len, texts)) < SHORT_CHARACTERS
