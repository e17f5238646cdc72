"""jina-embeddings-v4's own Python surface, for code written against the original: the same names, defaults and order.

Differences, all towards the documented behaviour: text-matching puts `Query: ` on both sides whatever way the task is
given, and an empty text is an error. Like the original, `encode_text` cuts texts to `max_length` tokens. Images are
refused, not ignored, and so are multi-vectors together with `truncate_dim`, which the original ignores.
"""

from collections.abc import Sequence
from typing import Self

from nestling.errors import UsageError
from nestling.models.embedder import Embedder
from nestling.models.local import ModelReference
from nestling.spec import Task
from nestling.vectors import Floats


class JinaEmbeddingsV4:
    """A family of three task models that loads each on its first use."""

    def __init__(self, family: str, *, quant: str | None, engine: str, threads: int | None) -> None:
        self._family, self._quant, self._engine, self._threads = family, quant, engine, threads
        self._loaded: dict[Task, Embedder] = {}
        self.task: str | None = None

    @classmethod
    def from_pretrained(
        cls, family: str, *, quant: str | None = None, engine: str = "auto", threads: int | None = None
    ) -> Self:
        """A family by name (`starter`, `jina-v4`), in one file type (the store's default if None)."""
        return cls(family, quant=quant, engine=engine, threads=threads)

    def encode_text(  # noqa: PLR0913, PLR0917 - the original's signature
        self,
        texts: str | Sequence[str],
        task: str | None = None,
        max_length: int = 32768,
        batch_size: int = 8,
        return_multivector: bool = False,  # noqa: FBT001, FBT002 - the original's signature
        return_numpy: bool = False,  # noqa: FBT001, FBT002 - the original's signature
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
    ) -> list[Floats]:
        """Embed texts as the original does: -> a list of (dim,) float32 unit vectors, one a text.

        With `return_multivector`, a list of (tokens, width) arrays of unit rows, one row a token, prefix included.

        `task` falls back to the `task` attribute; without either it is a UsageError. `batch_size` and `return_numpy`
        change nothing: batches are packed by tokens, and there are no tensors but numpy's. `prompt_name` is `query`
        (default) or `passage`.
        """
        if return_multivector and truncate_dim is not None:
            raise UsageError(
                "truncate_dim: the vectors of tokens have one size; leave it out with return_multivector",
                param="truncate_dim",
            )
        if max_length < 1 or batch_size < 1:
            raise UsageError(f"max_length={max_length}, batch_size={batch_size}: at least 1", param="max_length")
        model = self._model(task)
        size = model.spec.dimension(truncate_dim)
        rows = [texts] if isinstance(texts, str) else list(texts)
        ids = model.tokenize(rows, prompt_name=prompt_name or "query", truncate=True)
        cut = [one[:max_length] for one in ids]
        return model.embed_tokens(cut) if return_multivector else list(model.embed_ids(cut, dimension=size))

    def encode_image(
        self,
        images: object,
        task: str | None = None,
        batch_size: int = 8,
        return_multivector: bool = False,  # noqa: FBT001, FBT002 - the original's signature
        return_numpy: bool = False,  # noqa: FBT001, FBT002 - the original's signature
        truncate_dim: int | None = None,
        max_pixels: int | None = None,
    ) -> list[Floats]:
        """Refused: the files hold the text tower only."""
        raise UsageError(
            "encode_image: these files hold the text tower only; images cannot be embedded", param="images"
        )

    def _model(self, task: str | None) -> Embedder:
        chosen = task or self.task
        if chosen is None:
            raise UsageError(f"task: name one of {', '.join(Task)}", param="task")
        parsed = Task.parse(chosen)
        if parsed not in self._loaded:
            reference = str(ModelReference(self._family, parsed, self._quant))
            self._loaded[parsed] = Embedder.load(reference, engine=self._engine, threads=self._threads)
        return self._loaded[parsed]
