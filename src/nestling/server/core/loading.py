"""Loads a served model with the server's settings, checks it against its card, and estimates its memory."""

import math
from collections.abc import Callable
from functools import partial

from nestling._util.cpu import usable_threads
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.lora import load_adapters
from nestling.engine.names import EngineName
from nestling.engine.registry import preferred
from nestling.formats.gguf import GGUFFile, TensorInfo
from nestling.models.embedder import Embedder
from nestling.models.families import read_spec
from nestling.models.local import resolve
from nestling.pipeline import self_test
from nestling.server.core.model_pool import Load
from nestling.server.core.replicas import ONE_DEVICE, closed_on_failure
from nestling.server.settings import MIB, ServeSettings
from nestling.spec import BASE_FIELD, Role

ENGINE_BYTES = 200 * MIB
"""Memory of an engine and a tokenizer without the weights (measured: 120 to 190 MiB)."""
FLOAT32, INT8 = 4.0, 1 + 4 / 32
"""Bytes per weight; int8 with a float32 scale for each 32, the finest groups."""
_BYTES = {ArithmeticName.FLOAT32: FLOAT32, ArithmeticName.BF16: 2.0} | dict.fromkeys(
    (ArithmeticName.INT8_GROUPS, ArithmeticName.INT8_ROWS, ArithmeticName.INT8_MIXED), INT8
)


def named_devices(settings: ServeSettings) -> dict[str, str | None]:
    """The devices by names that differ: `cpu,cpu` are cpu:0 and cpu:1."""
    devices = settings.devices
    names = [f"{one}:{place}" if devices.count(one) > 1 else one for place, one in enumerate(devices)]
    return {name or ONE_DEVICE: one for name, one in zip(names, devices, strict=True)}


def loader(settings: ServeSettings, *, device: str | None = None) -> Load:
    """The function that loads a model, by default on the first device; it must reproduce the vectors in its card."""
    spec = read_spec(settings.spec) if settings.spec else None
    sharing = settings.devices.count("cpu")
    threads = max(1, usable_threads() // sharing) if sharing > 1 and settings.threads is None else settings.threads

    def load(reference: str) -> Embedder:
        embedder = Embedder.load(
            reference,
            engine=settings.engine,
            device=device or settings.devices[0],
            threads=threads,
            spec=spec,
            arithmetic=settings.arithmetic,
        )
        with closed_on_failure(embedder):
            self_test.check(embedder.path or resolve(reference), partial(embedder.encode, prompt_name=Role.RAW))
        return embedder

    return load


def model_cost(
    reference: str, engine: str = EngineName.AUTO, device: str | None = None, arithmetic: str = ArithmeticName.AUTO
) -> int:
    """Bytes of memory that a model takes in an engine: its weights there, its embeddings as stored, its adapters.

    A GPU's own memory does not count, nor does a vision tower, which is loaded with the first image.
    """
    file, name = GGUFFile.open(resolve(reference)), EngineName.parse(engine)
    name = preferred(device)[0] if name is EngineName.AUTO else name
    on_a_gpu = name is EngineName.TORCH and device != "cpu"
    adapters = load_adapters(file) if BASE_FIELD in file.metadata else []
    layers = [one for one in file.tensors.values() if one.name.startswith("blk.")]
    stored = sum(one.size_bytes for one in file.tensors.values()) - sum(one.size_bytes for one in layers)
    weight_bytes, wanted = _WEIGHT_BYTES[name], ArithmeticName.parse(arithmetic)
    weights = 0 if on_a_gpu else sum(weight_bytes(one, wanted) for one in layers)
    return ENGINE_BYTES + stored + int(weights) + sum(one.file.path.stat().st_size for one in adapters)


def _openvino(one: TensorInfo, arithmetic: ArithmeticName) -> float:
    """`auto` is int8, except for float files, which int8 also leaves in float32."""
    stays = one.kind.is_float and arithmetic is not ArithmeticName.BF16
    return math.prod(one.shape) * (FLOAT32 if stays else _BYTES.get(arithmetic, INT8))


def _float32(one: TensorInfo, arithmetic: ArithmeticName) -> float:
    return math.prod(one.shape) * _BYTES.get(arithmetic, FLOAT32)


def _as_stored(one: TensorInfo, _arithmetic: ArithmeticName) -> float:
    return one.size_bytes


_WEIGHT_BYTES: dict[EngineName, Callable[[TensorInfo, ArithmeticName], float]] = {
    EngineName.OPENVINO: _openvino,
    EngineName.LLAMACPP: _as_stored,
    EngineName.TORCH: _float32,
    EngineName.REFERENCE: _float32,
}


def loads(settings: ServeSettings, load: Load | None = None) -> dict[str, Load]:
    """How a model is loaded on each device, by the devices' names; by `load` on all of them, if it is given."""
    limit = settings.max_text_tokens
    return {name: limited(load or loader(settings, device=one), limit) for name, one in named_devices(settings).items()}


def limited(load: Load, max_tokens: int | None) -> Load:
    """Load the same models with `max_tokens` as the limit of their texts, if it is given."""
    return load if max_tokens is None else lambda reference: load(reference).limited(max_tokens)
