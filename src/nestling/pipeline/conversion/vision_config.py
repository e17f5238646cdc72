"""The checked vision settings of config.json and preprocessor_config.json. Does not know tensors.

A checkpoint without preprocessor_config.json gets jina-embeddings-v4's values. The only supported pixel arithmetic is
8-bit RGB, scaled by 1/255 and normalised.
"""

from collections.abc import Mapping
from typing import Any

from nestling.errors import CheckpointError
from nestling.formats.tower_shape import CHANNELS, FRAMES, MAX_PIXELS, MERGE, MIN_PIXELS, WINDOW, ImageSpec, TowerShape
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.config import Fields, refuse

RMS_EPS = 1e-6
"""A constant of the modelling code; not in config.json."""
FULL_BLOCKS = [7, 15, 23, 31]
"""The default of `fullatt_block_indexes` (transformers' Qwen2_5_VLVisionConfig)."""
PREPROCESSOR = "preprocessor_config.json"


def has_tower(checkpoint: Checkpoint) -> bool:
    """True for a checkpoint whose configuration describes a vision tower."""
    return bool(checkpoint.folder.json("config.json").get("vision_config"))


def tower_shape(checkpoint: Checkpoint) -> TowerShape:
    """The tower's hyperparameters; CheckpointError naming a missing or unsupported field."""
    path = checkpoint.folder.path / "config.json"
    raw = Fields(checkpoint.folder.json("config.json"), path).mapping("vision_config")
    if not raw:
        raise CheckpointError(f"{path}: vision_config is missing: this checkpoint has no vision tower")
    fields = Fields(raw, f"{path}: vision_config")
    refuse(fields, _SUPPORTED)
    shape = TowerShape(
        blocks=fields.count("depth"),
        hidden=fields.count("hidden_size"),
        heads=fields.count("num_heads"),
        feed_forward=fields.count("intermediate_size"),
        out=fields.count("out_hidden_size", checkpoint.config.hidden),
        full_every=_full_every(fields),
        rms_eps=RMS_EPS,
        patch=fields.count("patch_size", 14),
        window=fields.count("window_size", WINDOW),
    )
    if shape.out != checkpoint.config.hidden:
        raise CheckpointError(
            f"{path}: out_hidden_size={shape.out}: expected the text model's hidden_size={checkpoint.config.hidden}"
        )
    if fault := shape.fault():
        raise CheckpointError(f"{path}: vision_config: {fault}")
    return shape


def image_spec(checkpoint: Checkpoint, *, family: str, prompt: tuple[int, ...], image_token: int) -> ImageSpec:
    """The checkpoint's image processing; CheckpointError naming an unsupported field."""
    path = checkpoint.folder.path / PREPROCESSOR
    fields = Fields(checkpoint.folder.json(PREPROCESSOR) if path.exists() else {}, path)
    refuse(fields, _SUPPORTED_PIXELS)
    size = Fields(fields.mapping("size"), path)
    plain = ImageSpec()
    spec = ImageSpec(
        min_pixels=fields.count("min_pixels", size.count("shortest_edge", MIN_PIXELS)),
        max_pixels=fields.count("max_pixels", size.count("longest_edge", MAX_PIXELS)),
        mean=_three(fields, "image_mean", plain.mean),
        std=_three(fields, "image_std", plain.std),
        prompt=prompt,
        image_token=image_token,
        family=family,
        source=checkpoint.source,
    )
    if spec.min_pixels > spec.max_pixels:
        raise CheckpointError(f"{path}: min_pixels={spec.min_pixels}: expected at most max_pixels={spec.max_pixels}")
    return spec


def _full_every(fields: Fields) -> int:
    """The distance between blocks with full attention; the file format requires them evenly spaced."""
    value, depth = fields.raw.get("fullatt_block_indexes", FULL_BLOCKS), fields.count("depth")
    every = value[0] + 1 if isinstance(value, list) and value and type(value[0]) is int else 0
    if every < 1 or depth % every or value != list(range(every - 1, depth, every)):
        raise CheckpointError(
            f"{fields.path}: fullatt_block_indexes={value!r}: expected evenly spaced blocks up to the last, {depth - 1}"
        )
    return every


def _three(fields: Fields, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = fields.raw.get(name, list(default))
    sound = isinstance(value, list) and len(value) == CHANNELS
    if not sound or not all(isinstance(one, float) and 0 < one < 1 for one in value):
        raise CheckpointError(f"{fields.path}: {name}={value!r}: expected three numbers between 0 and 1")
    return tuple(value)


def _only(wanted: object) -> Any:  # noqa: ANN401 - a predicate of whatever JSON holds
    return lambda value: value == wanted


_SUPPORTED: Mapping[str, Any] = {
    "hidden_act": _only("silu"),
    "in_channels": _only(CHANNELS),
    "in_chans": _only(CHANNELS),
    "temporal_patch_size": _only(FRAMES),
    "spatial_merge_size": _only(MERGE),
}
_SUPPORTED_PIXELS: Mapping[str, Any] = {
    "do_convert_rgb": _only(wanted=True),
    "do_normalize": _only(wanted=True),
    "do_rescale": _only(wanted=True),
    "do_resize": _only(wanted=True),
    "merge_size": _only(MERGE),
    "temporal_patch_size": _only(FRAMES),
    "resample": _only(3),
}
