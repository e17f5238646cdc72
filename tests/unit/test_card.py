import hashlib
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nestling.errors import FileFormatError
from nestling.formats.card import SUMS, Card, card_path, cards_in, write_sums

CARD = Card(
    file="x-text-code-Q8_0.gguf",
    sha256="0" * 64,
    size_bytes=7,
    bits_per_weight=8.5,
    parameters=3,
    file_type="Q8_0",
    tensor_types={"F32": 1, "Q8_0": 2},
    family="x",
    task="code",
    source="sha256:äöü",
    licence="apache-2.0",
    made_from="1" * 64,
    made_by="nestling 0",
)


def test_a_card_comes_back_from_beside_its_file(tmp_path: Path) -> None:
    CARD.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x-text-code-Q8_0.json"]
    assert Card.read(tmp_path / CARD.file) == CARD


def test_equal_cards_have_equal_bytes_with_sorted_keys(tmp_path: Path) -> None:
    CARD.write(tmp_path / "a")
    replace(CARD, tensor_types={"Q8_0": 2, "F32": 1}).write(tmp_path / "b")
    texts = [card_path(tmp_path / folder / CARD.file).read_text("utf-8") for folder in "ab"]
    assert texts[0] == texts[1]
    assert list(json.loads(texts[0])) == sorted(json.loads(texts[0]))
    assert "äöü" in texts[0]


def test_no_card_is_none(tmp_path: Path) -> None:
    assert Card.read(tmp_path / "x.gguf") is None


BROKEN = {
    "empty": "", "not JSON": "{", "a list": "[]", "a field too few": json.dumps({"file": "x"}), "not UTF-8": "\udcff",
    "a field too many": json.dumps({name: 1 for name in (*Card.__slots__, "more")}),
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FileFormatError, match=r"x\.json: not a card of this version .* build the file again"):
        Card.read(tmp_path / "x.gguf")


def test_sums_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    for name in ("b", "a"):
        content = name.encode() * 5
        (tmp_path / f"{name}.gguf").write_bytes(content)
        replace(CARD, file=f"{name}.gguf", sha256=hashlib.sha256(content).hexdigest()).write(tmp_path)
    (tmp_path / "without-card.gguf").write_bytes(b"")
    write_sums(tmp_path)
    lines = (tmp_path / SUMS).read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["a.gguf", "b.gguf"]
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "a.gguf: OK\nb.gguf: OK\n")
    (tmp_path / "a.gguf").write_bytes(b"other")
    assert subprocess.run(["sha256sum", "--check", SUMS], cwd=tmp_path, capture_output=True, check=False).returncode


FOREIGN = ["{", "[]", '{"architectures": ["Qwen2Model"]}', json.dumps(asdict(CARD)), "\udcff"]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_json_file_of_another_kind_is_no_card_of_a_folder(tmp_path: Path, text: str) -> None:
    """Such as an importance matrix's, a checkpoint's, or the card of a file of another name."""
    CARD.write(tmp_path)
    (tmp_path / CARD.file).write_bytes(b"")
    (tmp_path / "foreign.gguf").write_bytes(b"")
    (tmp_path / "foreign.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert cards_in(tmp_path) == [CARD]
    write_sums(tmp_path)
    assert (tmp_path / SUMS).read_text() == f"{CARD.sha256}  {CARD.file}\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [("sha256", 5), ("size_bytes", "5"), ("bits_per_weight", None), ("tensor_types", []), ("licence", ["mit"])],
)
def test_a_field_of_another_kind_is_refused(tmp_path: Path, field: str, value: object) -> None:
    CARD.write(tmp_path)
    path = card_path(tmp_path / CARD.file)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(FileFormatError, match=f"not a card of this version .{field}="):
        Card.read(tmp_path / CARD.file)
