"""Vision towers: GGUF files in llama.cpp's mmproj layout for `qwen2.5vl_merger`, checked field by field.

One file serves all tasks of a checkpoint, since no LoRA adapter changes the tower. llama.cpp has no fields for the
attention window, the pixel limits, the prompt around an image and the checkpoint; `nestling.vision.*` holds them. A
file without those fields gets Qwen2.5-VL's values. Does not know pixels, engines or how the file is made
(`conversion.vision`).
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

from nestling.errors import FileFormatError, GGUFError
from nestling.formats.gguf import Field, GGUFFile
from nestling.formats.gguf.fields import ValueKind
from nestling.formats.tower_shape import CHANNELS, MAX_PIXELS, MIN_PIXELS, WINDOW, ImageSpec, TowerShape
from nestling.spec import FAMILY_RULE, checked_family, is_family

ARCHITECTURE, PROJECTOR = "clip", "qwen2.5vl_merger"
OURS = "nestling.vision."
STEM = "vision"
"""The `task` on a tower's card."""
IMAGE_SIZE = 560
"""llama.cpp requires this field but uses the real size of each image."""
_MOST = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class VisionFile:
    """An open mmproj file; its fields, tensor names and shapes are checked, its weights not yet read."""

    file: GGUFFile
    shape: TowerShape
    spec: ImageSpec

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check the header; GGUFError or FileFormatError naming the wrong field or tensor."""
        file = GGUFFile.open(path)
        _check_kind(file)
        fields = _Fields(file)
        shape, spec = _shape(fields), _spec(fields)
        if fault := shape.fault():
            raise GGUFError(f"{path}: clip.vision: {fault}")
        _check_tensors(file, shape)
        return cls(file, shape, spec)

    @property
    def parameters(self) -> int:
        """Weights in the file."""
        return sum(prod(info.shape) for info in self.file.tensors.values())

    def check_fits(self, *, width: int, source: str) -> None:
        """FileFormatError unless the tower fits a text model of this width, made from this checkpoint."""
        for what, ours, theirs, same in (
            ("width", self.shape.out, width, self.shape.out == width),
            ("checkpoint", self.spec.source, source, _same_checkpoint(self.spec.source, source)),
        ):
            if not same:
                raise FileFormatError(
                    f"{self.file.path}: made for another model: its {what} is {ours or 'not known'}, "
                    f"the text model's is {theirs or 'not known'}"
                )


def is_tower(file: GGUFFile) -> bool:
    """True for an mmproj file, by its architecture field."""
    return _text(file, "general.architecture") == ARCHITECTURE


def tower_path(folder: Path, family: str) -> Path:
    """The published name of a family's tower: `mmproj-{family}-BF16.gguf`."""
    return folder / f"mmproj-{checked_family(family)}-BF16.gguf"


def fields_of(shape: TowerShape, spec: ImageSpec) -> dict[str, Field]:
    """The metadata fields of a tower: llama.cpp's, then ours."""
    vision = {
        "image_size": Field.uint32(IMAGE_SIZE),
        "patch_size": Field.uint32(shape.patch),
        "embedding_length": Field.uint32(shape.hidden),
        "feed_forward_length": Field.uint32(shape.feed_forward),
        "projection_dim": Field.uint32(shape.out),
        "block_count": Field.uint32(shape.blocks),
        "attention.head_count": Field.uint32(shape.heads),
        "attention.layer_norm_epsilon": Field.float32(shape.rms_eps),
        "n_wa_pattern": Field.uint32(shape.full_every),
        "image_mean": _floats(spec.mean),
        "image_std": _floats(spec.std),
    }
    assert spec.image_token is not None, "a file that nestling writes has its prompt"
    ours = {
        "window": Field.uint32(shape.window),
        "min_pixels": Field.uint32(spec.min_pixels),
        "max_pixels": Field.uint32(spec.max_pixels),
        "prompt": Field.int32s(spec.prompt),
        "image_token": Field.uint32(spec.image_token),
        "family": Field.string(spec.family),
        "source": Field.string(spec.source),
    }
    return {
        "clip.has_vision_encoder": Field.boolean(value=True),
        "clip.projector_type": Field.string(PROJECTOR),
        "clip.use_silu": Field.boolean(value=True),
        **{f"clip.vision.{key}": field for key, field in vision.items()},
        **{OURS + key: field for key, field in ours.items()},
    }


def _floats(values: tuple[float, ...]) -> Field:
    return Field(ValueKind.ARRAY, values, ValueKind.FLOAT32)


@dataclass(frozen=True, slots=True)
class _Fields:
    file: GGUFFile

    def count(self, key: str, default: int | None = None) -> int:
        value = default if default is not None and key not in self.file.metadata else self.file.value(key)
        if type(value) is not int or not 1 <= value <= _MOST:
            raise self._fault(key, value, f"expected a whole number from 1 to {_MOST}")
        return value

    def positive(self, key: str) -> float:
        value = self.file.value(key)
        if not isinstance(value, float) or not 0 < value < 1:
            raise self._fault(key, value, "expected a number between 0 and 1")
        return value

    def three(self, key: str) -> tuple[float, ...]:
        value = self.file.value(key)
        if not isinstance(value, tuple) or len(value) != CHANNELS or not all(_is_part(one) for one in value):
            raise self._fault(key, value, "expected three numbers between 0 and 1")
        return value

    def text(self, key: str) -> str:
        return _text(self.file, key)

    def ids(self, key: str) -> tuple[int, ...]:
        value = self.file.metadata[key].value if key in self.file.metadata else ()
        if not isinstance(value, tuple) or not all(type(one) is int and one >= 0 for one in value):
            raise self._fault(key, value, "expected token ids")
        return value

    def _fault(self, key: str, value: Any, right: str) -> GGUFError:  # noqa: ANN401 - any value of a field
        return GGUFError(f"{self.file.path}: {key}={value!r:.80}: {right}")


def _is_part(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _text(file: GGUFFile, key: str) -> str:
    return str(file.metadata[key].value) if key in file.metadata else ""


def _check_kind(file: GGUFFile) -> None:
    projector = _text(file, "clip.projector_type") or _text(file, "clip.vision.projector_type")
    for key, found, wanted in (
        ("general.architecture", _text(file, "general.architecture"), ARCHITECTURE),
        ("clip.projector_type", projector, PROJECTOR),
        ("clip.use_silu", _text(file, "clip.use_silu"), "True"),
    ):
        if found != wanted:
            raise GGUFError(f"{file.path}: {key}={found!r}: a Qwen2.5-VL vision tower has {wanted!r}")


def _shape(fields: _Fields) -> TowerShape:
    at = "clip.vision."
    return TowerShape(
        blocks=fields.count(at + "block_count"),
        hidden=fields.count(at + "embedding_length"),
        heads=fields.count(at + "attention.head_count"),
        feed_forward=fields.count(at + "feed_forward_length"),
        out=fields.count(at + "projection_dim"),
        full_every=fields.count(at + "n_wa_pattern"),
        rms_eps=fields.positive(at + "attention.layer_norm_epsilon"),
        patch=fields.count(at + "patch_size"),
        window=fields.count(OURS + "window", WINDOW),
    )


def _spec(fields: _Fields) -> ImageSpec:
    at, prompt = "clip.vision.", fields.ids(OURS + "prompt")
    token = fields.count(OURS + "image_token") if prompt else None
    spec = ImageSpec(
        min_pixels=fields.count(OURS + "min_pixels", MIN_PIXELS),
        max_pixels=fields.count(OURS + "max_pixels", MAX_PIXELS),
        mean=fields.three(at + "image_mean"),
        std=fields.three(at + "image_std"),
        prompt=prompt,
        image_token=token,
        family=fields.text(OURS + "family"),
        source=fields.text(OURS + "source"),
    )
    if prompt and prompt.count(token or 0) != 1:
        raise GGUFError(f"{fields.file.path}: {OURS}prompt: expected exactly one image token ({token})")
    if spec.family and not is_family(spec.family):
        raise GGUFError(f"{fields.file.path}: {OURS}family={spec.family!r:.80}: expected {FAMILY_RULE}")
    if spec.min_pixels > spec.max_pixels:
        raise GGUFError(
            f"{fields.file.path}: {OURS}min_pixels={spec.min_pixels}: expected at most max_pixels={spec.max_pixels}"
        )
    return spec


def _check_tensors(file: GGUFFile, shape: TowerShape) -> None:
    if shape.blocks > len(file.tensors):
        raise GGUFError(
            f"{file.path}: clip.vision.block_count={shape.blocks}, but the file has {len(file.tensors)} tensors"
        )
    wanted = shape.tensors()
    for name, size in wanted.items():
        info = file.tensors.get(name)
        if info is None or info.shape != size:
            raise GGUFError(
                f"{file.path}: {name}: expected shape {size}, found {info.shape if info else 'no such tensor'}"
            )
        if not info.kind.is_float:
            raise GGUFError(f"{file.path}: {name} is {info.kind.name}: expected one of F32, BF16, F16")
    if surplus := sorted(file.tensors.keys() - wanted.keys()):
        raise GGUFError(f"{file.path}: {surplus[0]}: not a tensor of this architecture ({len(surplus)} such)")


def _same_checkpoint(tower: str, model: str) -> bool:
    """True for equal sources, and for a repository with and without a revision: published files name only the former.

    A tower without a source is judged by its width alone.
    """
    if not tower or tower == model:
        return True
    bare = "@" not in tower or "@" not in model
    return bare and tower.partition("@")[0] == model.partition("@")[0]
