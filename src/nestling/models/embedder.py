"""Text to vector, the only place: prefix -> tokens -> engine -> pool -> normalise -> truncate -> normalise.

Does not know where files come from (`local`) nor how they are run (`engine`). A vector depends on the text, the
model's file and the prompt, never on the other texts of the call. What cannot be embedded is an error that names the
text; nothing is cut unless asked.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from nestling.engine.lora import beside
from nestling.engine.protocol import POOLS, Item, TokenIds, plain
from nestling.engine.registry import EngineName, load_engine
from nestling.errors import InputError, TextError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.inputs import late_chunking
from nestling.inputs.image import ImageLike
from nestling.inputs.late_chunking import ChunkedIds, Chunks, Cut, Places, Span
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import local
from nestling.models.arguments import check_document, listed, whole_numbers
from nestling.models.compute import Make
from nestling.models.file_spec import spec_of
from nestling.models.item_embedder import ItemEmbedder
from nestling.models.reranking import Ranked, Scoring, check_top_n, ranked, token_scores, vector_scores
from nestling.models.vision import TowerOptions, mixed
from nestling.spec import BASE_FIELD, ModelSpec, Role, Task
from nestling.vectors import Floats

RERANKED_TEXTS = 256
"""Candidates whose token vectors are held at once."""


class Embedder(ItemEmbedder):
    """One task model, loaded. Safe to call from several threads; calls are served one after another."""

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        engine: str = "auto",
        threads: int | None = None,
        spec: ModelSpec | None = None,
        profile: bool = False,
        exact_images: bool = False,
    ) -> Self:
        """Load a model by reference: a path to a GGUF file, `name-task[:QUANT]` or a pulled `org/repo[:QUANT]`.

        `engine` is `auto`, `openvino`, `llamacpp` or `reference`; `threads` defaults to all usable processors. `spec`
        says what a file is for that neither says so itself nor is a known published one (`spec_of`). A reference that
        leads nowhere is a ModelNotFoundError, a file that is not sound a GGUFError. With `profile`, the OpenVINO engine
        counts where its time goes (`engine.profile()`).

        The vision tower beside the file is loaded with the first image; with `exact_images` it computes in float32.

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
        images, specs = TowerOptions(threads, exact=exact_images), specs if adapters else []
        return cls(found, Tokenizer.from_gguf(file), loaded, path=file.path, adapters=specs, images=images)

    def for_task(self, task: str) -> Self:
        """The same model in memory for another of its tasks; a UsageError names those that it has."""
        wanted = Task.parse(task)
        if wanted is self.spec.task:
            return self
        spec = next((one for one in self._adapters if one.task is wanted), None)
        if spec is None:
            raise UsageError(f"task={task!r}, but {self.path or 'this model'} is for {self.spec.task}", param="task")
        if wanted not in self._of_other_tasks:
            self._of_other_tasks[wanted] = type(self)(
                spec, self.tokenizer, self.engine, path=self.path, adapters=self._adapters, images=self._images
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
        rows = listed(texts, "texts", "a list of texts")
        for index, text in enumerate(rows):
            check_document(text, index)
        ids = self.tokenizer.encode([prefix + text for text in rows])
        return [self._fitted(self.tokenizer.close(one), index, truncate=truncate) for index, one in enumerate(ids)]

    def embed_ids(self, ids: Sequence[TokenIds], *, dimension: int | None = None) -> Floats:
        """Embed token ids as they are, prefix and all: -> (B, dimension) float32, unit rows.

        No ids, more than `spec.max_tokens` or ids outside the vocabulary are a TextError.
        """
        return self.embed(plain(self._checked_ids(ids)), dimension=dimension)

    def encode_tokens(
        self, texts: Sequence[str], *, prompt_name: str = "query", truncate: bool = False
    ) -> list[Floats]:
        """Multi-vectors of texts: -> B arrays of (tokens, width) float32, unit rows, a row for every token.

        The prefix's tokens are among them, as in the original. Parameters and errors are those of `encode`.
        """
        return self.embed_tokens(self.tokenize(texts, prompt_name=prompt_name, truncate=truncate))

    def embed_tokens(self, ids: Sequence[TokenIds]) -> list[Floats]:
        """Multi-vectors of token ids as they are: -> B arrays of (T, width) float32, unit rows. Errors: `embed_ids`."""
        return self.multivectors(plain(self._checked_ids(ids)))

    def encode_image(
        self, images: Sequence[ImageLike], *, truncate_dim: int | None = None, max_pixels: int | None = None
    ) -> Floats:
        """Embed images: -> (B, dim) float32, unit rows in the order of `images`, comparable with those of texts.

        An image is a path, a file's bytes, a data URI, a PIL image or a uint8 array; at most `max_pixels` of it are
        looked at (602,112 by default). What is no image, is damaged or over a limit is an ImageError; a model without a
        vision tower a UsageError.
        """
        size = self.spec.dimension(truncate_dim)
        groups = [self.embed(items, dimension=size) for items in self._image_items(images, max_pixels)]
        return np.concatenate([np.empty((0, size), np.float32), *groups])

    def encode_image_tokens(self, images: Sequence[ImageLike], *, max_pixels: int | None = None) -> list[Floats]:
        """Multi-vectors of images: -> B arrays of (tokens, width) float32, unit rows; the prompt's are among them."""
        return [rows for items in self._image_items(images, max_pixels) for rows in self.multivectors(items)]

    def _image_items(self, images: Sequence[ImageLike], max_pixels: int | None) -> Iterator[list[Item]]:
        values = listed(images, "images", "a list of images")
        return self.vision.grouped(values, max_pixels=max_pixels)

    def items(self, inputs: Sequence[object], *, prompt_name: str = "query", truncate: bool = False) -> list[Item]:
        """Texts and images, mixed, as items for `embed`: a str is a text, a Path, bytes and so on an image as above."""
        values = listed(inputs, "inputs", "a list of texts and images")
        tokenize = partial(self.tokenize, prompt_name=prompt_name, truncate=truncate)
        return mixed(values, tokenize=tokenize, vision=lambda: self.vision)

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
        return Chunks(found.spans, found.counts, self.finish(self.pool_chunks(found.ids, found.places), size))

    def chunk(self, document: str, cut: Cut, *, prompt_name: str = "passage") -> ChunkedIds:
        """The tokens of a document, prefix and all, and which of them each chunk pools; errors as `encode_chunks`."""
        check_document(document, 0)
        prefix = self.spec.prefix(Role.parse(prompt_name))
        return late_chunking.chunk(document, cut, tokenizer=self.tokenizer, prefix=prefix, limit=self.spec.max_tokens)

    def pool_chunks(self, ids: TokenIds, places: Sequence[Places]) -> Floats:
        """Pool one text's states chunk by chunk: (T,) ids, C arrays of places -> (C, D), lengths not normalised."""
        [(_, [rows])] = self.run([Item(ids)], self.chunk_pool(places))
        return rows

    def chunk_pool(self, places: Sequence[Places]) -> Make:
        """What pools the hidden states of a document chunk by chunk: C arrays of places; (T, D) -> (C, D)."""
        pool = POOLS[self.spec.pooling]
        return lambda states: np.concatenate([pool(states[mine], np.array([len(mine)])) for mine in places])

    def rerank(
        self,
        query: str | ImageLike,
        documents: Sequence[str | ImageLike],
        *,
        top_n: int | None = None,
        scoring: str = Scoring.MAXSIM,
        truncate: bool = False,
    ) -> list[Ranked]:
        """Order texts and images by nearness to a query: -> the best `top_n` (all by default), best first.

        `scoring` is `maxsim`, over the vectors of all tokens (a token's nearest counterpart, averaged over the query's
        tokens), or `cosine` of one vector each. Texts are refused or cut as in `encode`; without a multi-vector head
        `maxsim` is a UsageError. A str is a text; `items` says what images are.
        """
        way, most = Scoring.parse(scoring), check_top_n(top_n)
        values = listed(documents, "documents", "a list of texts")
        items = self.items(values, prompt_name=Role.PASSAGE, truncate=truncate)
        try:
            asked = self.items([query], prompt_name=Role.QUERY, truncate=truncate)
        except InputError as error:
            raise UsageError(f"query: {error.reason}", param="query") from None
        if way is Scoring.COSINE:
            scores = vector_scores(self.embed(asked)[0], self.embed(items))
        else:
            wanted = self.multivectors(asked)[0]
            groups = (items[start : start + RERANKED_TEXTS] for start in range(0, len(items), RERANKED_TEXTS))
            scores = np.concatenate([np.empty(0), *(token_scores(wanted, self.multivectors(one)) for one in groups)])
        return ranked(scores, most)

    def _fitted(self, ids: TokenIds, index: int, *, truncate: bool) -> TokenIds:
        limit = self.spec.max_tokens
        if len(ids) > limit and not truncate:
            raise TextError(f"{len(ids)} tokens, this model takes {limit}; truncate=True cuts the text", index=index)
        return self.tokenizer.cut(ids, limit)

    def _checked_ids(self, ids: Sequence[TokenIds]) -> list[TokenIds]:
        rows = [whole_numbers(one, index) for index, one in enumerate(listed(ids, "ids", "a list of token ids"))]
        for index, one in enumerate(rows):
            self._check_ids(one, index)
        return [one.astype(np.int32, copy=False) for one in rows]
