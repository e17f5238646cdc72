"""How a served model is loaded for real, with the server's settings and checked against its card; and what it takes."""

import math
from collections.abc import Callable
from functools import partial

from nestling.engine.lora import load_adapters
from nestling.engine.openvino.grouping import group_of, matrices
from nestling.engine.registry import EngineName, preferred
from nestling.formats.gguf import GGUFFile, TensorInfo
from nestling.models.embedder import Embedder
from nestling.models.families import read_spec
from nestling.models.local import resolve
from nestling.pipeline import self_test
from nestling.server.core.model_pool import Load, closed_on_failure
from nestling.server.settings import MIB, ServeSettings
from nestling.spec import BASE_FIELD, Role

ENGINE_BYTES = 200 * MIB
"""What an engine and a tokenizer take beside the weights: 120 to 190 MiB were measured."""
FLOAT32, SCALE = 4, 4
"""Bytes of a weight in float32, and of an int8 group's scale."""


def loader(settings: ServeSettings) -> Load:
    """How models are loaded for real: each must give the vectors that its card has."""
    spec = read_spec(settings.spec) if settings.spec else None

    def load(reference: str) -> Embedder:
        embedder = Embedder.load(
            reference,
            engine=settings.engine,
            device=settings.device,
            threads=settings.threads,
            spec=spec,
            arithmetic=settings.arithmetic,
        )
        with closed_on_failure(embedder):
            self_test.check(embedder.path or resolve(reference), partial(embedder.encode, prompt_name=Role.RAW))
        return embedder

    return load


def model_cost(reference: str, engine: str = EngineName.AUTO, device: str | None = None) -> int:
    """Bytes of memory that a model takes in an engine: its weights there, its embeddings as stored, its adapters.

    A GPU's own memory does not count, nor does a vision tower, which is loaded with the first image.
    """
    file, name = GGUFFile.open(resolve(reference)), EngineName.parse(engine)
    name = preferred(device)[0] if name is EngineName.AUTO else name
    on_a_gpu = name is EngineName.TORCH and device != "cpu"
    adapters = load_adapters(file) if BASE_FIELD in file.metadata else []
    stored = sum(one.size_bytes for one in file.tensors.values() if not one.name.startswith("blk."))
    weights = 0 if on_a_gpu else sum(_WEIGHT_BYTES[name](one, file) for one in matrices(file))
    return ENGINE_BYTES + stored + int(weights) + sum(one.file.path.stat().st_size for one in adapters)


def _in_int8(one: TensorInfo, file: GGUFFile) -> float:
    """OpenVINO's: float matrices in float32, others in int8 with a scale a group."""
    return math.prod(one.shape) * (FLOAT32 if one.kind.is_float else 1 + SCALE / group_of(file))


def _in_float32(one: TensorInfo, _file: GGUFFile) -> float:
    return math.prod(one.shape) * FLOAT32


def _as_stored(one: TensorInfo, _file: GGUFFile) -> float:
    return one.size_bytes


_WEIGHT_BYTES: dict[EngineName, Callable[[TensorInfo, GGUFFile], float]] = {
    EngineName.OPENVINO: _in_int8,
    EngineName.LLAMACPP: _as_stored,
    EngineName.TORCH: _in_float32,
    EngineName.REFERENCE: _in_float32,
}


def limited(load: Load, max_tokens: int | None) -> Load:
    """The same models, for shorter texts than they take."""
    return load if max_tokens is None else lambda reference: load(reference).limited(max_tokens)
