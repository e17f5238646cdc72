"""The Python interface of the original jina-embeddings-v4: the same names, defaults and order of parameters.

    model = JinaEmbeddingsV4.from_pretrained("jinaai/jina-embeddings-v4", trust_remote_code=True)
    vector = model.encode_text("a beach", task="retrieval", prompt_name="query")

As in the original, one text gives one vector and a list gives a list, and `encode_text` truncates texts to `max_length`
tokens. It differs from the original where that contradicts its own documentation: text-matching always uses the prefix
`Query: `, an empty text is an error, and every sequence of texts (not only a list) gives a list. Arrays are numpy's.
Parameters without effect are refused, not ignored: `truncate_dim` with multi-vectors, and where or in what precision
the weights are loaded (`torch_dtype`, `device_map` and the like). Images need the vision tower of the model; their URLs
are downloaded from public addresses only, with limits of time and size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self, overload

import numpy as np

from nestling._util.numbers import whole_number
from nestling._util.spelling import nearest
from nestling.engine.names import DEFAULT_ENGINE
from nestling.errors import ImageError, UsageError
from nestling.inputs.image import ImageLike
from nestling.inputs.image.download import ANY_HOST, Downloads
from nestling.models.arguments import listed
from nestling.models.embedder import Embedder
from nestling.models.families import FAMILIES
from nestling.models.local import STARTER, ModelReference
from nestling.spec import DEFAULT_ROLE, Task
from nestling.vectors import Floats

BATCH_SIZE: Final = 8
"""The original's; batches are packed by tokens here."""


class JinaEmbeddingsV4:
    """A family of three task models, each loaded on first use; `task` is the default task of `encode_*`."""

    def __init__(
        self, family: str, *, quant: str | None, engine: str, threads: int | None, device: str | None = None
    ) -> None:
        self._family, self._quant, self._engine, self._device, self._threads = family, quant, engine, device, threads
        self._loaded: dict[Task, Embedder] = {}
        self.task: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        quant: str | None = None,
        engine: str = DEFAULT_ENGINE,
        device: str | None = None,
        threads: int | None = None,
        trust_remote_code: bool = False,
        **refused: object,
    ) -> Self:
        """Choose a family by its name (`starter`, `jina-v4`) or its checkpoint's (`jinaai/jina-embeddings-v4`).

        Args:
            name: the family.
            quant: the file type; Q8_0 by default.
            engine: as in `Embedder.load`.
            device: as in `Embedder.load`.
            threads: as in `Embedder.load`.
            trust_remote_code: ignored, since no code of a repository is ever run.
            refused: any other parameter of the original; a UsageError names it.

        Returns:
            A `JinaEmbeddingsV4`; its models are loaded when a task is first used.

        Raises:
            UsageError: An unknown checkpoint, or a parameter that is not supported.

        Example:
            model = nestling.compat.JinaEmbeddingsV4.from_pretrained("jinaai/jina-embeddings-v4")
        """
        if refused:
            raise UsageError(
                f"{', '.join(refused)}: not supported; quant sets the precision, engine and threads the computation",
                param=next(iter(refused)),
            )
        return cls(_family(name), quant=quant, engine=engine, device=device, threads=threads)

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
        batch_size: int = BATCH_SIZE,
        return_multivector: bool = False,
        return_numpy: bool = False,
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
    ) -> Floats | list[Floats]:
        """Embed texts, as the original does.

        Args:
            texts: one string, or a sequence of them.
            task: `retrieval`, `text-matching` or `code`; the attribute `task` by default.
            max_length: truncate texts to so many tokens.
            batch_size: has no effect, since batches are packed by tokens.
            return_multivector: return a vector for every token, including those of the prefix.
            return_numpy: has no effect, since arrays are always numpy's.
            truncate_dim: one of the trained vector sizes; the full width by default.
            prompt_name: `query` (default) or `passage`.

        Returns:
            (dim,) float32, a unit vector; with `return_multivector` (T, width), unit rows. A list for a sequence.

        Raises:
            UsageError: No task, an unknown one, an untrained size, or `truncate_dim` with `return_multivector`.
            TextError: A text is empty or not a string; `index` is its index.
            ModelNotFoundError: The task's model is not on this machine.

        Example:
            vector = model.encode_text("a beach", task="retrieval", prompt_name="query")
        """
        if return_multivector:
            _refuse_size(truncate_dim)
        most = whole_number(max_length, param="max_length")
        whole_number(batch_size, param="batch_size")
        model = self._model(task)
        size = model.spec.dimension(truncate_dim)
        rows = [texts] if isinstance(texts, str) else texts
        ids = [one[:most] for one in model.tokenize(rows, prompt_name=prompt_name or DEFAULT_ROLE, truncate=True)]
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
        batch_size: int = BATCH_SIZE,
        return_multivector: bool = False,
        return_numpy: bool = False,
        truncate_dim: int | None = None,
        max_pixels: int | None = None,
    ) -> Floats | list[Floats]:
        """Embed images, as the original does.

        Args:
            images: one or a sequence of: a path, an http(s) URL, bytes, a PIL image or a uint8 array.
            task: as in `encode_text`.
            batch_size: has no effect.
            return_multivector: return a vector for every token, including those of the prompt around the image.
            return_numpy: has no effect.
            truncate_dim: as in `encode_text`.
            max_pixels: images are resized to at most so many pixels; 602,112 by default.

        Returns:
            (dim,) float32, a unit vector; with `return_multivector` (T, width), unit rows. A list for a sequence.

        Raises:
            UsageError: As in `encode_text`, or the model has no vision tower.
            ImageError: An image is damaged, over a limit, not an image, or cannot be downloaded; `index` is its index.
            ModelNotFoundError: The task's model is not on this machine.

        Example:
            vector = model.encode_image("beach.jpg", task="retrieval")
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
            self._loaded[parsed] = Embedder.load(
                reference, engine=self._engine, device=self._device, threads=self._threads
            )
        return self._loaded[parsed]


def _refuse_size(truncate_dim: int | None) -> None:
    if truncate_dim is not None:
        raise UsageError(
            "truncate_dim: not supported with return_multivector, since token vectors have one size",
            param="truncate_dim",
        )


def _is_one(images: object) -> bool:
    """True for a single image; any other iterable is a sequence of images."""
    return isinstance(images, str | bytes | bytearray | memoryview | Path | np.ndarray) or not hasattr(
        images, "__iter__"
    )


def _fetched(images: object) -> list[Any]:
    """The images, with URLs replaced by the downloaded bytes."""
    values = listed(images, "images", "a list of images")
    for index, value in enumerate(values):
        if isinstance(value, str) and value.startswith("http"):
            try:
                values[index] = Downloads([ANY_HOST]).fetch(value)
            except ImageError as error:
                raise error.at(index) from None
    return values


def _family(name: object) -> str:
    """The family of a name: a family's name, or that of its checkpoint."""
    if not isinstance(name, str):
        raise UsageError(f"name: expected the name of a family, not {type(name).__name__}", param="name")
    known = {alias: one.family for one in FAMILIES for alias in (one.checkpoint, one.published)}
    if "/" in name and name not in known:
        names = [*known, STARTER]
        raise UsageError(
            f"name={name!r:.80}: expected the name of a family or one of {', '.join(names)}{nearest(name, names)}",
            param="name",
        )
    return known.get(name, name)
