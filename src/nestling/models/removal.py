"""Deletion of models, with their cards and the files that no other model uses."""

from pathlib import Path

from nestling._util.files import lock
from nestling.engine.openvino import weight_files
from nestling.errors import ModelNotFoundError, UsageError
from nestling.formats.card import card_path, write_sums
from nestling.formats.mmproj import tower_path
from nestling.formats.multivector_head import projector_path
from nestling.models import hub, hub_models, local
from nestling.spec import Task


def remove(reference: str) -> tuple[list[str], int]:
    """Delete the models of a name or a hub reference, with their cards: -> (deleted names, bytes freed).

    Without a task or a file type, all of them are deleted. Paths are refused: nestling does not delete a user's own
    files. Dequantized weights in the weight cache that no other file uses are deleted too.
    """
    gone, freed = _remove(reference)
    expanded = weight_files.remove_of(Path(name) for name in gone if name.endswith(".gguf"))
    return [*gone, *(str(path) for path, _ in expanded)], freed + sum(size for _, size in expanded)


def _remove(reference: str) -> tuple[list[str], int]:
    if at_hub := hub_models.reference_of(reference):
        return hub_models.remove(at_hub)
    if local.looks_like_path(reference):
        raise UsageError(f"model={reference!r}: expected a name or a hub repository, not a path", param="model")
    wanted = local.ModelReference.parse(reference)
    every = [model for model in local.available() if model.path and _means(wanted, model)]
    if not every:
        raise ModelNotFoundError(f"{reference}: not on this machine; `nestling list` shows all models")
    gone: list[str] = []
    freed = 0
    for model in every:
        assert model.path
        names, size = (
            _remove_file(model.path) if hub.known_hash(model.path) is None else hub_models.remove_file(model.path)
        )
        gone, freed = gone + names, freed + size
    for lonely in _lonely(wanted.family, {model.task for model in every if model.task}):
        names, size = _remove_file(lonely)
        gone, freed = gone + names, freed + size
    return gone, freed


def _lonely(family: str, tasks: set[Task]) -> list[Path]:
    """Heads of tasks without a remaining model (a base counts for every task); the tower if no model is left."""
    folder, left = (
        local.family_folder(family),
        {one.task for one in local.available() if one.family == family and one.path},
    )
    heads = [projector_path(folder, family=family, task=task) for task in sorted(tasks - left)]
    towers = [] if left else [tower_path(folder, family)]
    return [path for path in (*([] if None in left else heads), *towers) if path.exists()]


def _means(wanted: local.ModelReference, model: local.StoredModel) -> bool:
    named = wanted.task in (None, model.task) and (not wanted.base or model.task is None)
    return wanted.family == model.family and named and wanted.quant in (None, model.quant)


def _remove_file(path: Path) -> tuple[list[str], int]:
    files = [one for one in (path, card_path(path)) if one.exists()]
    freed = sum(one.stat().st_size for one in files)
    with lock(path.parent / ".lock", what=str(path.parent)):
        for one in files:
            one.unlink()
        write_sums(path.parent)
    return [str(one) for one in files], freed
