"""Text to vector, the only place: prefix -> tokens -> engine -> normalise -> truncate -> normalise.

Does not know where files come from (`store`) nor how they are run (`engine`). A vector depends on the text, the
model's file and the prompt, never on the other texts of the call. What cannot be embedded is an error that names the
text; nothing is cut unless asked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from nestling import recognise, store, vectors
from nestling.engine.base import Engine, TokenIds
from nestling.engine.loading import EngineName, load_engine
from nestling.errors import FileFormatError, TextError, UsageError
from nestling.gguf_io import GGUFFile
from nestling.spec import ModelSpec, Role
from nestling.tokenizer import Tokenizer
from nestling.vectors import Floats


class Embedder:
    """One task model, loaded. Safe to call from several threads; calls are served one after another."""

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer, engine: Engine) -> None:
        self.spec, self.tokenizer, self.engine = spec, tokenizer, engine

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        engine: str = "auto",
        threads: int | None = None,
        spec: ModelSpec | None = None,
    ) -> Self:
        """Load a model by reference: a path to a GGUF file, `name-task[:QUANT]` or a pulled `org/repo[:QUANT]`.

        `engine` is `auto`, `openvino`, `llamacpp` or `reference`; `threads` defaults to all usable processors. `spec`
        says what a file is for that neither says so itself nor is a known published one (`spec_of`). A reference that
        leads nowhere is a ModelNotFoundError, a file that is not sound a GGUFError.
        """
        name = EngineName.parse(engine)
        file = GGUFFile.open(store.resolve(reference))
        found = spec_of(file, spec)
        loaded = load_engine(file, name=name, threads=threads, pooling=found.pooling)
        return cls(found, Tokenizer.from_gguf(file), loaded)

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
        if isinstance(texts, str):
            raise UsageError("texts: a list of texts is expected, this is a single one", param="input")
        prefix = self.spec.prefix(Role.parse(prompt_name))
        rows = list(texts)  # also what can be gone through only once
        for index, text in enumerate(rows):
            _check_text(text, index)
        ids = self.tokenizer.encode([prefix + text for text in rows])
        return [self._fitted(one, index, truncate=truncate) for index, one in enumerate(ids)]

    def embed_ids(self, ids: Sequence[TokenIds], *, dimension: int | None = None) -> Floats:
        """Embed token ids as they are, prefix and all: -> (B, dimension) float32, unit rows.

        No ids, more than `spec.max_tokens` or ids outside the vocabulary are a TextError.
        """
        size = self.spec.dimension(dimension)
        for index, one in enumerate(ids):
            self._check_ids(one, index)
        if not len(ids):
            return np.empty((0, size), np.float32)
        return vectors.finish(self.engine.pool(ids), size)

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()

    def _fitted(self, ids: TokenIds, index: int, *, truncate: bool) -> TokenIds:
        limit = self.spec.max_tokens
        if len(ids) > limit and not truncate:
            raise TextError(f"{len(ids)} tokens, this model takes {limit}; truncate=True cuts the text", index=index)
        return ids[:limit]

    def _check_ids(self, ids: TokenIds, index: int) -> None:
        if not 1 <= len(ids) <= self.spec.max_tokens:
            raise TextError(f"{len(ids)} tokens, this model takes 1 to {self.spec.max_tokens}", index=index)
        if ids.min() < 0 or ids.max() >= self.tokenizer.size:
            raise TextError(f"token ids go from 0 to {self.tokenizer.size - 1}", index=index)


def _check_text(text: object, index: int) -> None:
    if not isinstance(text, str):
        raise TextError(f"a text is expected, this is {type(text).__name__}", index=index)
    if not text.strip():
        raise TextError("the text is empty", index=index)


def spec_of(file: GGUFFile, given: ModelSpec | None = None) -> ModelSpec:
    """What the file is for: as it says itself, as `given`, or as its published name, shape and architecture tell.

    A file that says nothing and is not a known one is a FileFormatError with the reason.
    """
    if given is not None:
        return recognise.with_spec(file, given)
    if "nestling.spec" not in file.metadata:
        return recognise.recognise(file)
    try:
        spec = ModelSpec.from_json(str(file.metadata["nestling.spec"].value))
    except FileFormatError as error:
        raise FileFormatError(f"{file.path}: {error}") from None
    width = file.value(f"{file.value('general.architecture')}.embedding_length")
    if spec.dimensions[-1] != width:
        raise FileFormatError(f"{file.path}: nestling.spec says {spec.dimensions[-1]} dimensions, the weights {width}")
    return spec
