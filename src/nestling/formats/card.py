"""The card of a built file: its provenance, hash and size, as JSON next to the GGUF file.

A card holds nothing that changes between equal builds (no times, no paths), so equal builds have equal cards.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self, get_origin

from nestling._util.files import atomic_write
from nestling._util.text import read_text
from nestling.errors import FileFormatError
from nestling.spec import FAMILY_RULE, is_family

SUMS = "SHA256SUMS"
MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Card:
    """Provenance of one GGUF file.

    `tensor_types` counts tensors by type. `made_from` is the SHA-256 of the float file that was quantized, `imatrix`
    that of the importance matrix. `worst_tensor` has the largest relative squared error, `worst_error` (columns
    weighted by the matrix); both are empty for a float file. `proof` holds the vectors of the self-test
    (`pipeline.self_test`), empty if there are none.
    """

    file: str
    sha256: str
    size_bytes: int
    bits_per_weight: float
    parameters: int
    file_type: str
    tensor_types: dict[str, int]
    family: str
    task: str
    source: str
    licence: str
    made_from: str
    made_by: str
    imatrix: str = ""
    worst_tensor: str = ""
    worst_error: float = 0.0
    proof: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `<file's stem>.json` into the folder."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        with atomic_write(card_path(folder / self.file)) as file:
            file.write(text.encode())

    @classmethod
    def read(cls, model: Path) -> Self | None:
        """The card of a model file; None when there is none, FileFormatError when it cannot be read."""
        path = card_path(model)
        if not path.exists():
            return None
        if path.stat().st_size > MAX_CARD_BYTES:
            raise FileFormatError(f"{path}: not a card of this version (larger than {MAX_CARD_BYTES} bytes)")
        try:
            card = cls(**json.loads(read_text(path, error=ValueError)))
            card._check()
        except (ValueError, TypeError, RecursionError) as error:
            raise FileFormatError(f"{path}: not a card of this version ({error}); build the file again") from None
        return card

    def _check(self) -> None:
        for one in fields(self):
            value, kind = getattr(self, one.name), get_origin(one.type) or one.type
            if not isinstance(value, (int, float) if kind is float else kind):  # type: ignore[arg-type]
                raise TypeError(f"{one.name}={value!r:.80}: expected {kind}")
        if not is_family(self.family):
            raise ValueError(f"family={self.family!r:.80}: expected {FAMILY_RULE}")
        if Path(self.file).name != self.file:
            raise ValueError(f"file={self.file!r:.80}: expected the name of a file in the card's folder")


def card_path(model: Path) -> Path:
    """The path of a model file's card."""
    return model.with_suffix(".json")


def cards_in(folder: Path) -> list[Card]:
    """The cards of a folder's models, sorted by name; other JSON files are ignored."""
    return [card for model in sorted(folder.glob("*.gguf")) if (card := _own_card(model))]


def _own_card(model: Path) -> Card | None:
    try:
        card = Card.read(model)
    except FileFormatError:
        return None
    return card if card and card.file == model.name else None


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS`, in the format of `sha256sum --check`, for every model of the folder that has a card."""
    cards = cards_in(folder)
    with atomic_write(folder / SUMS) as file:
        file.write("".join(f"{card.sha256}  {card.file}\n" for card in cards).encode())
