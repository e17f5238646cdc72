"""A loaded model: load it, choose a task, embed images and mixed inputs, rerank. Texts are `text_embedder`'s.

Does not know where files come from (`local`) or how they are run (`engine`).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from nestling.engine.arithmetic import DEFAULT_ARITHMETIC, ArithmeticName
from nestling.engine.lora import Adapter, load_adapters
from nestling.engine.names import DEFAULT_ENGINE, EngineName
from nestling.engine.protocol import Item
from nestling.engine.registry import load_engine
from nestling.errors import InputError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.inputs.image import ImageLike
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import content, local
from nestling.models.arguments import listed
from nestling.models.file_spec import spec_of
from nestling.models.reranking import (
    DEFAULT_SCORING,
    Ranked,
    Scores,
    Scoring,
    check_top_n,
    ranked,
    token_scores,
    vector_scores,
)
from nestling.models.text_embedder import TextEmbedder
from nestling.models.vision import TowerOptions, mixed
from nestling.spec import BASE_FIELD, DEFAULT_ROLE, ModelSpec, Role, Task
from nestling.vectors import Floats

RERANKED_TEXTS = 256
"""Candidates whose token vectors are in memory at the same time."""


class Embedder(TextEmbedder):
    """One loaded task model. Safe to call from several threads; calls run one after another.

    Its specification is `spec`, a `ModelSpec`.

    Example:
        with contextlib.closing(nestling.Embedder.load("starter-retrieval")) as model:
            vectors = model.encode_query(["How do I open a socket?"])
    """

    @classmethod
    def load(  # noqa: PLR0913 - the public surface: each is one keyword
        cls,
        reference: str | Path,
        *,
        engine: str = DEFAULT_ENGINE,
        device: str | None = None,
        threads: int | None = None,
        spec: ModelSpec | None = None,
        profile: bool = False,
        exact_images: bool = False,
        arithmetic: str = DEFAULT_ARITHMETIC,
    ) -> Self:
        """Load a model. A base (`name-base[:QUANT]`) is loaded with the LoRA adapters of all tasks: see `for_task`.

        Args:
            reference: a path to a GGUF file, `name-task[:QUANT]`, or a pulled `org/repo[:QUANT]`.
            engine: `auto`, `openvino`, `llamacpp`, `torch` or `reference`.
            device: `cuda[:N]`, `xpu[:N]`, `mps` or `cpu`; by default a GPU for torch, the CPU for the other engines.
            threads: compute threads; all usable processors by default.
            spec: the specification of a file that has none and is not a known published one (see `read_spec`).
            profile: let the OpenVINO and torch engines record where time goes (`engine.profile()`).
            exact_images: compute the vision tower, which is loaded with the first image, in float32.
            arithmetic: for matrix products: `auto`, `float32`, `bf16`, `int8-groups`, `int8-rows` or `int8-mixed`.

        Returns:
            The loaded model; free it with `close`.

        Raises:
            UsageError: An unknown engine or device, or a reference to several tasks.
            ModelNotFoundError: No file on this machine belongs to the reference.
            GGUFError: The file is damaged or not a supported model.
            FileFormatError: The file's hash is not that of its card or of the hub.

        Example:
            model = nestling.Embedder.load("starter-retrieval:Q8_0")
        """
        name, products = EngineName.parse(engine), ArithmeticName.parse(arithmetic)
        file = GGUFFile.open(content.check(local.resolve(reference)))
        adapters = _adapters(file) if spec is None else []
        tasks = [one.spec for one in adapters]
        first = min(tasks, key=lambda one: one.task is not Task.RETRIEVAL) if tasks else spec_of(file, spec)
        chosen = partial(load_engine, file, name=name, device=device, threads=threads, arithmetic=products)
        loaded = chosen(pooling=first.pooling, adapters=adapters, profile=profile)
        images, tokenizer = TowerOptions(device, threads, exact=exact_images), Tokenizer.from_gguf(file)
        return cls(first, tokenizer, loaded, path=file.path, adapters=tasks, images=images)

    def for_task(self, task: str) -> Self:
        """The same model in memory for another of its tasks.

        Args:
            task: `retrieval`, `text-matching` or `code`.

        Returns:
            An `Embedder` with the same weights and engine.

        Raises:
            UsageError: The model is not for this task; only a base with LoRA adapters has more than one.

        Example:
            base = nestling.Embedder.load("starter-base")
            vectors = base.for_task("code").encode_query(["open a file"])
        """
        wanted = Task.parse(task)
        if wanted is self.spec.task:
            return self
        spec = next((one for one in self._adapters if one.task is wanted), None)
        if spec is None:
            raise UsageError(
                f"task={str(task)!r}, but {self.path or 'this model'} is for {self.spec.task}", param="task"
            )
        if wanted not in self._of_other_tasks:
            self._of_other_tasks[wanted] = type(self)(
                spec, self.tokenizer, self.engine, path=self.path, adapters=self._adapters, images=self._images
            )
        return self._of_other_tasks[wanted]

    def encode_image(
        self, images: Sequence[ImageLike], *, truncate_dim: int | None = None, max_pixels: int | None = None
    ) -> Floats:
        """Embed images; their vectors are comparable with those of texts.

        Args:
            images: B images, each a path, a file's bytes, a data URI, a PIL image or a uint8 array.
            truncate_dim: as in `encode`.
            max_pixels: images are resized to at most so many pixels; 602,112 by default.

        Returns:
            (B, dim) float32, unit rows in the order of `images`.

        Raises:
            ImageError: An image is damaged, over a limit or not an image; `index` is its index.
            UsageError: The model has no vision tower.

        Example:
            scores = model.encode_query(["a beach"]) @ model.encode_image([Path("beach.jpg")]).T
        """
        size = self.spec.dimension(truncate_dim)
        groups = [self.embed(items, dimension=size) for items in self._image_items(images, max_pixels)]
        return np.concatenate([np.empty((0, size), np.float32), *groups])

    def encode_image_tokens(self, images: Sequence[ImageLike], *, max_pixels: int | None = None) -> list[Floats]:
        """Multi-vectors of images: a vector for every token, including those of the prompt around the image.

        Args:
            images: as in `encode_image`.
            max_pixels: as in `encode_image`.

        Returns:
            B arrays of (T, width) float32, unit rows.

        Raises:
            ImageError: As in `encode_image`.
            UsageError: The model has no vision tower or no multi-vector head.

        Example:
            tokens = model.encode_image_tokens([Path("page.png")])[0]
        """
        return [rows for items in self._image_items(images, max_pixels) for rows in self.multivectors(items)]

    def _image_items(self, images: Sequence[ImageLike], max_pixels: int | None) -> Iterator[list[Item]]:
        values = listed(images, "images", "a list of images")
        return self.vision.grouped(values, max_pixels=max_pixels)

    def items(self, inputs: Sequence[object], *, prompt_name: str = DEFAULT_ROLE, truncate: bool = False) -> list[Item]:
        """Convert texts and images, mixed, to items for `embed`.

        Args:
            inputs: B inputs; a str is a text, anything else an image as in `encode_image`.
            prompt_name: the role of the texts, as in `encode`.
            truncate: as in `encode`.

        Returns:
            B items in the order of `inputs`.

        Raises:
            UsageError: An unknown role, or an image for a model without a vision tower.
            InputError: A text or image that cannot be embedded; `index` is its index.

        Example:
            vectors = model.embed(model.items(["a beach", Path("beach.jpg")]))
        """
        values = listed(inputs, "inputs", "a list of texts and images")
        tokenize = partial(self.tokenize, prompt_name=prompt_name, truncate=truncate)
        return mixed(values, tokenize=tokenize, vision=lambda: self.vision)

    def rerank(
        self,
        query: str | ImageLike,
        documents: Sequence[str | ImageLike],
        *,
        top_n: int | None = None,
        scoring: str = DEFAULT_SCORING,
        truncate: bool = False,
    ) -> list[Ranked]:
        """Rank texts and images by their similarity to a query. A str is a text; for images see `encode_image`.

        Args:
            query: a text, which gets the prefix of a query, or an image.
            documents: the candidates; texts get the prefix of a passage.
            top_n: how many candidates to return; all by default.
            scoring: `maxsim`, the mean over query tokens of the best match, or `cosine` of one vector per input.
            truncate: as in `encode`.

        Returns:
            The best `top_n` as `Ranked` (index in `documents`, score), best first.

        Raises:
            UsageError: The query is empty, or the model has no multi-vector head for `maxsim`.
            InputError: A document that cannot be embedded; `index` is its index.

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
        return ranked(self._scores(way, asked, items), most)

    def _scores(self, way: Scoring, asked: list[Item], items: list[Item]) -> Scores:
        if way is Scoring.COSINE:
            return vector_scores(self.embed(asked)[0], self.embed(items))
        wanted = self.multivectors(asked)[0]
        groups = (items[start : start + RERANKED_TEXTS] for start in range(0, len(items), RERANKED_TEXTS))
        return np.concatenate([np.empty(0), *(token_scores(wanted, self.multivectors(one)) for one in groups)])


def _adapters(file: GGUFFile) -> Sequence[Adapter]:
    """The LoRA adapters in a base's folder, checked against their cards; none for other files."""
    found = load_adapters(file) if BASE_FIELD in file.metadata else []
    for one in found:
        content.check(one.file.path)
    return found
