"""The self-test of a file: vectors of two texts, stored in its card when it is built (`Card.proof`).

Every engine must reproduce them when it loads the file, so that a damaged file or a wrong engine is detected. They are
computed by numpy from the file's own bytes, a layer at a time, so that this needs neither an engine nor memory for the
whole model. The texts have no prefix, so that the test does not depend on the file's task.
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
from nestling.pipeline.quantization.search.probe import PerturbationProbe
from nestling.spec import ModelSpec
from nestling.vectors import Floats

TEXTS = ("A beautiful sunset over the beach", "海滩上美丽的日落")
WIDTH = 128
"""Components stored in the card, if the model has a trained size of at least this; else the whole vector."""
ENGINES_AGREE = ((16.0, 0.9999), (3.4, 0.999), (0.0, 0.99))
"""(bits per weight, lowest cosine between two engines for files of at least so many bits).

Engines round differently: llama.cpp also quantizes activations to 8 bits for quantized weights, OpenVINO does so on
processors with int8 instructions. A damaged layer or a wrong tokenizer gives 0.9 or less.
"""


def needed_cosine(bits_per_weight: float) -> float:
    """The lowest cosine at which two engines agree, for a file of so many bits per weight."""
    return next(cosine for least, cosine in ENGINES_AGREE if bits_per_weight >= least)


def prove(path: Path) -> dict[str, str]:
    """Compute the self-test vectors of a file with nestling metadata: text -> float16 unit vector in base64."""
    file = GGUFFile.open(path)
    spec = ModelSpec.from_json(str(file.value("nestling.spec")))
    pooled = PerturbationProbe(file, Tokenizer.from_gguf(file).encode(TEXTS), pooling=spec.pooling).original
    size = next((size for size in spec.dimensions if size >= WIDTH), spec.dimensions[-1])
    return {text: _packed(row) for text, row in zip(TEXTS, vectors.finish(pooled, size), strict=True)}


def check(path: Path, encode: Callable[[list[str]], Floats]) -> None:
    """Compare an engine's vectors without prefix (`encode`: B texts -> (B, D)) with those in the file's card.

    EngineError for a cosine that is too low, FileFormatError for vectors that cannot be read. A file without a card,
    or without self-test vectors in it, passes.
    """
    card = Card.read(path)
    if card is None or not card.proof:
        return
    texts, recorded = list(card.proof), [_unpacked(card, text) for text in card.proof]
    needed = needed_cosine(card.bits_per_weight)
    for text, wanted, found in zip(texts, recorded, encode(texts), strict=True):
        if len(wanted) > len(found):
            raise FileFormatError(
                f"{path}: card: proof: vectors of {len(wanted)} components, the model's have {len(found)}"
            )
        cosine = float(vectors.paired_cosine(found[None, : len(wanted)], wanted[None])[0])
        if not cosine >= needed:
            raise EngineError(
                f"{path}: self-test: the vector of {text!r} has cosine {cosine:.4f} to the card's: expected at least "
                f"{needed}; the file was changed or this engine computes wrongly: `nestling verify` tells which"
            )


def _packed(row: Floats) -> str:
    return base64.b64encode(row.astype("<f2").tobytes()).decode("ascii")


def _unpacked(card: Card, text: str) -> Floats:
    try:
        row = np.frombuffer(base64.b64decode(card.proof[text], validate=True), "<f2").astype(np.float32)
    except (binascii.Error, ValueError, TypeError) as error:
        raise FileFormatError(f"{card.file}: card: proof[{text[:40]!r}]: not float16 in base64 ({error})") from None
    if not (row.size and np.isfinite(row).all() and row.any()):
        raise FileFormatError(f"{card.file}: card: proof[{text[:40]!r}]: expected a finite vector, not zero or empty")
    return row
