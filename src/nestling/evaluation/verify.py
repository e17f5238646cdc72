"""Verify a model file: structure, hash, finite weights, agreement of engines, cosine to another file.

Every check is run and reported. Cosines are over `PROBES`: several scripts, from one word to some hundred tokens.
"""

from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from nestling._util.files import sha256_file
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import load_adapters
from nestling.engine.names import EngineName
from nestling.engine.protocol import TokenIds, plain
from nestling.engine.registry import load_engine
from nestling.engine.towers import load_tower
from nestling.engine.vision import Grid
from nestling.engine.weights import as_float32
from nestling.errors import NestlingError, UsageError
from nestling.formats import mmproj, multivector_head
from nestling.formats.card import Card
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import hub
from nestling.models.file_spec import specs_of
from nestling.models.item_embedder import ItemEmbedder
from nestling.pipeline.self_test import ENGINES_AGREE, needed_cosine
from nestling.spec import BASE_FIELD, ModelSpec, Role
from nestling.vectors import Floats, paired_cosine

PROBES = (
    "sunset",
    "A beautiful sunset over the beach",
    "Un beau coucher de soleil sur la plage",
    "海滩上美丽的日落",
    "浜辺に沈む美しい夕日",
    "شاطئ البحر عند الغروب",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "The file is opened, its header is read, every length is checked against the bytes that are left. " * 12,
)
CHUNK_ROWS = 4096
GRIDS: list[Grid] = [(2, 2), (10, 6)]
"""Grids of the images for checks of a vision tower: less than a window, and more than one."""
TOWERS_AGREE = 0.99
"""Lowest cosine of the mean of an image's rows in bfloat16; single rows differ far more than their mean."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, whether it passed, and the figure."""

    name: str
    passed: bool
    detail: str


def verify(path: Path, *, against: Path | None = None, spec: ModelSpec | None = None) -> list[Check]:
    """Check a model file; `against` adds the cosine to another file's vectors (same task, same tokenizer).

    `spec` is the specification of a file without one (`file_spec.spec_of`). A base is run with its retrieval adapter. A
    file that cannot be read is one failed check.
    """
    try:
        file = GGUFFile.open(path)
        if multivector_head.is_head(file):
            return [_head(path), _hash(path)]
        if mmproj.is_tower(file):
            return _tower(mmproj.VisionFile.open(path))
        shape, found = Hyperparameters.of(file), specs_of(file, spec)[0]
        tokenizer = Tokenizer.from_gguf(file)
    except NestlingError as error:
        return [Check("structure", passed=False, detail=str(error))]
    detail = f"{found.name}, {shape.layers} layers of {shape.hidden}, {len(file.tensors)} tensors"
    checks = [Check("structure", passed=True, detail=detail), _hash(path), _finite(file)]
    if not checks[-1].passed:
        return checks
    ids = tokenizer.encode([found.prefix(Role.QUERY) + text for text in PROBES])
    ours, alone = _together_and_alone(path, ids, spec)
    theirs = _run(path, EngineName.LLAMACPP, ids, spec)
    checks += [_position(ours, alone), _engines(file, ours, theirs)]
    return checks + ([_against(ours, against, found.name, ids)] if against else [])


def _head(path: Path) -> Check:
    head = multivector_head.Projector.open(path)
    detail = f"multi-vector head of {head.spec.name}, {head.width} of {head.spec.dimensions[-1]}, all finite"
    return Check("structure", passed=True, detail=detail)


def _tower(vision: mmproj.VisionFile) -> list[Check]:
    """Checks of a vision tower on random patches: rows of small images alone, in a batch and by both engines."""
    shape = vision.shape
    detail = f"vision tower, {shape.blocks} blocks of {shape.hidden}, {len(vision.file.tensors)} tensors"
    checks = [Check("structure", passed=True, detail=detail), _hash(vision.file.path), _finite(vision.file)]
    if not checks[-1].passed:
        return checks
    rng = np.random.default_rng(0)
    patches = [rng.standard_normal((rows * columns, shape.patch_values), np.float32) for rows, columns in GRIDS]
    tower, oracle = (load_tower(vision, name=name) for name in (EngineName.OPENVINO, EngineName.REFERENCE))
    together = _means(tower.rows(patches, GRIDS))
    alone = _means([tower.rows([one], [grid])[0] for one, grid in zip(patches, GRIDS, strict=True)])
    lowest = float(paired_cosine(together, _means(oracle.rows(patches, GRIDS))).min())
    agree = Check("openvino = reference", passed=lowest >= TOWERS_AGREE, detail=f"lowest cosine {lowest:.6f}")
    return [*checks, _position(together, alone), agree]


def _means(rows: list[Floats]) -> Floats:
    return np.stack([one.mean(0) for one in rows])


def _hash(path: Path) -> Check:
    found, card = sha256_file(path), Card.read(path)
    said = {"the card": card.sha256} if card else {}
    if (at_hub := hub.known_hash(path)) and len(at_hub) == len(found):
        said["the hub"] = at_hub
    wrong = [f"{who} says {wanted}" for who, wanted in said.items() if wanted != found]
    right = f"as {'on' if card else 'at'} {' and '.join(said)}" if said else "no card to compare with"
    return Check("hash", passed=not wrong, detail=f"sha256 {found}, {', '.join(wrong) or right}")


def _finite(file: GGUFFile) -> Check:
    for name, info in file.tensors.items():
        raw = file.raw(name)
        for start in range(0, len(raw), CHUNK_ROWS):
            if not np.isfinite(as_float32(raw[start : start + CHUNK_ROWS], info.kind)).all():
                return Check("weights", passed=False, detail=f"{name} holds NaN or infinity")
    return Check("weights", passed=True, detail="all finite")


def _opened(path: Path, engine: EngineName, spec: ModelSpec | None) -> ItemEmbedder:
    """The model, whatever its card says of its bytes."""
    file = GGUFFile.open(path)
    adapters = load_adapters(file) if BASE_FIELD in file.metadata else []
    specs = specs_of(file, spec)
    loaded = load_engine(file, name=engine, pooling=specs[0].pooling, adapters=adapters)
    return ItemEmbedder(specs[0], Tokenizer.from_gguf(file), loaded, path=path, adapters=specs if adapters else [])


def _run(path: Path, engine: EngineName, ids: list[TokenIds], spec: ModelSpec | None) -> Floats:
    with closing(_opened(path, engine, spec)) as embedder:
        return embedder.pool(plain(ids))


def _together_and_alone(path: Path, ids: list[TokenIds], spec: ModelSpec | None) -> tuple[Floats, Floats]:
    with closing(_opened(path, EngineName.OPENVINO, spec)) as embedder:
        items = plain(ids)
        return embedder.pool(items), np.concatenate([embedder.pool([one]) for one in items])


def _position(together: Floats, alone: Floats) -> Check:
    lowest = float(paired_cosine(alone, together).min())
    return Check("alone = in a batch", passed=lowest >= ENGINES_AGREE[0][1], detail=f"lowest cosine {lowest:.6f}")


def _engines(file: GGUFFile, left: Floats, right: Floats) -> Check:
    stored_bits = 8 * sum(info.size_bytes for info in file.tensors.values())
    bits = stored_bits / sum(prod(info.shape) for info in file.tensors.values())
    needed = needed_cosine(bits)
    lowest = float(paired_cosine(left, right).min())
    return Check("openvino = llamacpp", passed=lowest >= needed, detail=f"lowest cosine {lowest:.6f}, needed {needed}")


def _against(ours: Floats, other: Path, name: str, ids: list[TokenIds]) -> Check:
    file = GGUFFile.open(other)
    if (spec := specs_of(file)[0]).name != name:
        raise UsageError(
            f"{other} is {spec.name}, this file is {name}: their vectors cannot be compared", param="against"
        )
    cosines = paired_cosine(ours, _run(other, EngineName.OPENVINO, ids, None))
    detail = f"cosine mean {cosines.mean():.6f}, lowest {cosines.min():.6f}"
    return Check(f"cosine to {other.name}", passed=True, detail=detail)
