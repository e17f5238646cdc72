"""A job's model file and, with images, its vision tower, identified by their hashes. Loads neither."""

from pathlib import Path

from nestling._util.files import sha256_file
from nestling.bulk.manifest import Model
from nestling.bulk.settings import JobSpec
from nestling.engine.names import EngineName
from nestling.engine.towers import check_vision
from nestling.errors import BuildError
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import VisionFile
from nestling.models import local
from nestling.models.file_spec import spec_of
from nestling.models.towers import tower_of


def facts(what: JobSpec, *, images: bool) -> Model:
    """A job's model for the manifest; UsageError for a model that takes no images, if the job has some."""
    path = local.resolve(what.model)
    spec = spec_of(GGUFFile.open(path))
    dimensions, tower = spec.dimension(what.dimensions), None
    if images:
        check_vision(EngineName.parse(what.backend))
        file = VisionFile.open(tower_of(path, spec))
        file.check_fits(width=spec.dimensions[-1], source=spec.source)
        tower = sha256_file(file.file.path)
    return Model(what.model, sha256_file(path), dimensions, tower)


def check(model: Model, path: Path) -> None:
    """BuildError unless a model file is the job's and, for a job with images, so is the tower next to it."""
    files = {path: model.sha256}
    if model.tower:
        files[tower_of(path, spec_of(GGUFFile.open(path)))] = model.tower
    for file, wanted in files.items():
        if (found := sha256_file(file)) != wanted:
            raise BuildError(f"{file}: SHA-256 {found[:12]}..., the job's model file has {wanted[:12]}...")
