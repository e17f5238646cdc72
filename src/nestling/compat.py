"""jina-embeddings-v4's own Python surface, for code written against the original: the same names, defaults and order.

    model = JinaEmbeddingsV4.from_pretrained("jinaai/jina-embeddings-v4", trust_remote_code=True)
    vector = model.encode_text("a beach", task="retrieval", prompt_name="query")

As in the original, one text gives one vector and a list gives a list, and `encode_text` cuts texts to `max_length`
tokens. Differences, all towards the documented behaviour: text-matching puts `Query: ` on both sides whatever way the
task is given; an empty text is an error; any sequence of texts gives a list, not a list alone. Arrays are numpy's. What
cannot be honoured is refused, not ignored: `truncate_dim` with multi-vectors, where and in what precision the
weights go (`torch_dtype`, `device_map` and the like). Images take the vision tower beside the models; URLs of them are
fetched from public addresses alone, within limits of time and size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

from nestling._util.numbers import whole_number
from nestling.errors import ImageError, UsageError
from nestling.inputs.image import ImageLike
from nestling.inputs.image.download import ANY_HOST, Downloads
from nestling.models.arguments import listed
from nestling.models.embedder import Embedder
from nestling.models.families import FAMILIES
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
        cls,
        name: str,
        *,
        quant: str | None = None,
        engine: str = "auto",
        threads: int | None = None,
        trust_remote_code: bool = False,
        **refused: object,
    ) -> Self:
        """A family by its name (`starter`, `jina-v4`) or its checkpoint's (`jinaai/jina-embeddings-v4`).

        Args:
            name: the family; its models are loaded when a task is first used.
            quant: the file type, Q8_0 by default.
            engine: as in `Embedder.load`.
            threads: as in `Embedder.load`.
            trust_remote_code: taken for the original's sake; no code of a repository is ever run.
            refused: whatever else the original takes; a UsageError names it.
        """
        if refused:
            raise UsageError(
                f"{', '.join(refused)}: not an option here; quant says the precision, engine and threads what computes",
                param=next(iter(refused)),
            )
        return cls(_family(name), quant=quant, engine=engine, threads=threads)

    @overload
    def encode_text(  # type: ignore[overload-overlap] # a str is a sequence of texts, too
        self,
        texts: str,
        task: str | None = ...,
        max_length: int = ...,
        batch_size: int = ...,
        return_multivector: bool = ...,
        return_numpy: bool = ...,
        truncate_dim: int | None = ...,
        prompt_name: str | None = ...,
    ) -> Floats: ...

    @overload
    def encode_text(
        self,
        texts: Sequence[str],
        task: str | None = ...,
        max_length: int = ...,
        batch_size: int = ...,
        return_multivector: bool = ...,
        return_numpy: bool = ...,
        truncate_dim: int | None = ...,
        prompt_name: str | None = ...,
    ) -> list[Floats]: ...

    def encode_text(  # noqa: PLR0913, PLR0917 - the original's signature
        self,
        texts: str | Sequence[str],
        task: str | None = None,
        max_length: int = 32768,
        batch_size: int = 8,
        return_multivector: bool = False,
        return_numpy: bool = False,
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
    ) -> Floats | list[Floats]:
        """Embed texts as the original does: one text -> (dim,) float32, a unit vector; a list -> a list of them.

        With `return_multivector`, (tokens, width) arrays of unit rows instead, one row a token, prefix included.

        `task` falls back to the `task` attribute; without either it is a UsageError. `batch_size` and `return_numpy`
        change nothing: batches are packed by tokens, and there are no tensors but numpy's. `prompt_name` is `query`
        (default) or `passage`.
        """
        if return_multivector:
            _refuse_size(truncate_dim)
        most = whole_number(max_length, param="max_length")
        whole_number(batch_size, param="batch_size")
        model = self._model(task)
        size = model.spec.dimension(truncate_dim)
        rows = [texts] if isinstance(texts, str) else texts
        ids = [one[:most] for one in model.tokenize(rows, prompt_name=prompt_name or "query", truncate=True)]
        found = model.embed_tokens(ids) if return_multivector else list(model.embed_ids(ids, dimension=size))
        return found[0] if isinstance(texts, str) else found

    @overload
    def encode_image(  # type: ignore[overload-overlap] # a str is a sequence, too
        self,
        images: ImageLike,
        task: str | None = ...,
        batch_size: int = ...,
        return_multivector: bool = ...,
        return_numpy: bool = ...,
        truncate_dim: int | None = ...,
        max_pixels: int | None = ...,
    ) -> Floats: ...

    @overload
    def encode_image(
        self,
        images: Sequence[ImageLike],
        task: str | None = ...,
        batch_size: int = ...,
        return_multivector: bool = ...,
        return_numpy: bool = ...,
        truncate_dim: int | None = ...,
        max_pixels: int | None = ...,
    ) -> list[Floats]: ...

    def encode_image(
        self,
        images: ImageLike | Sequence[ImageLike],
        task: str | None = None,
        batch_size: int = 8,
        return_multivector: bool = False,
        return_numpy: bool = False,
        truncate_dim: int | None = None,
        max_pixels: int | None = None,
    ) -> Floats | list[Floats]:
        """Embed images as the original does: one -> (dim,) float32, a unit vector; a list -> a list of them.

        An image is a path, a URL (http or https, of a public address), a PIL image; bytes and arrays besides.
        `max_pixels` holds for this call; the other parameters are those of `encode_text`.
        """
        whole_number(batch_size, param="batch_size")
        if return_multivector:
            _refuse_size(truncate_dim)
        model, one = self._model(task), _is_one(images)
        values = _fetched([images] if one else images)
        found = (
            model.encode_image_tokens(values, max_pixels=max_pixels)
            if return_multivector
            else list(model.encode_image(values, truncate_dim=truncate_dim, max_pixels=max_pixels))
        )
        return found[0] if one else found

    def _model(self, task: str | None) -> Embedder:
        chosen = task or self.task
        if chosen is None:
            raise UsageError(f"task: expected one of {', '.join(Task)}", param="task")
        parsed = Task.parse(chosen)
        if parsed not in self._loaded:
            reference = str(ModelReference(self._family, parsed, self._quant))
            self._loaded[parsed] = Embedder.load(reference, engine=self._engine, threads=self._threads)
        return self._loaded[parsed]


def _refuse_size(truncate_dim: int | None) -> None:
    if truncate_dim is not None:
        raise UsageError(
            "truncate_dim: the vectors of tokens have one size; leave it out with return_multivector",
            param="truncate_dim",
        )


def _is_one(images: object) -> bool:
    """True for what is one image, or can be none: a list of images is anything else that can be gone through."""
    return isinstance(images, str | bytes | bytearray | memoryview | Path | np.ndarray) or not hasattr(
        images, "__iter__"
    )


def _fetched(images: object) -> list[Any]:
    """The images, URLs among them as the bytes behind them."""
    values = listed(images, "images", "a list of images")
    for index, value in enumerate(values):
        if isinstance(value, str) and value.startswith("http"):
            try:
                values[index] = Downloads([ANY_HOST]).fetch(value)
            except ImageError as error:
                raise error.at(index) from None
    return values


def _family(name: object) -> str:
    """The family that a name means: its own, or that of the checkpoint that it was made from."""
    if not isinstance(name, str):
        raise UsageError(f"name: expected a family's name, not {type(name).__name__}", param="name")
    known = {alias: one.family for one in FAMILIES for alias in (one.checkpoint, one.published)}
    if "/" in name and name not in known:
        names = ", ".join([*known, "starter"])
        raise UsageError(f"name={name!r}: expected a family's name or one of {names}", param="name")
    return known.get(name, name)
