"""How near files come to the one that they were made from, by their vectors of calibration texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestling.calibrating import Calibration, default_text
from nestling.engine.base import TokenIds
from nestling.engine.loading import EngineName, load_engine
from nestling.files import Progress, no_progress
from nestling.gguf_io import GGUFFile
from nestling.spec import ModelSpec, Pooling
from nestling.tokenizer import Tokenizer
from nestling.vectors import Floats, paired_cosine

TEXTS, LONGEST = 32, 128
"""Paragraphs of the package's calibration text, and the tokens they are cut at."""


@dataclass(frozen=True, slots=True)
class Nearness:
    """Cosine to the other file's vectors: mean and lowest over the texts."""

    mean: float
    lowest: float


def nearness(
    files: Sequence[Path], base: Path, *, threads: int | None = None, progress: Progress = no_progress
) -> Mapping[Path, Nearness]:
    """Compare the vectors of files with those of `base`, all of one task model that says what it is for."""
    source = GGUFFile.open(base)
    spec = ModelSpec.from_json(str(source.value("nestling.spec")))
    texts = Calibration(spec, Tokenizer.from_gguf(source), default_text()).texts(TEXTS, longest=LONGEST)
    wanted = _pooled(base, texts, spec.pooling, threads)
    found: dict[Path, Nearness] = {}
    for path in files:
        cosines = paired_cosine(_pooled(path, texts, spec.pooling, threads), wanted)
        found[path] = Nearness(float(cosines.mean()), float(cosines.min()))
        progress(len(found), len(files))
    return found


def _pooled(path: Path, texts: Sequence[TokenIds], pooling: Pooling, threads: int | None) -> Floats:
    engine = load_engine(GGUFFile.open(path), name=EngineName.AUTO, threads=threads, pooling=pooling)
    try:
        return engine.pool(texts)
    finally:
        engine.close()
