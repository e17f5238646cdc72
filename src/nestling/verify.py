"""Is this file what it should be? Structure, hash, finite weights, engines that agree, nearness to another file.

Every check is run and reported; none is assumed. Cosines are over `PROBES`: several scripts, one word to some hundred
tokens.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from nestling.card import Card
from nestling.embedder import spec_of
from nestling.engine.base import Shape, TokenIds
from nestling.engine.loading import EngineName, load_engine
from nestling.engine.weights import as_float32
from nestling.errors import NestlingError, UsageError
from nestling.files import sha256_file
from nestling.gguf_io import GGUFFile
from nestling.spec import Role
from nestling.tokenizer import Tokenizer
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
ENGINES_AGREE = ((16.0, 0.9999), (3.4, 0.999), (0.0, 0.99))
"""Lowest cosine between two engines for files from so many bits per weight on.

They round differently: llama.cpp also rounds activations to 8 bits for quantized weights, OpenVINO does where the
processor multiplies int8.
"""
CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was looked at, whether it holds, and the figure."""

    name: str
    passed: bool
    detail: str


def verify(path: Path, *, against: Path | None = None) -> list[Check]:
    """Check a model file; `against` adds the cosine to another file's vectors (same task, same tokenizer).

    A file that cannot be read at all is one failed check; the other checks need a readable file.
    """
    try:
        file = GGUFFile.open(path)
        shape, spec = Shape.of(file), spec_of(file)
        tokenizer = Tokenizer.from_gguf(file)
    except NestlingError as error:
        return [Check("structure", passed=False, detail=str(error))]
    detail = f"{spec.name}, {shape.layers} layers of {shape.hidden}, {len(file.tensors)} tensors"
    checks = [Check("structure", passed=True, detail=detail), _hash(path), _finite(file)]
    if not checks[-1].passed:
        return checks
    ids = tokenizer.encode([spec.prefix(Role.QUERY) + text for text in PROBES])
    ours, alone = _together_and_alone(file, ids)
    checks += [_position(ours, alone), _engines(file, ours, _run(file, EngineName.LLAMACPP, ids))]
    return checks + ([_against(ours, against, spec.name, ids)] if against else [])


def _hash(path: Path) -> Check:
    card = Card.read(path)
    if card is None:
        return Check(
            "hash", passed=True, detail=f"sha256 {sha256_file(path)} (no card beside the file to compare with)"
        )
    found = sha256_file(path)
    wanted = "as on the card" if found == card.sha256 else f"the card says {card.sha256}"
    return Check("hash", passed=found == card.sha256, detail=f"sha256 {found}, {wanted}")


def _finite(file: GGUFFile) -> Check:
    for name, info in file.tensors.items():
        raw = file.raw(name)
        for start in range(0, len(raw), CHUNK_ROWS):
            if not np.isfinite(as_float32(raw[start : start + CHUNK_ROWS], info.kind)).all():
                return Check("weights", passed=False, detail=f"{name} holds NaN or infinity")
    return Check("weights", passed=True, detail="all finite")


def _run(file: GGUFFile, name: EngineName, ids: list[TokenIds]) -> Floats:
    engine = load_engine(file, name=name)
    try:
        return engine.pool(ids)
    finally:
        engine.close()


def _together_and_alone(file: GGUFFile, ids: list[TokenIds]) -> tuple[Floats, Floats]:
    engine = load_engine(file, name=EngineName.OPENVINO)
    try:
        return engine.pool(ids), np.concatenate([engine.pool([one]) for one in ids])
    finally:
        engine.close()


def _position(together: Floats, alone: Floats) -> Check:
    lowest = float(paired_cosine(alone, together).min())
    return Check("alone = in a batch", passed=lowest >= ENGINES_AGREE[0][1], detail=f"lowest cosine {lowest:.6f}")


def _engines(file: GGUFFile, left: Floats, right: Floats) -> Check:
    stored_bits = 8 * sum(info.size_bytes for info in file.tensors.values())
    bits = stored_bits / sum(prod(info.shape) for info in file.tensors.values())
    needed = next(cosine for least, cosine in ENGINES_AGREE if bits >= least)
    lowest = float(paired_cosine(left, right).min())
    return Check("openvino = llamacpp", passed=lowest >= needed, detail=f"lowest cosine {lowest:.6f}, needed {needed}")


def _against(ours: Floats, other: Path, name: str, ids: list[TokenIds]) -> Check:
    file = GGUFFile.open(other)
    if (theirs := spec_of(file).name) != name:
        raise UsageError(f"{other} is {theirs}, this file is {name}: their vectors cannot be compared", param="against")
    cosines = paired_cosine(ours, _run(file, EngineName.OPENVINO, ids))
    detail = f"cosine mean {cosines.mean():.6f}, lowest {cosines.min():.6f}"
    return Check(f"nearness to {other.name}", passed=True, detail=detail)
