from pathlib import Path

import pytest

from nestling.embedder import Embedder
from nestling.nearness import nearness
from nestling.vectors import paired_cosine


def test_nearness_falls_with_the_bits_and_is_that_of_the_vectors(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.nearness.TEXTS", 6)
    told: list[tuple[int, int]] = []
    files = [tiny_models[kind] for kind in ("F32", "Q8_0", "Q3_K_M")]
    found = nearness(files, tiny_models["F32"], threads=1, progress=lambda *counts: told.append(counts))
    same, q8, q3 = (found[path] for path in files)
    assert same.lowest == pytest.approx(1, abs=1e-9)
    assert 1 > q8.mean > q3.mean > 0.9
    assert q3.mean > q3.lowest
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_nearness_is_over_calibration_paragraphs_with_their_prefixes(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = tmp_path / "words.txt"
    text.write_text("A folder is locked.\n\nA killed holder loses its lock.")
    monkeypatch.setattr("nestling.nearness.TEXTS", 2)
    monkeypatch.setattr("nestling.nearness.default_text", lambda: text)
    found = nearness([tiny_models["Q3_K_M"]], tiny_models["F32"], threads=1)[tiny_models["Q3_K_M"]]
    vectors = []
    for kind in ("Q3_K_M", "F32"):
        model = Embedder.load(tiny_models[kind], threads=1)
        query, passage = text.read_text().split("\n\n")
        vectors.append((model.encode_query([query]), model.encode_document([passage])))
    cosines = [float(paired_cosine(ours, theirs)[0]) for ours, theirs in zip(*vectors, strict=True)]
    assert found.mean == pytest.approx(sum(cosines) / 2, abs=1e-6)
    assert found.lowest == pytest.approx(min(cosines), abs=1e-6)
