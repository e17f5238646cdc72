"""Publish a folder of built files as a hub repository with a model card.

`plan` checks the folder and writes the model card, without the network; `send` uploads a plan. Files are refused if
they have no card, another hash than on their card, no licence, or different tasks: as in the published collection, a
repository holds the file types of one task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestling._util.files import sha256_file
from nestling._util.progress import Progress, no_progress
from nestling.errors import FileFormatError, UsageError
from nestling.formats.card import SUMS, Card, card_path
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import VisionFile, tower_path
from nestling.formats.model_card import write_front_matter
from nestling.formats.multivector_head import Projector, projector_path
from nestling.models import hub
from nestling.models.families import by_file_name
from nestling.models.file_spec import spec_of
from nestling.spec import ModelSpec, Role, Task

README, LICENCE = "README.md", "LICENSE.md"
TAGS = ("gguf", "embeddings", "sentence-similarity", "matryoshka", "llama.cpp", "nestling")
PIPELINE = "feature-extraction"
_LICENCE_FIELDS = {"license_name": "general.license.name", "license_link": "general.license.link"}


@dataclass(frozen=True, slots=True)
class Publication:
    """The upload: the model card, and every file (a path, or its bytes) by its name in the repository."""

    repository: str
    readme: str
    files: dict[str, Path | bytes]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: len(it) if isinstance(it, bytes) else it.stat().st_size for name, it in self.files.items()}


@dataclass(frozen=True, slots=True)
class _Model:
    path: Path
    card: Card
    spec: ModelSpec
    licence: dict[str, str]


def plan(
    folder: Path,
    repository: str,
    *,
    task: Task | None = None,
    base_model: str | None = None,
    scores: str = "",
    progress: Progress = no_progress,
) -> Publication:
    """Check a folder's files and write the model card; nothing is uploaded.

    `base_model` is the source repository of the weights, needed if the cards have only a hash. `scores` is Markdown to
    put below the table of files. `progress` counts hashed bytes. UsageError for a folder without files, or with files
    of several tasks and no `task`; FileFormatError for files that differ from their cards.
    """
    if hub.HubReference.parse(repository) != hub.HubReference(repository):
        raise UsageError(f"repository={repository!r}: expected org/name", param="repository")
    models = _models(folder, task, progress)
    licence = _licence(folder, models[0])
    head, tower = _head_card(folder, models[0]), _tower_card(folder, models[0])
    readme = _head(models, base_model, licence) + _body(models, repository, scores, (head, tower))
    hub.check_metadata(readme)
    sums = "".join(f"{model.card.sha256}  {model.card.file}\n" for model in models)
    paths = {path.name: path for model in models for path in (model.path, card_path(model.path))}
    for one in (head, tower):
        if one:
            sums += f"{one.sha256}  {one.file}\n"
            paths |= {path.name: path for path in (folder / one.file, card_path(folder / one.file))}
    return Publication(repository, readme, {README: readme.encode(), SUMS: sums.encode(), **licence, **paths})


def send(publication: Publication, *, private: bool = False) -> str:
    """Upload a plan as one commit, creating the repository if needed; returns the commit's URL."""
    message = "Files built with nestling"
    return hub.upload(publication.repository, publication.files, message=message, private=private)


def _models(folder: Path, task: Task | None, progress: Progress) -> list[_Model]:
    named = {path: by_file_name(path.name) for path in sorted(folder.glob("*.gguf"))}
    tasks = {name[1] for name in named.values() if name}
    if task is None and len(tasks) > 1:
        raise UsageError(f"{folder}: it has files for {', '.join(sorted(tasks))}; choose one with --task", param="task")
    paths = [path for path, name in named.items() if name and task in (None, name[1])]
    if not paths:
        if list(folder.glob("*-text-base-*.gguf")):
            raise UsageError(
                f"{folder}: a base with LoRA adapters; expected merged models, built without --keep-adapters",
                param="folder",
            )
        wanted = f"{{family}}-text-{task.stem if task else '{task}'}-{{QUANT}}.gguf"
        raise UsageError(f"{folder}: no file {wanted}, as `nestling build` names them", param="folder")
    total, done, models = sum(path.stat().st_size for path in paths), 0, []
    for path in paths:
        models.append(_model(path))
        done += models[-1].card.size_bytes
        progress(done, total)
    _check_alike(folder, models)
    return sorted(models, key=lambda model: -model.card.size_bytes)


def _model(path: Path) -> _Model:
    card = Card.read(path)
    if card is None:
        raise FileFormatError(f"{path}: no card next to it; `nestling build` makes files with cards")
    if card.file != path.name or sha256_file(path) != card.sha256:
        raise FileFormatError(f"{path}: its card is for another file (sha256 {card.sha256}); build it again")
    if not card.licence:
        raise FileFormatError(
            f"{path}: no licence, since the checkpoint's README.md has none; it is needed for publishing"
        )
    file = GGUFFile.open(path)
    values = {name: file.metadata.get(key) for name, key in _LICENCE_FIELDS.items()}
    return _Model(path, card, spec_of(file), {name: str(field.value) for name, field in values.items() if field})


def _head_card(folder: Path, model: _Model) -> Card | None:
    """The card of the multi-vector head; None if there is none, FileFormatError if it is another model's."""
    path = projector_path(folder, family=model.spec.family, task=model.spec.task)
    if not path.is_file():
        return None
    Projector.open(path).check_fits(path, model.spec)
    return _own_card(path)


def _tower_card(folder: Path, model: _Model) -> Card | None:
    """The card of the vision tower; None if there is none, FileFormatError if it is another model's."""
    path = tower_path(folder, model.spec.family)
    if not path.is_file():
        return None
    VisionFile.open(path).check_fits(width=model.spec.dimensions[-1], source=model.spec.source)
    return _own_card(path)


def _own_card(path: Path) -> Card:
    card = Card.read(path)
    if card is None or sha256_file(path) != card.sha256:
        raise FileFormatError(f"{path}: no card for this file; `nestling build` builds it again")
    return card


def _check_alike(folder: Path, models: Sequence[_Model]) -> None:
    values = {
        "families": [model.card.family for model in models],
        "sources": [model.card.source for model in models],
        "licences": [f"{model.card.licence} {sorted(model.licence.items())}" for model in models],
        "specifications": [model.spec.to_json() for model in models],
    }
    for what, found in values.items():
        if len(set(found)) > 1:
            raise FileFormatError(f"{folder}: its files have different {what}; a repository is for one checkpoint")


def _licence(folder: Path, model: _Model) -> dict[str, Path | bytes]:
    """The file that `license_link` names, if it is not a URL: the folder's, or a note with the source's licence."""
    link = model.licence.get("license_link")
    if link is None or hub.is_url(link):
        return {}
    own = next((folder / name for name in hub.LICENCE_FILES if (folder / name).is_file()), None)
    if own:
        return {own.name: own}
    name, source = model.licence.get("license_name", model.card.licence), model.card.source
    note = f"""# {name}

These files were made from `{source}`. Its licence applies to them too: `{name}`, see `{link}` there.
"""
    return {LICENCE: note.encode()}


def _head(models: Sequence[_Model], base_model: str | None, licence: Mapping[str, Path | bytes]) -> str:
    first = models[0]
    source, at, _ = first.card.source.partition("@")
    base = base_model or (source if at else None)
    fields: dict[str, object] = {"license": first.card.licence, **first.licence}
    if licence:
        fields["license_link"] = next(iter(licence))
    if base:
        fields |= {"base_model": base, "base_model_relation": "quantized"}
    fields |= {"pipeline_tag": PIPELINE, "tags": list(TAGS)}
    return write_front_matter(fields)


def _body(models: Sequence[_Model], repository: str, scores: str, extras: tuple[Card | None, Card | None]) -> str:
    head, tower = extras
    spec, quant = models[0].spec, _usual(models)
    parts = [
        f"# {repository.rpartition('/')[2]}",
        f"Text embeddings for {spec.task}: GGUF files of {models[0].card.parameters:,} parameters, "
        f"{spec.dimensions[-1]} dimensions, {spec.pooling} pooling, up to {spec.max_tokens:,} tokens.",
        "## Prefixes\n\nEvery text needs its prefix. nestling adds it; with other programs, add it yourself.",
        table(
            ["role", "prefix"],
            [[role, f"`{spec.prefix(role)}`"] for role in (Role.QUERY, Role.PASSAGE)],
        ),
        f"Vectors may be truncated to {', '.join(map(str, spec.dimensions))} dimensions and normalised again.",
        "## Files",
        table(["file", "bits per weight", "MiB", "sha256"], [_row(model.card) for model in models]),
        *([f"`{head.file}` is for multi-vectors, one vector per token, with nestling."] if head else []),
        *([f"`{tower.file}` is for images, with nestling or llama.cpp."] if tower else []),
        *([scores.strip()] if scores.strip() else []),
        _usage(spec, repository, quant),
        _origin(models[0].card),
    ]
    return "\n\n".join(parts) + "\n"


def _usual(models: Sequence[_Model]) -> str:
    types = [model.card.file_type for model in models]
    return next((wanted for wanted in ("Q4_K_M", "Q8_0") if wanted in types), types[0])


def _row(card: Card) -> list[str]:
    return [card.file, f"{card.bits_per_weight:.2f}", f"{card.size_bytes / 2**20:,.1f}", f"`{card.sha256}`"]


def _usage(spec: ModelSpec, repository: str, quant: str) -> str:
    query = spec.prefix(Role.QUERY)
    return f"""## With nestling

```
nestling pull {repository}:{quant}
nestling serve --model {repository}:{quant}
```

```python
import nestling

model = nestling.Embedder.load("{repository}:{quant}")
vectors = model.encode_query(["A beautiful sunset over the beach"])
```

## With llama.cpp alone

```
llama-server -hf {repository}:{quant} --embedding --pooling {spec.pooling} -ub 8192
curl http://127.0.0.1:8080/v1/embeddings -d '{{"input": ["{query}A beautiful sunset over the beach"]}}'
```

Add the prefix yourself there. A text must fit into one micro-batch (`-ub`), otherwise its vector is wrong."""


def _origin(card: Card) -> str:
    return f"""## Origin

Made by {card.made_by} from `{card.source}`, whose licence (`{card.licence}`) applies to these files. Each has a card
(`.json`) with its tensor types and the hash of the file that it was quantized from; `SHA256SUMS` has the hashes."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
