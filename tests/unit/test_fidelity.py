from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nestling._util.progress import Progress
from nestling.formats.card import Card
from nestling.models.embedder import Embedder
from nestling.models.fidelity import RECORD, Fidelity, Record, measure_fidelity
from nestling.vectors import paired_cosine


def test_fidelity_falls_with_the_bits_and_is_that_of_the_vectors(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.models.fidelity.TEXTS", 6)
    told: list[tuple[int, int]] = []
    files = [tiny_models[kind] for kind in ("F32", "Q8_0", "Q3_K_M")]
    found = measure_fidelity(files, tiny_models["F32"], threads=1, progress=lambda *counts: told.append(counts))
    same, q8, q3 = (found[path] for path in files)
    assert same.lowest == pytest.approx(1, abs=1e-9)
    assert 1 > q8.mean > q3.mean > 0.9
    assert q3.mean > q3.lowest
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_fidelity_is_over_calibration_paragraphs_with_their_prefixes(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = tmp_path / "words.txt"
    text.write_text("A folder is locked.\n\nA killed holder loses its lock.")
    monkeypatch.setattr("nestling.models.fidelity.TEXTS", 2)
    monkeypatch.setattr("nestling.models.fidelity.default_text", lambda: text)
    found = measure_fidelity([tiny_models["Q3_K_M"]], tiny_models["F32"], threads=1)[tiny_models["Q3_K_M"]]
    vectors = []
    for kind in ("Q3_K_M", "F32"):
        model = Embedder.load(tiny_models[kind], threads=1)
        query, passage = text.read_text().split("\n\n")
        vectors.append((model.encode_query([query]), model.encode_document([passage])))
    cosines = [float(paired_cosine(ours, theirs)[0]) for ours, theirs in zip(*vectors, strict=True)]
    # Here each text is embedded alone: sums in another order, rounded to bfloat16 where the processor has that.
    assert found.mean == pytest.approx(sum(cosines) / 2, abs=1e-5)
    assert found.lowest == pytest.approx(min(cosines), abs=1e-5)


CARD = Card("x-text-code-F16.gguf", "0" * 64, 7, 16.0, 3, "F16", {}, "x", "code", "", "mit", "", "nestling 0")


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hashes of file and base; a file made again is measured, and a record that is spoilt is none."""
    asked: list[list[str]] = []

    def measured(files: Sequence[Path], base: Path, *, threads: int | None, progress: Progress) -> dict[Path, Fidelity]:
        assert (base, threads) == (tmp_path / CARD.file, 2)
        progress(1, 2)
        asked.append([path.name for path in files])
        return {path: Fidelity(0.99, 0.5) for path in files}

    monkeypatch.setattr("nestling.models.fidelity.measure_fidelity", measured)
    cards = [replace(CARD, file=f"{name}.gguf", sha256=name * 64) for name in "ab"]

    def complete() -> dict[Path, Fidelity]:
        return Record.read(tmp_path).complete(cards, CARD, threads=2)

    assert complete() == {tmp_path / f"{name}.gguf": Fidelity(0.99, 0.5) for name in "ab"}
    assert complete() == {tmp_path / f"{name}.gguf": Fidelity(0.99, 0.5) for name in "ab"}
    assert asked == [["a.gguf", "b.gguf"]]
    cards[0] = replace(cards[0], sha256="c" * 64)
    complete()
    assert asked[1:] == [["a.gguf"]]
    for spoilt in ("", "[]", '{"made_by": "0"}', '{"made_by": "0.1.0", "files": {"a": 5}}'):
        (tmp_path / RECORD).write_text(spoilt)
        complete()
        assert asked.pop() == ["a.gguf", "b.gguf"]
