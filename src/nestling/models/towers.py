"""Find the vision tower of a model file: in its folder, in its family's folder, or in the hub's cache.

Goes by names; `formats.mmproj` checks whether the file fits the model. Makes no network requests.
"""

from collections.abc import Iterator
from pathlib import Path

from nestling._util.files import cache_folder
from nestling.errors import UsageError
from nestling.formats.mmproj import tower_path
from nestling.models import hub
from nestling.models.families import FAMILIES, known_family
from nestling.models.hub_models import TOWER_NAME
from nestling.models.local import family_folder
from nestling.spec import ModelSpec, Task


def tower_of(model: Path, spec: ModelSpec) -> Path:
    """The path of a model file's vision tower; UsageError with advice if there is none."""
    own = tower_path(model.parent, spec.family)
    found = next((path for path in (own, tower_path(family_folder(spec.family), spec.family)) if path.is_file()), None)
    found = found or next(_published(model.parent, spec.family), None)
    if found is None:
        raise UsageError(
            f"{model.name}: no vision tower ({own.name}), so this model takes no images; make one from the model's "
            f"checkpoint with `nestling vision CHECKPOINT --family {spec.family}`" + _or_pull(spec),
            param="image",
        )
    return found


def stored_towers() -> list[Path]:
    """All vision towers in the families' folders and in the hub's cache."""
    built = sorted((cache_folder() / "models").glob("*/mmproj-*.gguf"))
    return built + [path for repository in hub.cached_repositories() for path in _in_repository(repository)]


def _published(folder: Path, family: str) -> Iterator[Path]:
    """Towers with published names: in the model's folder, and in the cached repositories of a known family."""
    known = known_family(family)
    if known is None:
        return
    prefix = f"mmproj-{known.published}-"
    for path in (
        *sorted(folder.glob("*.gguf")),
        *(one for task in Task for one in _in_repository(known.repository_of(task))),
    ):
        if path.name.startswith(prefix) and TOWER_NAME.search(path.name):
            yield path


def _in_repository(repository: str) -> list[Path]:
    snapshot = hub.snapshot_of(repository)
    return [snapshot / name for name in hub.names_in(snapshot) if TOWER_NAME.search(name)] if snapshot else []


def _or_pull(spec: ModelSpec) -> str:
    published = spec.family in {family.family for family in FAMILIES}
    return f", or download it with `nestling pull {spec.family}-{Task.RETRIEVAL} --images`" if published else ""
