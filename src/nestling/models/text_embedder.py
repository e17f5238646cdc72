"""Text to vector: prefix -> tokens -> engine -> pool -> normalise -> truncate -> normalise. The only such path.

A vector depends on the text, the model's file and the prompt, never on the other texts of the call. A text that cannot
be embedded is a TextError with its index; nothing is truncated unless asked.
"""

from collections.abc import Sequence

import numpy as np

from nestling.engine.protocol import TokenIds, plain
from nestling.inputs import late_chunking
from nestling.inputs.late_chunking import ChunkedIds, Chunks, Cut, Span
from nestling.models.arguments import check_document, listed, token_ids
from nestling.models.item_embedder import ItemEmbedder
from nestling.spec import DEFAULT_ROLE, Role
from nestling.vectors import Floats


class TextEmbedder(ItemEmbedder):
    """One loaded task model, for texts, token ids and chunks of documents."""

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str = DEFAULT_ROLE,
        truncate_dim: int | None = None,
        truncate: bool = False,
    ) -> Floats:
        """Embed texts.

        Args:
            texts: B strings.
            prompt_name: the role, which chooses the prefix: `query`, `passage` (alias `document`), `raw` for none.
            truncate_dim: one of the trained vector sizes (`spec.dimensions`); the full width by default.
            truncate: truncate texts of more than `spec.max_tokens` tokens on the right; an error by default.

        Returns:
            (B, dim) float32, unit rows in the order of `texts`; (0, dim) for an empty list.

        Raises:
            UsageError: An untrained size, an unknown role, or a single string instead of a list.
            TextError: A text is empty, too long or not a string; `index` is its index.

        Example:
            vectors = model.encode(["ls lists files."], prompt_name="passage", truncate_dim=128)
        """
        dimension = self.spec.dimension(truncate_dim)
        return self.embed_ids(self.tokenize(texts, prompt_name=prompt_name, truncate=truncate), dimension=dimension)

    def encode_query(self, texts: Sequence[str], *, truncate_dim: int | None = None, truncate: bool = False) -> Floats:
        """Embed queries: `encode` with the role `query`.

        Args:
            texts: B strings.
            truncate_dim: as in `encode`.
            truncate: as in `encode`.

        Returns:
            (B, dim) float32, unit rows in the order of `texts`.

        Raises:
            UsageError: As in `encode`.
            TextError: As in `encode`.

        Example:
            vectors = model.encode_query(["How do I open a socket?"])
        """
        return self.encode(texts, prompt_name=Role.QUERY, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, texts: Sequence[str], *, truncate_dim: int | None = None, truncate: bool = False
    ) -> Floats:
        """Embed documents: `encode` with the role `passage`.

        Args:
            texts: B strings.
            truncate_dim: as in `encode`.
            truncate: as in `encode`.

        Returns:
            (B, dim) float32, unit rows in the order of `texts`.

        Raises:
            UsageError: As in `encode`.
            TextError: As in `encode`.

        Example:
            scores = model.encode_query(["files"]) @ model.encode_document(["ls lists files."]).T  # cosines
        """
        return self.encode(texts, prompt_name=Role.PASSAGE, truncate_dim=truncate_dim, truncate=truncate)

    def tokenize(
        self, texts: Sequence[str], *, prompt_name: str = DEFAULT_ROLE, truncate: bool = False
    ) -> list[TokenIds]:
        """Add the prefix and tokenize.

        Args:
            texts: B strings.
            prompt_name: as in `encode`.
            truncate: as in `encode`.

        Returns:
            B arrays of (T,) int32 token ids, each of 1 to `spec.max_tokens`.

        Raises:
            UsageError: As in `encode`.
            TextError: As in `encode`.

        Example:
            counts = [len(ids) for ids in model.tokenize(["ls lists files."], prompt_name="passage")]
        """
        prefix = self.spec.prefix(Role.parse(prompt_name))
        rows = listed(texts, "texts", "a list of strings")
        for index, text in enumerate(rows):
            check_document(text, index)
        ids = self.tokenizer.encode([prefix + text for text in rows])
        return [self._fitted(self.tokenizer.close(one), index, truncate=truncate) for index, one in enumerate(ids)]

    def embed_ids(self, ids: Sequence[TokenIds], *, dimension: int | None = None) -> Floats:
        """Embed token ids, which already contain the prefix.

        Args:
            ids: B arrays or lists of token ids, as `tokenize` returns them.
            dimension: one of the trained vector sizes; the full width by default.

        Returns:
            (B, dimension) float32, unit rows.

        Raises:
            UsageError: An untrained size, or no list.
            TextError: No ids, more than `spec.max_tokens`, or ids outside the vocabulary; `index` says which text.

        Example:
            vectors = model.embed_ids(model.tokenize(["ls lists files."]))
        """
        return self.embed(plain(self._checked_ids(ids)), dimension=dimension)

    def encode_tokens(
        self, texts: Sequence[str], *, prompt_name: str = DEFAULT_ROLE, truncate: bool = False
    ) -> list[Floats]:
        """Multi-vectors of texts: a vector for every token, including those of the prefix, as in the original model.

        Args:
            texts: B strings.
            prompt_name: as in `encode`.
            truncate: as in `encode`.

        Returns:
            B arrays of (T, width) float32, unit rows.

        Raises:
            UsageError: As in `encode`, or the model has no multi-vector head.
            TextError: As in `encode`.

        Example:
            tokens = model.encode_tokens(["ls lists files."], prompt_name="passage")[0]
        """
        return self.embed_tokens(self.tokenize(texts, prompt_name=prompt_name, truncate=truncate))

    def embed_tokens(self, ids: Sequence[TokenIds]) -> list[Floats]:
        """Multi-vectors of token ids, which already contain the prefix.

        Args:
            ids: B arrays or lists of token ids, as `tokenize` returns them.

        Returns:
            B arrays of (T, width) float32, unit rows.

        Raises:
            UsageError: The model has no multi-vector head.
            TextError: As in `embed_ids`.

        Example:
            tokens = model.embed_tokens(model.tokenize(["ls lists files."]))[0]
        """
        return self.multivectors(plain(self._checked_ids(ids)))

    def encode_chunks(
        self,
        document: str,
        *,
        spans: Sequence[Span] | None = None,
        chunk_tokens: int | None = None,
        overlap: int = 0,
        prompt_name: str = Role.PASSAGE,
        truncate_dim: int | None = None,
    ) -> Chunks:
        """Late chunking: run the document once, then pool each chunk's token states. Chunks know their context.

        Args:
            document: one string of at most `spec.max_tokens` tokens; it is never truncated.
            spans: the chunks, ascending [start, end) in characters. Give either this or `chunk_tokens`.
            chunk_tokens: split at sentence ends into chunks of at most so many tokens (extra `chunks`).
            overlap: the most tokens that neighbouring chunks may share.
            prompt_name: as in `encode`.
            truncate_dim: as in `encode`.

        Returns:
            `Chunks`. A single chunk over the whole document has the vector of `encode`.

        Raises:
            UsageError: Invalid spans, or both or neither of `spans` and `chunk_tokens`.
            TextError: The document is empty or too long.

        Example:
            chunks = model.encode_chunks("Ada wrote notes. She published them.", spans=[(0, 16), (16, 36)])
        """
        size = self.spec.dimension(truncate_dim)
        found = self.chunk(document, Cut(spans, chunk_tokens, overlap), prompt_name=prompt_name)
        return Chunks(found.spans, found.counts, self.finish(self.pool_chunks(found.ids, found.indices), size))

    def chunk(self, document: str, cut: Cut, *, prompt_name: str = Role.PASSAGE) -> ChunkedIds:
        """Internal. A document's token ids with the prefix, and the tokens of each chunk; errors as `encode_chunks`."""
        check_document(document, 0)
        prefix = self.spec.prefix(Role.parse(prompt_name))
        return late_chunking.chunk(document, cut, tokenizer=self.tokenizer, prefix=prefix, limit=self.spec.max_tokens)

    def _checked_ids(self, ids: Sequence[TokenIds]) -> list[TokenIds]:
        rows = [token_ids(one, index) for index, one in enumerate(listed(ids, "ids", "a list of token ids"))]
        for index, one in enumerate(rows):
            self._check_ids(one, index)
        return [one.astype(np.int32, copy=False) for one in rows]
