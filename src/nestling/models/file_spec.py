"""What a model file is for: its task, prefixes, dimensions. As it says itself, as the caller says, or as it is known.

Knows the files, not how they are run.
"""

from nestling.engine.lora import load_adapters
from nestling.errors import FileFormatError
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import is_tower
from nestling.formats.multivector_head import is_head
from nestling.models import families
from nestling.spec import BASE_FIELD, ModelSpec


def specs_of(file: GGUFFile, given: ModelSpec | None = None) -> list[ModelSpec]:
    """As `spec_of`; of a base, what each of its adapters beside it is for."""
    if given is None and BASE_FIELD in file.metadata:
        return [one.spec for one in load_adapters(file)]
    return [spec_of(file, given)]


def _text(file: GGUFFile, key: str) -> str:
    return str(file.metadata[key].value) if key in file.metadata else ""


def spec_of(file: GGUFFile, given: ModelSpec | None = None) -> ModelSpec:
    """What the file is for: as it says itself, as `given`, or as its published name, shape and architecture tell.

    A file that says nothing and is not a known one is a FileFormatError with the reason.
    """
    if BASE_FIELD in file.metadata:
        raise FileFormatError(
            f"{file.path}: the base of all tasks, for none of them by itself: it runs with its adapters beside it"
            " (nestling embed, nestling serve), and takes no --spec"
        )
    if _text(file, "general.type") == "adapter":
        raise FileFormatError(
            f"{file.path}: an adapter, not a model: name the base beside it, whose name has -text-base-"
        )
    if is_head(file):
        raise FileFormatError(f"{file.path}: a multi-vector head, which goes beside a model; name the model's file")
    if is_tower(file):
        raise FileFormatError(f"{file.path}: a vision tower, which goes beside a model; name the model's file")
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
