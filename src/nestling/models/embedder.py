"""Text to vector, the only place: prefix -> tokens -> engine -> normalise -> truncate -> normalise.

Does not know where files come from (`store`) nor how they are run (`engine`). A vector depends on the text, the
model's file and the prompt, never on the other texts of the call. What cannot be embedded is an error that names the
text; nothing is cut unless asked.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nestling import vectors
from nestling.engine.adapted import OneAdapter
from nestling.engine.lora import beside
from nestling.engine.protocol import POOLS, Engine, TokenIds
from nestling.engine.registry import EngineName, load_adapted, load_engine
from nestling.errors import FileFormatError, TextError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.formats.multivector_head import Projector, is_head
from nestling.inputs import late_chunking
from nestling.inputs.late_chunking import ChunkedIds, Chunks, Cut, Places, Span
from nestling.inputs.tokenizer import Tokenizer, check_text
from nestling.models import families, local
from nestling.models.reranking import Ranked, Scoring, check_top_n, ranked, token_scores, vector_scores
from nestling.spec import BASE_FIELD, ModelSpec, Role, Task
from nestling.vectors import Floats

RERANKED_TEXTS = 256
"""Candidates whose token vectors are held at once."""


class Embedder:
    """One task model, loaded. Safe to call from several threads; calls are served one after another."""

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer, engine: Engine, *, path: Path | None = None) -> None:
        self.spec, self.tokenizer, self.engine, self.path = spec, tokenizer, engine, path
        self._by_task: dict[Task, Embedder] = {spec.task: self}

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
        if spec is None and BASE_FIELD in file.metadata:
            return cls._with_adapters(file, name, threads, profile=profile)
        found = spec_of(file, spec)
        loaded = load_engine(file, name=name, threads=threads, pooling=found.pooling, profile=profile)
        return cls(found, Tokenizer.from_gguf(file), loaded, path=file.path)

    @classmethod
    def _with_adapters(cls, file: GGUFFile, name: EngineName, threads: int | None, *, profile: bool) -> Self:
        found, tokenizer = beside(file), Tokenizer.from_gguf(file)
        pooling = found[0].spec.pooling
        shared = load_adapted(file, found, name=name, threads=threads, pooling=pooling, profile=profile)
        every = [cls(one.spec, tokenizer, OneAdapter(shared, place), path=file.path) for place, one in enumerate(found)]
        for one in every:
            one._by_task = {other.spec.task: other for other in every}
        return next(one for one in every if one.spec.task is Task.RETRIEVAL)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that this model in memory is for: one, or with adapters all."""
        return tuple(self._by_task)

    def for_task(self, task: str) -> "Embedder":
        """The same model in memory for another of its tasks; a UsageError names those that it has."""
        found = self._by_task.get(Task.parse(task))
        if found is None:
            raise UsageError(f"task={task!r}, but {self.path or 'this model'} is for {self.spec.task}", param="task")
        return found

    def pool_mixed(self, ids: Sequence[TokenIds], tasks: Sequence[Task]) -> Floats:
        """Pool texts of several tasks in one batch: B arrays of ids, each one's task -> (B, D), not normalised."""
        engines = [self.for_task(task).engine for task in tasks]
        first = engines[0]
        if not isinstance(first, OneAdapter):
            return first.pool(ids)  # one task alone: there is nothing to mix
        return first.shared.pool(ids, adapters=[one.place for one in engines if isinstance(one, OneAdapter)])

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
        size = self.spec.dimension(dimension)
        rows = self._checked_ids(ids)
        if not rows:
            return np.empty((0, size), np.float32)
        return vectors.finish(self.engine.pool(rows), size)

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
        found = {index: project(states) for index, states in self.engine.token_states(rows)}
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
        [(_, states)] = self.engine.token_states([ids])
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


def specs_of(file: GGUFFile, given: ModelSpec | None = None) -> list[ModelSpec]:
    """As `spec_of`; of a base, what each of its adapters beside it is for."""
    if given is None and BASE_FIELD in file.metadata:
        return [one.spec for one in beside(file)]
    return [spec_of(file, given)]


def _text(file: GGUFFile, key: str) -> str:
    return str(file.metadata[key].value) if key in file.metadata else ""


def spec_of(file: GGUFFile, given: ModelSpec | None = None) -> ModelSpec:
    """What the file is for: as it says itself, as `given`, or as its published name, shape and architecture tell.

    A file that says nothing and is not a known one is a FileFormatError with the reason.
    """
    if BASE_FIELD in file.metadata:
        raise FileFormatError(
            f"{file.path}: the base of all tasks, for none of them by itself: it runs with its adapters beside it"
            " (nestling embed, nestling serve), and takes no --spec"
        )
    if _text(file, "general.type") == "adapter":
        raise FileFormatError(
            f"{file.path}: an adapter, not a model: name the base beside it, whose name has -text-base-"
        )
    if is_head(file):
        raise FileFormatError(f"{file.path}: a multi-vector head, which goes beside a model; name the model's file")
    if given is not None:
        return families.with_spec(file, given)
    if "nestling.spec" not in file.metadata:
        return families.recognise(file)
    try:
        spec = ModelSpec.from_json(str(file.metadata["nestling.spec"].value))
    except FileFormatError as error:
        raise FileFormatError(f"{file.path}: {error}") from None
    width = file.value(f"{file.value('general.architecture')}.embedding_length")
    if spec.dimensions[-1] != width:
        raise FileFormatError(f"{file.path}: nestling.spec says {spec.dimensions[-1]} dimensions, the weights {width}")
    return spec
