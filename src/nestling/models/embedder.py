"""Text to vector, the only place: prefix -> tokens -> engine -> pool -> normalise -> truncate -> normalise.

Does not know where files come from (`local`) nor how they are run (`engine`). A vector depends on the text, the
model's file and the prompt, never on the other texts of the call. What cannot be embedded is an error that names the
text; nothing is cut unless asked.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nestling import vectors
from nestling.engine import batching
from nestling.engine.lora import beside
from nestling.engine.protocol import POOLS, Engine, Item, TokenIds, plain
from nestling.engine.registry import EngineName, load_engine
from nestling.errors import TextError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.formats.multivector_head import Projector
from nestling.inputs import late_chunking
from nestling.inputs.late_chunking import ChunkedIds, Chunks, Cut, Places, Span
from nestling.inputs.tokenizer import Tokenizer, check_text
from nestling.models import local
from nestling.models.file_spec import spec_of
from nestling.models.reranking import Ranked, Scoring, check_top_n, ranked, token_scores, vector_scores
from nestling.spec import BASE_FIELD, ModelSpec, Role, Task
from nestling.vectors import Floats

RERANKED_TEXTS = 256
"""Candidates whose token vectors are held at once."""


class Embedder:
    """One task model, loaded. Safe to call from several threads; calls are served one after another."""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        engine: Engine,
        *,
        path: Path | None = None,
        adapters: Sequence[ModelSpec] = (),
    ) -> None:
        """`adapters`: what each of the engine's LoRA adapters is for, in the engine's order; `spec` is one of them."""
        self.spec, self.tokenizer, self.engine, self.path = spec, tokenizer, engine, path
        self._adapters = tuple(adapters)
        self._of_other_tasks: dict[Task, Embedder] = {}

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        engine: str = "auto",
        threads: int | None = None,
        spec: ModelSpec | None = None,
        profile: bool = False,
    ) -> Self:
        """Load a model by reference: a path to a GGUF file, `name-task[:QUANT]` or a pulled `org/repo[:QUANT]`.

        `engine` is `auto`, `openvino`, `llamacpp` or `reference`; `threads` defaults to all usable processors. `spec`
        says what a file is for that neither says so itself nor is a known published one (`spec_of`). A reference that
        leads nowhere is a ModelNotFoundError, a file that is not sound a GGUFError. With `profile`, the OpenVINO engine
        counts where its time goes (`engine.profile()`).

        A base (`name-base[:QUANT]`) comes with the adapters of all tasks: see `for_task`. Here it is for retrieval.
        """
        name = EngineName.parse(engine)
        file = GGUFFile.open(local.resolve(reference))
        adapters = beside(file) if spec is None and BASE_FIELD in file.metadata else []
        specs = [one.spec for one in adapters] or [spec_of(file, spec)]
        loaded = load_engine(
            file, name=name, threads=threads, pooling=specs[0].pooling, adapters=adapters, profile=profile
        )
        found = next((one for one in specs if one.task is Task.RETRIEVAL), specs[0])
        return cls(found, Tokenizer.from_gguf(file), loaded, path=file.path, adapters=specs if adapters else ())

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that this model in memory is for: one, or with adapters all."""
        return tuple(one.task for one in self._adapters) or (self.spec.task,)

    def for_task(self, task: str) -> "Embedder":
        """The same model in memory for another of its tasks; a UsageError names those that it has."""
        wanted = Task.parse(task)
        if wanted is self.spec.task:
            return self
        spec = next((one for one in self._adapters if one.task is wanted), None)
        if spec is None:
            raise UsageError(f"task={task!r}, but {self.path or 'this model'} is for {self.spec.task}", param="task")
        if wanted not in self._of_other_tasks:
            self._of_other_tasks[wanted] = type(self)(
                spec, self.tokenizer, self.engine, path=self.path, adapters=self._adapters
            )
        return self._of_other_tasks[wanted]

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str = "query",
        truncate_dim: int | None = None,
        truncate: bool = False,
    ) -> Floats:
        """Embed texts: -> (B, dim) float32, unit rows in the order of `texts`; (0, dim) for no texts.

        `prompt_name` is `query`, `passage` (or `document`) or `raw`; `truncate_dim` one of the trained sizes, the
        full width by default. A text of more than `spec.max_tokens` tokens is a TextError unless `truncate`, which
        cuts it on the right; so is an empty one.
        """
        dimension = self.spec.dimension(truncate_dim)
        return self.embed_ids(self.tokenize(texts, prompt_name=prompt_name, truncate=truncate), dimension=dimension)

    def encode_query(self, texts: Sequence[str], *, truncate_dim: int | None = None, truncate: bool = False) -> Floats:
        """Embed what is searched with; see `encode`."""
        return self.encode(texts, prompt_name=Role.QUERY, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, texts: Sequence[str], *, truncate_dim: int | None = None, truncate: bool = False
    ) -> Floats:
        """Embed what is searched in; see `encode`."""
        return self.encode(texts, prompt_name=Role.PASSAGE, truncate_dim=truncate_dim, truncate=truncate)

    def tokenize(self, texts: Sequence[str], *, prompt_name: str = "query", truncate: bool = False) -> list[TokenIds]:
        """Prefix and tokenize: B texts -> B arrays of ids, each of 1 to `spec.max_tokens`."""
        prefix = self.spec.prefix(Role.parse(prompt_name))
        rows = _listed(texts, "texts", "a list of texts")
        for index, text in enumerate(rows):
            _check_text(text, index)
        ids = self.tokenizer.encode([prefix + text for text in rows])
        return [self._fitted(self.tokenizer.close(one), index, truncate=truncate) for index, one in enumerate(ids)]

    def embed_ids(self, ids: Sequence[TokenIds], *, dimension: int | None = None) -> Floats:
        """Embed token ids as they are, prefix and all: -> (B, dimension) float32, unit rows.

        No ids, more than `spec.max_tokens` or ids outside the vocabulary are a TextError.
        """
        return self.embed(plain(self._checked_ids(ids)), dimension=dimension)

    def embed(self, items: Sequence[Item], *, dimension: int | None = None) -> Floats:
        """Embed items: -> (B, dimension) float32, unit rows. Errors: as `embed_ids`."""
        size = self.spec.dimension(dimension)
        return vectors.finish(self.pool(items), size) if items else np.empty((0, size), np.float32)

    def embed_iter(self, items: Sequence[Item], *, dimension: int | None = None) -> Iterator[tuple[list[int], Floats]]:
        """The same a batch at a time, longest items first: yields (places of b items, (b, dimension) unit rows)."""
        size = self.spec.dimension(dimension)
        for places, pooled in self._pooled(items, ()):
            yield places, vectors.finish(pooled, size)

    def pool(self, items: Sequence[Item], *, tasks: Sequence[Task] = ()) -> Floats:
        """Pooled hidden states: B items (of this task, or each of its own of `tasks`) -> (B, D), not normalised."""
        rows = np.empty((len(items), self.spec.dimensions[-1]), np.float32)
        for places, pooled in self._pooled(items, tasks):
            rows[places] = pooled
        return rows

    def _pooled(self, items: Sequence[Item], tasks: Sequence[Task]) -> Iterator[tuple[list[int], Floats]]:
        for places, batch, adapters in self._batches(items, tasks):
            yield places, self.engine.pool(batch, adapters=adapters)

    def token_states(self, items: Sequence[Item], *, tasks: Sequence[Task] = ()) -> Iterator[tuple[int, Floats]]:
        """Every token's hidden state, a batch computed at a time: yields (place of the item, (T, D)), longest first."""
        for places, batch, adapters in self._batches(items, tasks):
            yield from zip(places, self.engine.token_states(batch, adapters=adapters), strict=True)

    def _batches(
        self, items: Sequence[Item], tasks: Sequence[Task]
    ) -> Iterator[tuple[list[int], list[Item], list[int]]]:
        """Plan, once, which items go through the engine together: yields their places, they, the adapter of each."""
        for index, item in enumerate(items):
            self._check_ids(item.ids, index)
        order = {one.task: place for place, one in enumerate(self._adapters)}
        wanted = tasks or [self.spec.task] * len(items)
        for places in batching.plan([len(item) for item in items], self.engine.token_budget):
            adapters = [order[wanted[place]] for place in places] if order else []
            yield places, [items[place] for place in places], adapters

    @cached_property
    def projector(self) -> Projector:
        """The multi-vector head, read from the file beside the model's when it is first wanted.

        UsageError when there is none, FileFormatError when it is unsound or of another model.
        """
        if self.path is None:
            raise UsageError("no multi-vector head: this model was not loaded from a file", param="return_multivector")
        path = local.projector_of(self.path, self.spec)
        projector = Projector.open(path)
        projector.check_fits(path, self.spec)
        return projector

    def encode_tokens(
        self, texts: Sequence[str], *, prompt_name: str = "query", truncate: bool = False
    ) -> list[Floats]:
        """Multi-vectors of texts: -> B arrays of (tokens, width) float32, unit rows, a row for every token.

        The prefix's tokens are among them, as in the original. Parameters and errors are those of `encode`.
        """
        return self.embed_tokens(self.tokenize(texts, prompt_name=prompt_name, truncate=truncate))

    def embed_tokens(self, ids: Sequence[TokenIds]) -> list[Floats]:
        """Multi-vectors of token ids as they are: -> B arrays of (T, width) float32, unit rows. Errors: `embed_ids`."""
        rows = self._checked_ids(ids)
        project = self.projector.project
        found = {index: project(states) for index, states in self.token_states(plain(rows))}
        return [found[index] for index in range(len(rows))]

    def encode_chunks(
        self,
        document: str,
        *,
        spans: Sequence[Span] | None = None,
        chunk_tokens: int | None = None,
        overlap: int = 0,
        prompt_name: str = "passage",
        truncate_dim: int | None = None,
    ) -> Chunks:
        """Late chunking: a vector for each chunk of a document, pooled from its tokens' states in the whole of it.

        Chunks are `spans`, [start, end) in characters and in order, or cut where sentences end, at most `chunk_tokens`
        tokens each. `overlap` is how many tokens neighbours may share. A chunk that covers everything has the vector
        of `encode`. Spans that are not such are a UsageError, a document of more than `spec.max_tokens` tokens, which
        is never cut, a TextError.
        """
        size = self.spec.dimension(truncate_dim)
        found = self.chunk(document, Cut(spans, chunk_tokens, overlap), prompt_name=prompt_name)
        return Chunks(found.spans, found.counts, vectors.finish(self.pool_chunks(found.ids, found.places), size))

    def chunk(self, document: str, cut: Cut, *, prompt_name: str = "passage") -> ChunkedIds:
        """The tokens of a document, prefix and all, and which of them each chunk pools; errors as `encode_chunks`."""
        _check_text(document, 0)
        prefix = self.spec.prefix(Role.parse(prompt_name))
        return late_chunking.chunk(document, cut, tokenizer=self.tokenizer, prefix=prefix, limit=self.spec.max_tokens)

    def pool_chunks(self, ids: TokenIds, places: Sequence[Places]) -> Floats:
        """Pool one text's states chunk by chunk: (T,) ids, C arrays of places -> (C, D), lengths not normalised."""
        pool = POOLS[self.spec.pooling]
        [(_, states)] = self.token_states([Item(ids)])
        return np.concatenate([pool(states[mine], np.array([len(mine)], np.int64)) for mine in places])

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        scoring: str = Scoring.MAXSIM,
        truncate: bool = False,
    ) -> list[Ranked]:
        """Order candidates by nearness to a query: -> the best `top_n` (all by default), best first.

        `scoring` is `maxsim`, over the vectors of all tokens (a token's nearest counterpart, averaged over the query's
        tokens), or `cosine` of one vector a text. Texts are refused or cut as in `encode`; without a multi-vector head
        `maxsim` is a UsageError.
        """
        way, most = Scoring.parse(scoring), check_top_n(top_n)
        ids = self.tokenize(
            _listed(documents, "documents", "a list of texts"), prompt_name=Role.PASSAGE, truncate=truncate
        )
        try:
            asked = self.tokenize([query], prompt_name=Role.QUERY, truncate=truncate)
        except TextError as error:
            raise UsageError(f"query: {error.reason}", param="query") from None
        if way is Scoring.COSINE:
            scores = vector_scores(self.embed_ids(asked)[0], self.embed_ids(ids))
        else:
            wanted = self.embed_tokens(asked)[0]
            groups = (ids[start : start + RERANKED_TEXTS] for start in range(0, len(ids), RERANKED_TEXTS))
            scores = np.concatenate([np.empty(0), *(token_scores(wanted, self.embed_tokens(one)) for one in groups)])
        return ranked(scores, most)

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()

    def _fitted(self, ids: TokenIds, index: int, *, truncate: bool) -> TokenIds:
        limit = self.spec.max_tokens
        if len(ids) > limit and not truncate:
            raise TextError(f"{len(ids)} tokens, this model takes {limit}; truncate=True cuts the text", index=index)
        return self.tokenizer.cut(ids, limit)

    def _checked_ids(self, ids: Sequence[TokenIds]) -> list[TokenIds]:
        rows = [_whole_numbers(one, index) for index, one in enumerate(_listed(ids, "ids", "a list of token ids"))]
        for index, one in enumerate(rows):
            self._check_ids(one, index)
        return [one.astype(np.int32, copy=False) for one in rows]

    def _check_ids(self, ids: NDArray[Any], index: int) -> None:
        if not 1 <= len(ids) <= self.spec.max_tokens:
            raise TextError(f"{len(ids)} tokens, this model takes 1 to {self.spec.max_tokens}", index=index)
        if ids.min() < 0 or ids.max() >= self.tokenizer.size:
            raise TextError(f"token ids go from 0 to {self.tokenizer.size - 1}", index=index)


def _listed(values: object, param: str, expected: str) -> list[Any]:
    """The values as a list; UsageError for what is none: null, a number, one text."""
    if isinstance(values, str | bytes | bytearray) or not isinstance(values, Iterable):
        kind = "None" if values is None else "a single text" if isinstance(values, str) else type(values).__name__
        raise UsageError(f"{param}: {expected} is expected, this is {kind}", param="input")
    return list(values)  # also of what can be gone through only once


def _whole_numbers(ids: object, index: int) -> NDArray[Any]:
    """Token ids as an array of any type of whole numbers; TextError for anything else."""
    try:
        found = np.asarray(ids)
    except ValueError:  # lists of unequal lengths
        found = np.empty((), object)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise TextError("a list of token ids, whole numbers, is expected", index=index)
    return found


def _check_text(text: object, index: int) -> None:
    if isinstance(text, str) and not text.strip():
        raise TextError("the text is empty", index=index)
    check_text(text, index)
