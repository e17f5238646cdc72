"""Visual document retrieval: sets of pages are read, measured beside their OCR text and BM25, and shown.

The doors by which pages could be wrong without a word: an image that is missing, damaged or beside the set's folder, a
corpus of pages and texts, OCR of some pages, ids that lead nowhere, another vision tower than that of a kept result.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.command_line import nestling
from tests.visual_set import QUERIES, TEXTS, page, write_lines, write_parquet, write_rows

from nestling.errors import FileFormatError, ImageError, UsageError
from nestling.evaluation import bm25, data, figures, pages, quality, report, results, tables
from nestling.evaluation.data import Form, RetrievalSet
from nestling.evaluation.encoders import RemoteEncoder
from nestling.evaluation.quality import Measured
from nestling.evaluation.results import QualityResult
from nestling.evaluation.settings import QualitySettings as Settings
from nestling.models.embedder import Embedder
from nestling.models.hub import datasets
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Role, Task

ROOT = Path(__file__).parents[2]
RESULTS, RECIPE = ROOT / "benchmarks" / "results" / "starter", ROOT / "recipes" / "ocr" / "read_pages.py"


def read(folder: Path | str) -> RetrievalSet:
    found = data.load(str(folder))
    assert isinstance(found, RetrievalSet)
    return found


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "pages")


@pytest.fixture(scope="module")
def model(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    Pipeline(Checkpoint.open(vision_checkpoint), folder, "tiny", 1).build([Task.RETRIEVAL], ["F32"])
    return model_path(folder, family="tiny", task=Task.RETRIEVAL, file_type="F32")


# Reading.


def test_pages_beside_json_lines(lines: Path) -> None:
    found = read(lines)
    assert found.document_ids == ("101", "102", "103", "104", "105")
    assert [one.read() for one in found.pages] == [page(text) for text in TEXTS]
    assert (found.documents, found.queries) == (TEXTS, tuple(QUERIES.values()))
    assert found.relevant == {"11": {"101": 2, "105": 1}, "12": {"102": 1}, "13": {"103": 1, "101": 0}}


def test_parquet_as_vidore_has_it_is_the_same_set(lines: Path, tmp_path: Path) -> None:
    """Whole numbers as ids, `corpus-id`, `query-id`, `query`, images of bytes and path, grades as floats."""
    found, wanted = read(write_parquet(tmp_path / "parquet")), read(lines)
    assert found.sha256 == wanted.sha256
    assert (found.relevant, found.queries) == (wanted.relevant, wanted.queries)
    assert [one.read() for one in found.pages] == [page(text) for text in TEXTS]


def test_names_with_underscores_and_plain_bytes(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "v3")
    for name in ("corpus", "queries", "qrels"):
        path = folder / name / "test-00000-of-00001.parquet"
        table = parquet.read_table(path)
        table = table.rename_columns([one.replace("-", "_") for one in table.column_names])
        if name == "corpus":
            table = table.set_column(1, "image", pa.array([page(text) for text in TEXTS]))
        parquet.write_table(table, path)
    assert read(folder).sha256 == read(write_parquet(tmp_path / "other")).sha256


def test_images_of_parquet_are_held_a_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(write_parquet(tmp_path / "set"))
    pages._images.cache_clear()
    asked: list[int] = []
    opened = pages._opened

    def counted(path: Path) -> Any:
        asked.append(1)
        return opened(path)

    monkeypatch.setattr(pages, "_opened", counted)
    assert [one.read() for one in found.pages] == [page(text) for text in TEXTS]
    assert len(asked) == 3, "each row group once, in order"
    assert pages._images.cache_info().currsize == 1


def test_a_set_of_the_hub_is_read_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "snapshot")
    monkeypatch.setattr(datasets, "fetch", lambda _name: tmp_path / "snapshot")
    found = read("vidore/docvqa_test_subsampled_beir")
    assert (found.name, len(found.pages), found.tasks) == ("vidore/docvqa_test_subsampled_beir", 5, (Task.RETRIEVAL,))


def test_the_forms_of_a_set(lines: Path, tmp_path: Path) -> None:
    """Pages whose OCR is empty cannot be found by text; without any OCR there is one form."""
    whole = read(lines)
    images, text = whole.forms()
    assert (images.form, text.form, images.visual, text.visual) == (Form.IMAGES, Form.OCR, whole.sha256, whole.sha256)
    assert (images.name, text.name) == ("pages", "pages-ocr")
    assert (len(images.pages), images.documents) == (5, ())
    assert (text.pages, text.document_ids) == ((), ("101", "102", "103", "105"))
    assert len({whole.sha256, images.sha256, text.sha256}) == 3
    assert [one.form for one in read(write_lines(tmp_path / "plain", ocr=False)).forms()] == [Form.IMAGES]


def test_sets_of_texts_have_the_hashes_that_they_had() -> None:
    for name in data.SHIPPED:
        known = {one.benchmark.sha256 for one in kept_results(name)}
        found = read(name)
        assert known == {found.sha256}
        assert found.forms() == [found]


def kept_results(name: str) -> list[QualityResult]:
    files = sorted(RESULTS.glob(f"quality-*-F16-{name}.json"))
    assert files
    return [one for one in map(results.read, files) if isinstance(one, QualityResult)]


# What is not sound.


def corpus(**more: Any) -> Callable[[Path], None]:
    """Another first line of the corpus."""

    def change(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
        rows[0] = {name: value for name, value in (rows[0] | more).items() if value != "none"}
        write_rows(folder / "corpus.jsonl", rows)

    return change


def judged(line: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / "qrels" / "test.tsv").open("a") as file:
            file.write("\n" + line)

    return change


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing file": (
        lambda folder: (folder / "images" / "101.png").unlink(),
        r"corpus\.jsonl:1: image='images/101\.png': cannot be read \(No such file or directory\)",
    ),
    "a folder": (corpus(image="images"), r"image='images': cannot be read \(Is a directory\)"),
    "no image": (corpus(image=None), r"corpus\.jsonl:1: the image is missing: expected a path below"),
    "a number": (corpus(image=7), "the image is missing: expected a path"),
    "absolute": (corpus(image="/etc/passwd"), "image='/etc/passwd': expected a path below"),
    "upwards": (corpus(image="../x.png"), "image='../x.png': expected a path below"),
    "nul": (corpus(image="a\0b"), r"cannot be read \(not a path\)"),
    "image and text": (corpus(text="a page"), "an image and a text: expected the text of a page in 'ocr'"),
    "mixed": (corpus(image="none", text="a text"), "expected only images or only texts in a corpus"),
    "ocr of some": (corpus(ocr="none"), r"corpus\.jsonl:1: no ocr: expected it for all .*corpus\.jsonl:2 has one"),
    "ocr of another type": (corpus(ocr=["x"]), r"ocr=\['x'\]: expected a string"),
    "unknown page": (judged("11\t999\t1"), "unknown document id '999'"),
    "unknown query": (judged("99\t101\t1"), "unknown query id '99'"),
    "id twice": (corpus(_id="102"), "duplicate id '102', also at"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_sound_is_named_with_its_line(lines: Path, case: str) -> None:
    change, said = BAD[case]
    change(lines)
    with pytest.raises(FileFormatError, match=said) as caught:
        data.load(str(lines))
    assert "\n" not in str(caught.value)


def test_a_row_of_parquet_without_an_image_is_named(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    path = folder / "corpus" / "test-00000-of-00001.parquet"
    table = parquet.read_table(path).to_pylist()
    table[3]["image"] = None
    parquet.write_table(pa.Table.from_pylist(table), path)
    with pytest.raises(FileFormatError, match=r"00001\.parquet:4: the image is missing"):
        data.load(str(folder))


def test_a_damaged_page_ends_the_measurement_by_its_name(lines: Path, model: Path, tmp_path: Path) -> None:
    (lines / "images" / "103.png").write_bytes(page("x")[:100])
    with pytest.raises(ImageError, match=r"the PNG is damaged or truncated \(.*images/103\.png\)"):
        measure(model, tmp_path, lines)


# Measuring.


def measure(model: Path, out: Path, benchmark: Path, **more: Any) -> list[Measured]:
    settings = Settings(out=out / "results", benchmarks=(str(benchmark),), engine="reference", **more)
    return list(quality.measure([str(model)], settings))


def test_images_ocr_text_and_bm25_are_measured(lines: Path, model: Path, tmp_path: Path) -> None:
    images, text, words = (one.result for one in measure(model, tmp_path, lines, dimensions=(64,)))
    assert [one.benchmark.form for one in (images, text, words)] == ["images", "OCR text", "OCR text"]
    assert [one.model.label for one in (images, text, words)] == [model.stem, model.stem, "BM25"]
    assert images.tower_sha256
    assert text.tower_sha256 is words.tower_sha256 is None
    embedder = Embedder.load(model, engine="reference")
    queries, seen = embedder.encode_query(list(QUERIES.values())), embedder.encode_image([page(one) for one in TEXTS])
    order = (queries @ seen.T)[2].argsort()[::-1].tolist()
    assert images.full.samples["MRR@10"][2] == pytest.approx(1 / (order.index(2) + 1))
    documents = embedder.encode_document([one for one in TEXTS if one])
    order = (queries @ documents.T)[1].argsort()[::-1].tolist()
    assert text.full.samples["MRR@10"][1] == pytest.approx(1 / (order.index(1) + 1))


def test_bm25_is_graded_by_hand(lines: Path, model: Path, tmp_path: Path) -> None:
    """`revenue` of query 11 is on pages 101 (grade 2) and 105 (grade 1), which is shorter and so stands first."""
    words = measure(model, tmp_path, lines)[-1].result
    wanted = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert words.full.samples["nDCG@5"] == pytest.approx([wanted, 1, 1])
    found = bm25.scores([QUERIES[11], "nothing to see"], [one for one in TEXTS if one])
    assert found[0].argsort()[::-1][:2].tolist() == [3, 0]
    assert not found[1].any()


def test_a_result_is_kept_until_the_tower_is_another(lines: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(model.parent, folder)
    mine = folder / model.name
    assert [one.fresh for one in measure(mine, tmp_path, lines)] == [True] * 3
    assert [one.fresh for one in measure(mine, tmp_path, lines)] == [False, False, True], "words are counted anew"
    tower = folder / "mmproj-tiny-BF16.gguf"
    data = bytearray(tower.read_bytes())
    data[-1] ^= 1
    tower.write_bytes(data)
    tower.with_suffix(".json").unlink()  # its card, which has the hash of the other
    assert [one.fresh for one in measure(mine, tmp_path, lines)] == [True, False, True]


def test_a_model_without_a_tower_is_refused(lines: Path, model: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(model, tmp_path))
    with pytest.raises(UsageError, match=r"no vision tower \(mmproj-tiny-BF16\.gguf\)"):
        measure(alone, tmp_path, lines)


def test_a_server_is_sent_images_as_jina_has_them(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, sent = RemoteEncoder("http://localhost:9/v1#m/retrieval"), list[dict[str, Any]]()

    def embed(body: dict[str, Any]) -> Any:
        sent.append(body)
        return np.ones((len(body["input"]), 2), np.float32)

    monkeypatch.setattr(encoder._connection, "embed", embed)
    places = [place for some, _ in encoder.encode_iter(read(lines).pages, role=Role.PASSAGE) for place in some]
    assert places == [0, 1, 2, 3, 4]
    assert [len(body["input"]) for body in sent] == [4, 1]
    assert {body["model"] for body in sent} == {"m/retrieval.passage"}
    assert [list(one) for one in sent[0]["input"]] == [["image"]] * 4
    encoder.close()


def test_the_recipe_adds_the_text_of_pages(tmp_path: Path, model: Path) -> None:
    """With a tesseract that reads `words of IMAGE` on every page."""
    fake = tmp_path / "bin" / "tesseract"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\ntest "$2 $3 $4" = "- -l eng+deu" && echo "revenue of $(basename $1)"\n')
    fake.chmod(0o755)
    source, out = write_parquet(tmp_path / "set", ocr=False), tmp_path / "read"
    command = [sys.executable, str(RECIPE), str(source), str(out), "--language", "eng+deu"]
    paths = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths)
    assert done.returncode == 0, done.stderr
    found, wanted = read(out), read(source)
    assert [one.sha256 for one in found.pages] == [one.sha256 for one in wanted.pages]
    assert (found.relevant, found.queries, found.documents[4]) == (wanted.relevant, wanted.queries, "revenue of 000004")
    assert len(measure(model, tmp_path, out)) == 3
    nowhere = {"PATH": str(tmp_path)}
    done = subprocess.run([*command[:3], str(tmp_path / "x")], capture_output=True, text=True, env=os.environ | nowhere)
    assert (done.returncode, done.stderr) == (2, "tesseract is not there; Debian: apt-get install tesseract-ocr\n")


# Showing.


@pytest.fixture(scope="module")
def measured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[QualityResult]:
    folder = tmp_path_factory.mktemp("measured")
    return [one.result for one in measure(model, folder, write_lines(folder / "pages"))]


def test_one_table_has_all_three_by_ndcg_5(measured: list[QualityResult]) -> None:
    for order in (measured, measured[::-1]):
        made = tables.quality(order)
        assert [table.title for table in made] == [
            "pages, tiny, retrieval: measures",
            "pages, tiny, retrieval: every pair",
            "pages, tiny, retrieval: nDCG@5 by dimensions",
        ]
        assert [row[0] for row in made[0].rows] == ["F32, images", "F32, OCR text", "BM25, OCR text"]
        assert "nDCG@5 [95%]" in made[0].columns
        assert [row[0] for row in made[2].rows] == ["F32, images", "F32, OCR text"]
    [published] = tables.published(measured)
    assert list(published.columns[3:]) == ["pages", "pages-ocr"]


def test_the_figure_shows_them_side_by_side(measured: list[QualityResult], tmp_path: Path) -> None:
    drawn = {figure.slug: figure for figure in figures.quality(measured)}
    assert list(drawn) == ["pages-retrieval-pages", "matryoshka-retrieval-pages"]
    points = drawn["pages-retrieval-pages"].series[0].points
    assert [point.label for point in points] == ["F32, images", "F32, OCR text", "BM25, OCR text"]
    assert [point.x for point in points] == [one.full.means["nDCG@5"].mean for one in measured]
    report.write(measured, tmp_path)
    assert "pages (3 queries, 5 documents)" not in (tmp_path / "report.md").read_text()
    assert "Images and OCR text" in (tmp_path / "report.md").read_text()


def test_the_command(lines: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = nestling("eval", "quality", model, "--benchmark", lines, "--engine", "reference", "--out", out)
    assert done.code == 0, done.err
    assert "3 result files in" in done.out
    assert {path.name for path in out.iterdir()} == {
        f"quality-{model.stem}-reference-pages.json",
        f"quality-{model.stem}-reference-pages-ocr.json",
        "quality-BM25-retrieval-pages-ocr.json",
    }
    assert len(results.read_all([out])) == 3
