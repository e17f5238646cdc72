"""How a served model is loaded for real, with the server's settings and checked against its card; and what it takes."""

import math
from functools import partial

from nestling.formats.gguf import GGUFFile
from nestling.models.embedder import Embedder
from nestling.models.families import read_spec
from nestling.models.local import resolve
from nestling.pipeline import self_test
from nestling.server.core.model_pool import Load, closed_on_failure
from nestling.server.settings import MIB, ServeSettings
from nestling.spec import Role

BYTES_A_WEIGHT = 1 + 2 / 32
"""A byte, and a half-precision scale for each group of 32."""
ENGINE_BYTES = 200 * MIB
"""What an engine and a tokenizer take beside the weights: 120 to 190 MiB were measured."""


def loader(settings: ServeSettings) -> Load:
    """How models are loaded for real: each must give the vectors that its card has."""
    spec = read_spec(settings.spec) if settings.spec else None

    def load(reference: str) -> Embedder:
        embedder = Embedder.load(
            reference, engine=settings.engine, device=settings.device, threads=settings.threads, spec=spec
        )
        with closed_on_failure(embedder):
            self_test.check(embedder.path or resolve(reference), partial(embedder.encode, prompt_name=Role.RAW))
        return embedder

    return load


def model_cost(reference: str) -> int:
    """Bytes that a model takes once it is loaded: int8 groups with their scales, and what an engine takes besides."""
    tensors = GGUFFile.open(resolve(reference)).tensors.values()
    return ENGINE_BYTES + sum(int(BYTES_A_WEIGHT * math.prod(one.shape)) for one in tensors)


def limited(load: Load, max_tokens: int | None) -> Load:
    """The same models, for shorter texts than they take."""
    return load if max_tokens is None else lambda reference: load(reference).limited(max_tokens)
