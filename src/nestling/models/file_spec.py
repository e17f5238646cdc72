"""The specification of a model file: from its metadata, from the caller, or of a known published family."""

from nestling.engine.lora import load_adapters
from nestling.errors import FileFormatError
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import is_tower
from nestling.formats.multivector_head import is_head
from nestling.models import families
from nestling.spec import BASE_FIELD, ModelSpec


def specs_of(file: GGUFFile, given: ModelSpec | None = None) -> list[ModelSpec]:
    """`spec_of` a file; for a base, the specifications of the LoRA adapters next to it."""
    if given is None and BASE_FIELD in file.metadata:
        return [one.spec for one in load_adapters(file)]
    return [spec_of(file, given)]


def _text(file: GGUFFile, key: str) -> str:
    return str(file.metadata[key].value) if key in file.metadata else ""


def spec_of(file: GGUFFile, given: ModelSpec | None = None) -> ModelSpec:
    """The specification of a file: its `nestling.spec`, else `given`, else that of a known published file.

    FileFormatError with the reason for any other file.
    """
    if BASE_FIELD in file.metadata:
        raise FileFormatError(
            f"{file.path}: a base, which needs the LoRA adapters next to it and takes no --spec; "
            "use it with nestling embed or nestling serve"
        )
    if _text(file, "general.type") == "adapter":
        raise FileFormatError(
            f"{file.path}: a LoRA adapter, not a model; name its base, a file with -text-base- in its name"
        )
    if is_head(file):
        raise FileFormatError(f"{file.path}: a multi-vector head, not a model; name the model's file")
    if is_tower(file):
        raise FileFormatError(f"{file.path}: a vision tower, not a model; name the model's file")
    if given is not None:
        return families.with_spec(file, given)
    if "nestling.spec" not in file.metadata:
        return families.recognise(file)
    try:
        spec = ModelSpec.from_json(str(file.metadata["nestling.spec"].value))
    except FileFormatError as error:
        raise FileFormatError(f"{file.path}: {error}") from None
    width = file.value(f"{file.value('general.architecture')}.embedding_length")
    if spec.dimensions[-1] != width:
        raise FileFormatError(f"{file.path}: nestling.spec says {spec.dimensions[-1]} dimensions, the weights {width}")
    return families.checked(file, spec)
