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

from nestling.engine.lora import load_adapters
from nestling.engine.protocol import Item, TokenIds, plain
from nestling.engine.registry import EngineName, load_engine
from nestling.errors import InputError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.inputs import late_chunking
from nestling.inputs.image import ImageLike
from nestling.inputs.late_chunking import ChunkedIds, Chunks, Cut, Span
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import content, local
from nestling.models.arguments import check_document, listed, whole_numbers
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
        device: str | None = None,
        threads: int | None = None,
        spec: ModelSpec | None = None,
        profile: bool = False,
        exact_images: bool = False,
    ) -> Self:
        """Load a model, and with a base (`name-base[:QUANT]`) the adapters of all tasks: see `for_task`.

        Args:
            reference: a path to a GGUF file, `name-task[:QUANT]` or a pulled `org/repo[:QUANT]`.
            engine: `auto`, `openvino`, `llamacpp`, `torch` or `reference`.
            device: `cuda[:N]`, `xpu[:N]`, `mps` or `cpu`; by default a GPU for torch, the processor for the others.
            threads: how many compute; all usable processors by default.
            spec: what a file is for that neither says so itself nor is a known published one (see `read_spec`).
            profile: the OpenVINO and torch engines count where their time goes (`engine.profile()`).
            exact_images: the vision tower, which is loaded with the first image, computes in float32.

        Raises:
            ModelNotFoundError: The reference leads to no file.
            GGUFError: The file is not sound.
            FileFormatError: Its bytes are not those of its card or of the hub.

        Example:
            model = nestling.Embedder.load("starter-retrieval:Q8_0")
        """
        name = EngineName.parse(engine)
        file = GGUFFile.open(content.check(local.resolve(reference)))
        adapters = load_adapters(file) if spec is None and BASE_FIELD in file.metadata else []
        for one in adapters:
            content.check(one.file.path)
        specs = [one.spec for one in adapters] or [spec_of(file, spec)]
        loaded = load_engine(
            file,
            name=name,
            device=device,
            threads=threads,
            pooling=specs[0].pooling,
            adapters=adapters,
            profile=profile,
        )
        found = next((one for one in specs if one.task is Task.RETRIEVAL), specs[0])
        images, specs = TowerOptions(threads, exact=exact_images), specs if adapters else []
        return cls(found, Tokenizer.from_gguf(file), loaded, path=file.path, adapters=specs, images=images)

    def for_task(self, task: str) -> Self:
        """The same model in memory for another of its tasks.

        Args:
            task: `retrieval`, `text-matching` or `code`.

        Raises:
            UsageError: The model is not for this task; only a base with adapters has more than one.
        """
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
        """Embed texts.

        Args:
            texts: B texts.
            prompt_name: the role that chooses the prefix: `query`, `passage` (or `document`) or `raw` for none.
            truncate_dim: one of the trained sizes, in numbers; the full width by default.
            truncate: cut a text of more than `spec.max_tokens` tokens on the right.

        Returns:
            (B, dim) float32, unit rows in the order of `texts`; (0, dim) for no texts.

        Raises:
            UsageError: A size that was not trained, or an unknown role.
            TextError: A text is empty, or too long and not to be cut; `index` says which.

        Example:
            vectors = model.encode(["ls lists files."], prompt_name="passage", truncate_dim=128)
        """
        dimension = self.spec.dimension(truncate_dim)
        return self.embed_ids(self.tokenize(texts, prompt_name=prompt_name, truncate=truncate), dimension=dimension)

    def encode_query(self, texts: Sequence[str], *, truncate_dim: int | None = None, truncate: bool = False) -> Floats:
        """Embed what is searched with: `encode` with the role `query`."""
        return self.encode(texts, prompt_name=Role.QUERY, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, texts: Sequence[str], *, truncate_dim: int | None = None, truncate: bool = False
    ) -> Floats:
        """Embed what is searched in: `encode` with the role `passage`."""
        return self.encode(texts, prompt_name=Role.PASSAGE, truncate_dim=truncate_dim, truncate=truncate)

    def tokenize(self, texts: Sequence[str], *, prompt_name: str = "query", truncate: bool = False) -> list[TokenIds]:
        """Prefix and tokenize: B texts -> B arrays of ids, each of 1 to `spec.max_tokens`."""
        prefix = self.spec.prefix(Role.parse(prompt_name))
        rows = listed(texts, "texts", "a list of strings")
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
        """Multi-vectors of texts, a vector for every token, those of the prefix among them, as in the original.

        Parameters and errors are those of `encode`; a model without a multi-vector head is a UsageError.

        Returns:
            B arrays of (tokens, width) float32, unit rows.
        """
        return self.embed_tokens(self.tokenize(texts, prompt_name=prompt_name, truncate=truncate))

    def embed_tokens(self, ids: Sequence[TokenIds]) -> list[Floats]:
        """Multi-vectors of token ids as they are: -> B arrays of (T, width) float32, unit rows. Errors: `embed_ids`."""
        return self.multivectors(plain(self._checked_ids(ids)))

    def encode_image(
        self, images: Sequence[ImageLike], *, truncate_dim: int | None = None, max_pixels: int | None = None
    ) -> Floats:
        """Embed images; their vectors are comparable with those of texts.

        Args:
            images: B of these: a path, a file's bytes, a data URI, a PIL image or a uint8 array.
            truncate_dim: as in `encode`.
            max_pixels: how many pixels of each are looked at, 602,112 by default.

        Returns:
            (B, dim) float32, unit rows in the order of `images`.

        Raises:
            ImageError: What is no image, is damaged or over a limit; `index` says which.
            UsageError: The model has no vision tower.
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

        Args:
            document: one text of at most `spec.max_tokens` tokens; it is never cut.
            spans: the chunks, [start, end) in characters and in order; or else
            chunk_tokens: cut where sentences end, into at most so many tokens each (the extra `chunks`).
            overlap: how many tokens neighbours may share.
            prompt_name: as in `encode`.
            truncate_dim: as in `encode`.

        Returns:
            `Chunks`; a chunk that covers everything has the vector of `encode`.

        Raises:
            UsageError: Spans that are not such, or both ways of cutting.
            TextError: The document is empty or too long.
        """
        size = self.spec.dimension(truncate_dim)
        found = self.chunk(document, Cut(spans, chunk_tokens, overlap), prompt_name=prompt_name)
        return Chunks(found.spans, found.counts, self.finish(self.pool_chunks(found.ids, found.places), size))

    def chunk(self, document: str, cut: Cut, *, prompt_name: str = "passage") -> ChunkedIds:
        """The tokens of a document, prefix and all, and which of them each chunk pools; errors as `encode_chunks`."""
        check_document(document, 0)
        prefix = self.spec.prefix(Role.parse(prompt_name))
        return late_chunking.chunk(document, cut, tokenizer=self.tokenizer, prefix=prefix, limit=self.spec.max_tokens)

    def rerank(
        self,
        query: str | ImageLike,
        documents: Sequence[str | ImageLike],
        *,
        top_n: int | None = None,
        scoring: str = Scoring.MAXSIM,
        truncate: bool = False,
    ) -> list[Ranked]:
        """Order texts and images by nearness to a query. A str is a text; `items` says what images are.

        Args:
            query: a text, which gets the prefix of a query, or an image.
            documents: the candidates; texts get the prefix of a passage.
            top_n: how many to answer with, all by default.
            scoring: `maxsim`, a token's best match averaged over the query's, or `cosine` of one vector each.
            truncate: as in `encode`.

        Returns:
            The best `top_n`, best first, with their places in `documents`.

        Raises:
            UsageError: The query is empty, or `maxsim` without a multi-vector head.
            InputError: A document that `encode` or `encode_image` would refuse.

        Example:
            best = model.rerank("How do I open a socket?", ["ls lists files.", "socket(2)"], top_n=1)[0].index
        """
        way, most = Scoring.parse(scoring), check_top_n(top_n)
        values = listed(documents, "documents", "a list of strings")
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

    def _checked_ids(self, ids: Sequence[TokenIds]) -> list[TokenIds]:
        rows = [whole_numbers(one, index) for index, one in enumerate(listed(ids, "ids", "a list of token ids"))]
        for index, one in enumerate(rows):
            self._check_ids(one, index)
        return [one.astype(np.int32, copy=False) for one in rows]
