"""The shipped sets of images are measured by `nestling eval quality`, as a newcomer would do it."""

from pathlib import Path

from tests.command_line import nestling

from nestling.evaluation import results
from nestling.evaluation.results import QualityResult


def test_pages_and_emoji_are_measured_by_one_command(starter_q8: Path, tmp_path: Path) -> None:
    """Pages as images, as OCR text and by BM25; emoji as images only, since there is nothing to read on them."""
    sets = ("--benchmark", "pages-en", "--benchmark", "emoji-names")
    done = nestling("eval", "quality", starter_q8, *sets, "--out", tmp_path)
    assert done.code == 0, done.err
    found = [one for one in results.read_all([tmp_path]) if isinstance(one, QualityResult)]
    measured = {(one.benchmark.name, one.benchmark.queries, one.benchmark.documents) for one in found}
    assert measured == {("pages-en", 134, 134), ("pages-en-ocr", 134, 134), ("emoji-names", 800, 400)}
    assert len(found) == 4, "BM25 is a row of its own"
