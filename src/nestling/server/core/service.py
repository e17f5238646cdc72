"""The service behind all dialects of HTTP: loads models, tokenizes, embeds and ranks texts and images.

Does not know bodies, statuses or routes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence, Sized
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np

from nestling.engine.protocol import device_of
from nestling.formats.gguf import GGUFFile
from nestling.models.embedder import Embedder
from nestling.models.families import read_spec
from nestling.models.file_spec import specs_of
from nestling.models.local import resolve
from nestling.models.reranking import Scoring, check_top_n, ranked
from nestling.server.core import token_vectors as of_tokens
from nestling.server.core.answer_budget import AnswerBudget
from nestling.server.core.catalog import Catalog, Served, Target
from nestling.server.core.inference import COMPUTE, SHORT_CHARACTERS, SHORT_NUMBERS, Inference, Span, is_short
from nestling.server.core.inputs import tokens_of, warnings_of
from nestling.server.core.listing import Listing
from nestling.server.core.loading import loads, model_cost
from nestling.server.core.metrics import Metrics
from nestling.server.core.model_pool import Load, ModelPool
from nestling.server.core.pictures import use_of
from nestling.server.core.replicas import ONE_DEVICE, Use
from nestling.server.core.requests import (
    PER_TOKEN,
    Embedded,
    Embedding,
    Output,
    RankedDocuments,
    Ranking,
    Token,
)
from nestling.server.core.scheduler import Scheduler
from nestling.server.settings import MIB, ServeSettings
from nestling.spec import Role

LOG = logging.getLogger("nestling.server")
HOUSEKEEPING_S = 5.0
FLOAT_BYTES = 4
LAST_S = 0.5
"""Seconds for the engine's thread to end after the time to drain is over."""
Result = TypeVar("Result")


class Service:
    """Everything behind the routes. Created before the event loop runs; `start` and `stop` run within it."""

    def __init__(
        self, settings: ServeSettings, load: Load | None = None, cost_of: Callable[[str], int] | None = None
    ) -> None:
        self.settings, self.metrics = settings, Metrics()
        spec = read_spec(settings.spec) if settings.spec else None
        self.catalog = Catalog(
            settings.model,
            specs_of_file=lambda path: specs_of(GGUFFile.open(resolve(path)), spec),
            aliases=settings.aliases,
            adapters=settings.adapters,
        )
        budget, idle_s = settings.memory_budget_mb * MIB, settings.idle_unload_s
        self.models = ModelPool(
            loads(settings, load),
            budget_bytes=budget,
            idle_s=idle_s,
            cost_of=cost_of or _cost_of(settings, load),
        )
        self.answers = AnswerBudget(settings.max_answer_mb * MIB, self.metrics)
        self._inference = Inference(settings, self.metrics)
        self.in_flight, self.draining = 0, False
        self.given_up = 0
        """Requests that were still in progress when the time to drain was over."""
        self.stop_by: float | None = None
        self.is_stopped = False
        """True when `stop` left nothing running."""
        self._listing = Listing(self.catalog)
        self._noted: set[str] = set()
        self._add_gauges()

    def trace(self, span: Span) -> None:
        """Trace the stages of requests with this from now on."""
        self._inference.span = span

    async def start(self) -> None:
        """Load and self-test the models that must be ready: each served reference's default, or with `preload` all."""
        self.scheduler = Scheduler(
            reset=self.models.reset,
            lose=self.models.lose,
            devices=self.models.serving,
            metrics=self.metrics,
            max_tokens=self.settings.max_queue_tokens,
            largest_batch=self.settings.batch_tokens,
        )
        self._inference.start(self.scheduler)
        self._started = asyncio.create_task(self._load_first())
        self._housekeeper = asyncio.create_task(self._keep_house())

    @property
    def takes_images(self) -> bool:
        """True if a model takes images, so that requests may have larger bodies."""
        return self._listing.takes_images

    async def ready(self) -> None:
        """Wait until the first models are loaded; raises the error that prevented it."""
        await asyncio.shield(self._started)

    async def stop(self) -> None:
        """Finish what is queued and free everything, by `stop_by`; log what was given up."""
        end = max(self.stop_by or time.monotonic() + self.settings.drain_s, time.monotonic() + LAST_S)
        self._started.cancel()
        self._housekeeper.cancel()
        with suppress(asyncio.CancelledError, Exception):  # it was reported to whoever waited for the start
            await self._started
        self._inference.stop()
        ended = await asyncio.to_thread(self.scheduler.stop, end - LAST_S - time.monotonic())
        if not ended:
            self.scheduler.abandon()
            ended = await asyncio.to_thread(self.scheduler.stop, LAST_S)
        self.is_stopped = ended and await self.models.close(within_s=max(end - time.monotonic(), LAST_S))
        if self.given_up or not self.is_stopped:
            facts = {"requests": self.given_up, "still_running": not self.is_stopped}
            LOG.warning("stopped before everything was done", extra={"fields": facts})

    @property
    def is_ready(self) -> bool:
        """True once the self-test has passed, until draining begins."""
        started = self._started.done() and not self._started.cancelled() and self._started.exception() is None
        return started and not self.draining

    @asynccontextmanager
    async def embedded(self, wanted: Embedding) -> AsyncIterator[Embedded]:
        """The vectors of inputs, held while the block runs; BusyError when too many are held already."""
        async with AsyncExitStack() as held:
            yield await self._embedded(wanted, held)

    async def _embedded(self, wanted: Embedding, held: AsyncExitStack) -> Embedded:
        """The vectors, whose bytes are held by `held`."""
        async with self._use(wanted.target) as model:
            dimension, width = model.embedder.spec.dimension(wanted.dimensions), model.embedder.spec.dimension(None)
            ids: Sequence[Sized]
            if wanted.output is Output.CHUNKS:
                held.enter_context(self.answers.held(len(wanted.inputs) * width * FLOAT_BYTES))
                values, ids = await self._inference.chunks(wanted, model)
            else:
                ids = items = await self._inference.items(wanted, model)
                rows = sum(map(len, ids)) if wanted.output in PER_TOKEN else len(ids)
                held.enter_context(self.answers.held(rows * width * FLOAT_BYTES))
                values = await self._inference.rows(wanted.output, model, items)
            tokens = self._counted(wanted.target, texts=len(wanted.inputs), ids=ids)
            if wanted.output not in PER_TOKEN:
                pooled = np.asarray(values)
                finish = partial(model.embedder.finish, pooled, dimension, normalized=wanted.normalized)
                values = await self.run(finish, short=np.size(values) < SHORT_NUMBERS)
            warnings = warnings_of(wanted, model.embedder.spec)
        return Embedded(values, tokens, warnings, use_of(ids))

    async def ranked(self, wanted: Ranking) -> RankedDocuments:
        """The documents ranked by relevance to the query."""
        top_n = check_top_n(wanted.top_n)
        async with self._use(wanted.target) as model:
            ids = await self._inference.candidates(wanted, model)
            make = model.embedder.projector.project if wanted.scoring is Scoring.MAXSIM else None
            rows, width = sum(map(len, ids)) if make else len(ids), model.embedder.spec.dimension(None)
            with self.answers.held(rows * width * FLOAT_BYTES):
                with self._inference.span(COMPUTE):
                    values = await self.scheduler.run(model.model, ids, task=model.task, make=make)
                tokens = self._counted(wanted.target, texts=len(ids), ids=ids)
                scores = await self.run(of_tokens.scores, wanted.scoring, values, short=tokens < SHORT_CHARACTERS)
            warnings = warnings_of(wanted, model.embedder.spec)
            return RankedDocuments(ranked(scores, top_n), tokens, warnings)

    async def tokens(self, texts: Sequence[str], target: Target, *, closed: bool) -> list[list[Token]]:
        """Each text's tokens, with the role's prefix (none by default); without the model's ending unless `closed`."""
        async with self._use(target) as model:
            role = target.role or Role.RAW
            read = partial(tokens_of, embedder=model.embedder, role=role, closed=closed)
            return await self.run(lambda: [read(text) for text in texts], short=is_short(texts))

    async def detokenized(self, tokens: Sequence[int], target: Target, *, skip_special: bool = False) -> str:
        """The text of token ids; special tokens are written out unless skipped."""
        async with self._use(target) as model:
            decode = partial(model.embedder.tokenizer.decode, skip_special=skip_special)
            return await self.run(decode, tokens, short=len(tokens) < SHORT_CHARACTERS)

    async def loaded(self, target: Target) -> Embedder:
        """The loaded model of a request; only for its facts, since it may be unloaded afterwards."""
        async with self._use(target) as model:
            return model.embedder

    async def served(self) -> list[Served]:
        """Each served reference, in each local file type, each task under its own name, and each alias."""
        await self.ready()
        return self._listing.served()

    def engines(self) -> list[dict[str, str]]:
        """Which engine each model in memory runs in, on each device, and why."""
        return [
            {
                "model": model.reference,
                "engine": one.engine.name,
                "device": device_of(one.engine) if name == ONE_DEVICE else name,
                "reason": one.engine.reason,
            }
            for model in self.models.loaded
            for name, one in model.replicas.items()
        ]

    async def served_as(self, name: str) -> Served:
        """The model that a client's name means; NotServedError or UsageError as for a request with that name."""
        await self.ready()
        return self._listing.named(name)

    async def run(self, work: Callable[..., Result], *values: Any, short: bool) -> Result:  # noqa: ANN401 - work's own
        """Call `work`: at once if it is `short` (a millisecond), otherwise in a thread."""
        return await self._inference.run(work, *values, short=short)

    def note_unknown(self, fields: Iterable[str]) -> None:
        """Log the names of unknown fields, each once."""
        for name in fields:
            shown = name if name.isidentifier() and len(name) < 50 else "(not a name)"  # noqa: PLR2004 - a log line's worth
            if shown not in self._noted and len(self._noted) < 100:  # noqa: PLR2004 - a bounded log
                self._noted.add(shown)
                LOG.info("unknown field ignored", extra={"fields": {"field": shown}})

    async def _load_first(self) -> None:
        async with AsyncExitStack() as held:  # all preloaded models must fit at once
            for offer in self.catalog.offers:
                for task in offer.tasks if self.settings.preload else offer.tasks[:1]:
                    model = await held.enter_async_context(self.models.use(offer.reference(task)))
                    self._listing.learn(offer, model.embedder)
                    if not self.settings.preload:
                        await held.aclose()

    @asynccontextmanager
    async def _use(self, target: Target) -> AsyncIterator[Use]:
        async with self.models.use(target.reference) as model:
            yield Use(model, target.task)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            try:
                self.models.unload_idle()
                await asyncio.to_thread(self.catalog.refresh)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next round is tried
                LOG.warning(
                    "housekeeping failed", extra={"fields": {"error": f"{type(error).__name__}: {error!s:.200}"}}
                )

    def _counted(self, target: Target, *, texts: int, ids: Sequence[Sized]) -> int:
        """Count what was embedded in the metrics; returns the tokens."""
        count = sum(map(len, ids))
        self.metrics.texts.labels(target.reference).inc(texts)
        self.metrics.tokens.labels(target.reference).inc(count)
        return count

    def _add_gauges(self) -> None:
        add = self.metrics.gauge
        add("nestling_in_flight_requests", "Requests being answered", lambda: self.in_flight)
        add("nestling_queue_tokens", "Tokens that wait for the engine", lambda: self.scheduler.waiting_tokens)
        add("nestling_models_loaded", "Models in memory", lambda: len(self.models.loaded))
        add(
            "nestling_models_bytes",
            "Memory that they take, by the sizes of their weights",
            lambda: sum(m.size_bytes for m in self.models.loaded),
        )
        add(
            "nestling_models_in_another_engine",
            "Models in memory that are not in the engine that auto prefers",
            lambda: len({one["model"] for one in self.engines() if "cannot be loaded" in one["reason"]}),
        )
        self.metrics.facts(
            "nestling_model_engine",
            "1 for each model in memory and device: its engine, and why that one",
            ("model", "engine", "device", "reason"),
            lambda: [tuple(one.values()) for one in self.engines()],
        )
        self.metrics.device_gauge(
            "nestling_device_up",
            "0 for a device that was lost",
            self.models.serving,
            lambda device: device not in self.models.lost,
        )
        add("nestling_answer_bytes", "Vectors that are being computed or sent", lambda: self.answers.held_bytes)
        add("nestling_cache_bytes", "Size of the result cache", lambda: self._inference.cache.size_bytes)


def _cost_of(settings: ServeSettings, load: Load | None) -> Callable[[str], int]:
    """Estimates models' memory in the settings' engine; 0 if the caller loads models by other means."""
    if load is not None:
        return lambda _reference: 0
    return partial(model_cost, engine=settings.engine, device=settings.devices[0], arithmetic=settings.arithmetic)
