"""A file's proof: vectors of two texts, put into its card when it is made, that every engine must give again.

They are computed by plain numpy from the file's own bytes, a layer at a time, so that making one needs neither an
engine nor the model's memory, and a damaged file or a wrong engine is found when the model is loaded. Without a
prefix, so that they hold for whatever the file is used for.
"""

import base64
import binascii
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nestling import vectors
from nestling.errors import EngineError, FileFormatError
from nestling.formats.card import Card
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.pipeline.quantization.search.probe import Tower
from nestling.spec import ModelSpec
from nestling.vectors import Floats

TEXTS = ("A beautiful sunset over the beach", "海滩上美丽的日落")
WIDTH = 128
"""Components that are recorded, where the model has a trained size of at least so many; the whole vector elsewhere."""
ENGINES_AGREE = ((16.0, 0.9999), (3.4, 0.999), (0.0, 0.99))
"""Lowest cosine between an engine and another, or exact arithmetic, for files from so many bits per weight on.

They round differently: llama.cpp also rounds activations to 8 bits for quantized weights, OpenVINO does where the
processor multiplies int8. A damaged layer or a wrong tokenizer is far below: 0.9 and less.
"""


def needed_cosine(bits_per_weight: float) -> float:
    """What two engines must agree to for a file of so many bits per weight."""
    return next(cosine for least, cosine in ENGINES_AGREE if bits_per_weight >= least)


def prove(path: Path) -> dict[str, str]:
    """The proof of a file that says itself what it is for: text -> its unit vector's beginning, float16 in base64."""
    file = GGUFFile.open(path)
    spec = ModelSpec.from_json(str(file.value("nestling.spec")))
    pooled = Tower(file, Tokenizer.from_gguf(file).encode(TEXTS), pooling=spec.pooling).original
    size = next((size for size in spec.dimensions if size >= WIDTH), spec.dimensions[-1])
    return {text: _packed(row) for text, row in zip(TEXTS, vectors.finish(pooled, size), strict=True)}


def check(path: Path, encode: Callable[[list[str]], Floats]) -> None:
    """Hold an engine's vectors without a prefix (`encode`: B texts -> (B, D)) against the proof in the file's card.

    EngineError for one that is not near enough, FileFormatError for a proof that cannot be read. A file without a card,
    or whose card has no proof, passes.
    """
    card = Card.read(path)
    if card is None or not card.proof:
        return
    texts, recorded = list(card.proof), [_unpacked(card, text) for text in card.proof]
    needed = needed_cosine(card.bits_per_weight)
    for text, wanted, found in zip(texts, recorded, encode(texts), strict=True):
        if len(wanted) > len(found):
            raise FileFormatError(f"{path}: the card's proof has {len(wanted)} components, the model {len(found)}")
        cosine = float(vectors.paired_cosine(found[None, : len(wanted)], wanted[None])[0])
        if not cosine >= needed:
            raise EngineError(
                f"{path}: self-test: the vector of {text!r} has cosine {cosine:.4f} to the card's, not {needed}"
                "; the file is not the one that was built, or this engine is wrong: `nestling verify` tells which"
            )


def _packed(row: Floats) -> str:
    return base64.b64encode(row.astype("<f2").tobytes()).decode("ascii")


def _unpacked(card: Card, text: str) -> Floats:
    try:
        row = np.frombuffer(base64.b64decode(card.proof[text], validate=True), "<f2").astype(np.float32)
    except (binascii.Error, ValueError, TypeError) as error:
        raise FileFormatError(f"{card.file}: its card's proof of {text[:40]!r} cannot be read: {error}") from None
    if not (row.size and np.isfinite(row).all() and row.any()):
        raise FileFormatError(f"{card.file}: its card's proof of {text[:40]!r} is no vector")
    return row
