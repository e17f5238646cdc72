"""From inputs to items of tokens and patches, and from items to pooled or token states, multi-vectors or chunks.

Long work runs in threads, so that the event loop stays free; short work runs at once, since handing it to a thread
would cost more. Does not know the names of models.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from nestling.engine.protocol import Item, TokenIds, plain
from nestling.errors import ImageError, TextError
from nestling.models.compute import as_they_are
from nestling.models.reranking import Scoring
from nestling.server.core import token_vectors as of_tokens
from nestling.server.core.inputs import Reader
from nestling.server.core.metrics import Metrics
from nestling.server.core.pictures import PictureReader, pictures_of, texts_of
from nestling.server.core.replicas import Use
from nestling.server.core.requests import Embedding, Inputs, Output, Picture, Ranking, are_texts
from nestling.server.core.result_cache import ResultCache
from nestling.server.core.scheduler import Scheduler
from nestling.server.settings import MIB, ServeSettings
from nestling.spec import Role
from nestling.vectors import Floats

SHORT_CHARACTERS = 4000
"""Characters of texts that tokenize in about a millisecond."""
SHORT_NUMBERS = 250_000
"""Vector components that are normalised in less than a millisecond."""
COMPUTE = "compute"
"""The stage of waiting for the engine and running in it, in metrics and traces."""
Span = Callable[[str], AbstractContextManager[object]]
"""Opens a span for a stage in the trace of the current task's request."""
Result = TypeVar("Result")


class Inference:
    """Tokenization and inference, with a result cache. Call `start` within the event loop first."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._metrics = metrics
        self.span: Span = nullcontext
        self.cache = ResultCache(settings.cache_mb * MIB)
        self._reader = Reader(settings.token_input)
        self._pictures = PictureReader(settings.allow_image_urls)
        self._threads = ThreadPoolExecutor(2, "wire")
        self._works: Mapping[Output, Callable[[Use, Sequence[Item]], Awaitable[Sequence[Floats] | Floats]]] = {
            Output.VECTOR: self._pooled,
            Output.STATES: self._states,
            Output.MULTI_VECTOR: self._tokens,
        }

    def start(self, scheduler: Scheduler) -> None:
        """Set the scheduler to compute with."""
        self._scheduler = scheduler

    def stop(self) -> None:
        """Shut down the threads; nothing more is started."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pictures.close()

    async def run(self, work: Callable[..., Result], *values: Any, short: bool) -> Result:  # noqa: ANN401 - work's own
        """Call `work`: at once if it is `short` (a millisecond), otherwise in a thread."""
        if short:
            return work(*values)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the block's duration in the metrics and the request's trace."""
        start = time.perf_counter()
        with self.span(stage):
            yield
        self._metrics.stage.labels(stage).observe(time.perf_counter() - start)

    async def rows(self, output: Output, model: Use, items: Sequence[Item]) -> Sequence[Floats] | Floats:
        """B items -> (B, D) pooled states or, depending on `output`, an array (tokens, D) for each item."""
        with self.span(COMPUTE):
            return await self._works[output](model, items)

    async def items(self, wanted: Embedding, model: Use) -> list[Item]:
        """An item for each input; InputError names the one that cannot be embedded."""
        pictures = pictures_of(wanted.inputs)
        if not pictures:
            return plain(await self._ids(wanted, model))
        found = await self._pictured(pictures, model)
        texts = {place: one for place, one in enumerate(wanted.inputs) if isinstance(one, str)}
        if texts:
            try:
                ids = await self._ids(replace(wanted, inputs=list(texts.values())), model)
            except TextError as error:
                raise error.at(list(texts)[error.index]) from None
            found |= zip(texts, plain(ids), strict=True)
        return [found[place] for place in range(len(wanted.inputs))]

    async def _pictured(self, pictures: Mapping[int, Picture], model: Use) -> dict[int, Item]:
        with self.timed("images"):
            return await self._pictures.items(pictures, model.embedder) if pictures else {}

    async def candidates(self, wanted: Ranking, model: Use) -> list[Item]:
        """The query and the documents; InvalidError naming the document that cannot be scored."""
        pictures = pictures_of(wanted.documents)
        places = [place for place, one in enumerate(wanted.documents) if isinstance(one, str)]
        with self.timed("tokenize"):
            read = partial(of_tokens.candidates, wanted, places, model.embedder)
            asked, *texts = await self.run(read, short=is_short(texts_of(wanted.documents)))
        try:
            found = await self._pictured(pictures, model)
        except ImageError as error:
            raise of_tokens.of_document(error) from None
        found |= zip(places, plain(texts), strict=True)
        items = [Item(asked), *(found[place] for place in range(len(wanted.documents)))]
        if wanted.scoring is Scoring.MAXSIM:
            of_tokens.check_size(items, param="documents")
        return items

    async def _ids(self, wanted: Embedding, model: Use) -> list[TokenIds]:
        read = partial(self._reader.read, wanted, model.embedder)
        with self.timed("tokenize"):
            return await self.run(read, short=_are_short(wanted.inputs))

    async def _pooled(self, model: Use, items: Sequence[Item]) -> Floats:
        if not self.cache.is_used:
            return await self._scheduler.pool(model.model, items, task=model.task)
        identity = model.embedder.identity
        known = [self.cache.get(identity, one) for one in items]
        missing = [index for index, row in enumerate(known) if row is None]
        self._metrics.cache_hits.inc(len(items) - len(missing))
        if not missing:
            return np.stack([row for row in known if row is not None])
        fresh = await self._scheduler.pool(model.model, [items[index] for index in missing], task=model.task)
        for index, row in zip(missing, fresh, strict=True):
            known[index] = row
            self.cache.put(identity, items[index], row)
        return fresh if len(missing) == len(items) else np.stack([row for row in known if row is not None])

    async def _states(self, model: Use, items: Sequence[Item]) -> Sequence[Floats]:
        of_tokens.check_size(items, param="inputs")
        return await self._scheduler.run(model.model, items, task=model.task, make=as_they_are)

    async def _tokens(self, model: Use, items: Sequence[Item]) -> Sequence[Floats]:
        of_tokens.check_head(model.embedder, param="return_multivector")
        of_tokens.check_size(items, param="input")
        make = model.embedder.projector.project
        return await self._scheduler.run(model.model, items, task=model.task, make=make)

    async def chunks(self, wanted: Embedding, model: Use) -> tuple[Sequence[Floats] | Floats, Sequence[TokenIds]]:
        """Late chunking: B inputs as one text -> (B, D), and the one text's ids."""
        cut = partial(of_tokens.chunked, wanted.inputs, model.embedder, role=wanted.target.role or Role.QUERY)
        with self.timed("tokenize"):
            found = await self.run(cut, short=_are_short(wanted.inputs))
        make = model.embedder.chunk_pool(found.indices)
        with self.span(COMPUTE):
            [rows] = await self._scheduler.run(model.model, plain([found.ids]), task=model.task, make=make)
        return rows, [found.ids]


def _are_short(inputs: Inputs) -> bool:
    return are_texts(inputs) and is_short(inputs)


def is_short(texts: Sequence[str]) -> bool:
    """True for texts that tokenize in about a millisecond."""
    return sum(map(len, texts)) < SHORT_CHARACTERS
