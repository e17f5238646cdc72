"""Models on the hub: choose a file of a repository, download it, find it in the cache without the network.

A known published family (`jina-v4-code:Q4_K_M`) maps to its own repositories. Does not know engines or files that
`nestling build` makes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestling._util.progress import Steps, silent
from nestling.errors import FileFormatError, ModelNotFoundError, UsageError
from nestling.models import hub
from nestling.models.families import FAMILIES, by_file_name, known_family
from nestling.models.hub import HubReference
from nestling.spec import Task

DEFAULT_QUANT = "Q8_0"
_NOT_MODELS = re.compile(
    r"(?:^|/)(?:mmproj|imatrix|adapter)|multivector|-text-base-\w+\.gguf$|-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE
)
TOWER_NAME = re.compile(r"(?:^|/)mmproj-.*BF16\.gguf$", re.IGNORECASE)
"""Vision towers. F16 ones are not used: activations can overflow F16 to NaN."""
_PIECE = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_QUANT = re.compile(r"[-._]((?:[A-Za-z]{2}-)?(?:[IT]?Q\d\w*|B?F16|F32))\.gguf$", re.IGNORECASE)
_CHECKPOINT_FOLDERS = ("", "adapters")
Name = tuple[str, Task, str]
"""Family, task and file type."""


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model file in the hub's cache; `name` is set for files of a known published family."""

    reference: HubReference
    path: Path
    name: Name | None


def reference_of(text: str) -> HubReference | None:
    """Parse `org/repo[:QUANT]`; None for a path, a model name or anything else."""
    return None if text.startswith((".", "/", "~")) else HubReference.parse(text)


def published(family: str, task: Task, quant: str | None) -> HubReference | None:
    """The repository of a family's published file; None for an unknown family."""
    known = known_family(family)
    return HubReference(known.repository_of(task), quant) if known else None


def choose(names: Iterable[str], wanted: HubReference) -> str:
    """The model file for a reference: the named file type, else Q8_0, else the only model file.

    ModelNotFoundError listing the available file types if there is none, or several.
    """
    every = list(names)
    models = [name for name in every if is_model(name)]
    quant = wanted.quant.upper() if wanted.quant else DEFAULT_QUANT
    fitting = [name for name in models if quant_of(name) == quant] or (models if wanted.quant is None else [])
    if len(fitting) == 1:
        return fitting[0]
    if fitting and quant_of(fitting[0]) == quant:
        raise ModelNotFoundError(f"{wanted}: several files are {quant}: {', '.join(fitting)}; give the path of one")
    have = ", ".join(sorted(map(quant_of, models))) or "no GGUF model"
    if pieces := sorted(name for name in every if _PIECE.search(name)):
        have += f"; {pieces[0]} and {len(pieces) - 1} more are pieces of split models, which are not supported: "
        have += "download them and merge them with `llama-gguf-split --merge`"
    raise ModelNotFoundError(f"{wanted}: no {quant} in it; it has {have}")


def is_model(name: str) -> bool:
    """True for a GGUF file that may be a model: not a head, tower, base, adapter or matrix, nor a piece of a model."""
    return name.endswith(".gguf") and not _NOT_MODELS.search(name)


def quant_of(name: str) -> str:
    """The file type in a file's name, else in its folder's, in capitals; the whole name if neither has one."""
    folder = name.rpartition("/")[0].rpartition("/")[2]
    found = _QUANT.search(name) or _QUANT.search(f"-{folder}.gguf")
    return found[1].upper() if found else name


def find(wanted: HubReference) -> Path | None:
    """The file of a reference in the hub's cache; None if it is missing."""
    snapshot = hub.snapshot_of(wanted.repository)
    if snapshot is None:
        return None
    try:
        return snapshot / choose(hub.names_in(snapshot), wanted)
    except ModelNotFoundError:
        return None


def remove(wanted: HubReference) -> tuple[list[str], int]:
    """Delete the file of a reference, or all of a repository without a file type: -> (deleted names, bytes freed)."""
    snapshot = hub.snapshot_of(wanted.repository)
    if snapshot is None:
        raise ModelNotFoundError(f"{wanted}: not in the hub's cache; `nestling list` shows all models")
    names = hub.names_in(snapshot)
    if wanted.quant:
        names = _with_card(choose(names, wanted), names)
    return [str(snapshot / name) for name in names], hub.remove(snapshot, names)


def remove_file(path: Path) -> tuple[list[str], int]:
    """Delete a model file of the hub's cache, with its card: -> (deleted names, bytes freed)."""
    snapshot = next(folder for folder in path.parents if folder.parent.name == "snapshots")
    names = _with_card(str(path.relative_to(snapshot)), hub.names_in(snapshot))
    return [str(snapshot / name) for name in names], hub.remove(snapshot, names)


def _with_card(model: str, names: Iterable[str]) -> list[str]:
    card = model.removesuffix(".gguf") + ".json"
    return [model, *([card] if card in names else [])]


def _with_head(model: str, names: Iterable[str]) -> list[str]:
    """A model, its card, and its multi-vector head, which is shared by all file types of its task."""
    head = _QUANT.sub("-multivector.gguf", model)
    return _with_card(model, names) + (_with_card(head, names) if head in names and head != model else [])


def models() -> list[PulledModel]:
    """Every model file in the hub's cache, by its name; no file is opened."""
    return [model for repository in hub.cached_repositories() for model in _in_repository(repository)]


def published_models() -> list[tuple[Name, Path]]:
    """The cached files of known published families, by family, task and file type."""
    repositories = [family.repository_of(task) for family in FAMILIES for task in Task]
    every = (model for repository in repositories for model in _in_repository(repository))
    return [(model.name, model.path) for model in every if model.name]


def _in_repository(repository: str) -> list[PulledModel]:
    snapshot = hub.snapshot_of(repository)
    names = hub.names_in(snapshot) if snapshot else []
    return [
        PulledModel(HubReference(repository, quant_of(name)), snapshot / name, _published_name(repository, name))
        for name in names
        if snapshot and is_model(name)
    ]


def _published_name(repository: str, name: str) -> Name | None:
    found = by_file_name(name)
    known = known_family(found[0]) if found else None
    return found if found and known and known.repository_of(found[1]) == repository else None


def pull(wanted: HubReference, *, images: bool = False, steps: Steps = silent) -> list[Path]:
    """Download a model or a checkpoint, whichever the repository holds; returns its files, or the checkpoint's folder.

    With `images` the repository's vision tower is included; ModelNotFoundError when it has none. Without the network
    cached files are used. Other errors are those of `hub.listing` and `hub.fetch`.
    """
    try:
        listed = hub.listing(wanted.repository)
    except ModelNotFoundError as error:
        if here := find(wanted):
            return [here]
        raise ModelNotFoundError(f"{error}, and {wanted} is not on this machine; {_offline_hint(wanted)}") from None
    if _is_checkpoint([*listed.files, *listed.odd]) and wanted.quant is None:
        _check_plain(wanted, [name for name in listed.odd if name.endswith(".safetensors")])
        names = [name for name in listed.files if name.rpartition("/")[0] in _CHECKPOINT_FOLDERS]
        return [hub.fetch(listed, [name for name in names if not name.endswith(".gguf")], steps=steps)]
    model = choose([*listed.files, *listed.odd], wanted)
    _check_plain(wanted, [model] if model in listed.odd else [])
    tower = [_tower_in(listed.files, wanted)] if images else []
    more = [name for one in tower for name in _with_card(one, listed.files)]
    snapshot = hub.fetch(listed, [*_with_head(model, listed.files), *more], steps=steps)
    return [snapshot / name for name in (model, *tower)]


def _tower_in(names: Iterable[str], wanted: HubReference) -> str:
    found = [name for name in names if TOWER_NAME.search(name)]
    if len(found) != 1:
        raise ModelNotFoundError(f"{wanted.repository}: {', '.join(found) or 'no vision tower'} (mmproj-*-BF16.gguf)")
    return found[0]


def _check_plain(wanted: HubReference, odd: Sequence[str]) -> None:
    """FileFormatError if the file of the reference has an unsafe name."""
    if odd:
        raise FileFormatError(
            f"{wanted}: the hub lists {odd[0][:120]!r}: expected the plain name of a file in the repository"
        )


def _is_checkpoint(names: Iterable[str]) -> bool:
    return any(name.endswith(".safetensors") for name in names)


def _offline_hint(wanted: HubReference) -> str:
    where = hub.repository_folder(wanted.repository)
    return f"run `nestling pull {wanted}` where there is a network, then copy {where} here"


def references(text: str) -> Sequence[HubReference]:
    """The hub references of an argument of `nestling pull`: one, or the task models of a published family."""
    if found := reference_of(text):
        return [found]
    for family in FAMILIES:
        tail = re.fullmatch(rf"{family.family}(?:-([a-z-]+))?(?::(\w+))?", text)
        if tail:
            tasks = [Task.parse(tail[1])] if tail[1] else list(Task)
            return [HubReference(family.repository_of(task), tail[2]) for task in tasks]
    known = ", ".join(f"{family.family}[-task][:QUANT]" for family in FAMILIES)
    raise UsageError(f"reference={text!r}: expected org/repo[:QUANT] or {known}", param="reference")
