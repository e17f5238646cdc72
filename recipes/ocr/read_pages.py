"""A visual benchmark with the text of its pages, as tesseract reads them: a folder in BEIR layout.

    apt-get install tesseract-ocr tesseract-ocr-deu
    python recipes/ocr/read_pages.py SET OUT --language eng+deu

SET is what `nestling eval quality --benchmark` takes: a folder, or a data set on the hub. OUT is such a folder with
`ocr` beside each image, so that the models' text path and BM25 are measured too.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from nestling.evaluation import data
from nestling.evaluation.data import RetrievalSet


def main() -> int:
    """Read every page; 2 for what cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", help="a visual benchmark")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--language", default="eng", help="tesseract's languages, with + between them")
    given = parser.parse_args()
    benchmark, tesseract = data.load(given.set), shutil.which("tesseract")
    if tesseract is None:
        return _refuse("tesseract is not there; Debian: apt-get install tesseract-ocr")
    if not isinstance(benchmark, RetrievalSet) or not benchmark.pages:
        return _refuse(f"{given.set}: its documents are no images")
    (given.out / "images").mkdir(parents=True)
    (given.out / "qrels").mkdir()
    with (given.out / "corpus.jsonl").open("w") as corpus:
        for number, (one, page) in enumerate(zip(benchmark.document_ids, benchmark.pages, strict=True)):
            image = f"images/{number:06d}"
            (given.out / image).write_bytes(page.read())
            text = _read(tesseract, given.out / image, given.language)
            corpus.write(json.dumps({"_id": one, "image": image, "ocr": text}, ensure_ascii=False) + "\n")
            print(f"\r{number + 1} of {len(benchmark.pages)} pages", end="", file=sys.stderr)
    print(file=sys.stderr)
    _write_queries(benchmark, given.out)
    return 0


def _refuse(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 2


def _read(tesseract: str, page: Path, language: str) -> str:
    done = subprocess.run([tesseract, str(page), "-", "-l", language], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _write_queries(benchmark: RetrievalSet, out: Path) -> None:
    rows = zip(benchmark.query_ids, benchmark.queries, strict=True)
    lines = [json.dumps({"_id": one, "text": text}, ensure_ascii=False) + "\n" for one, text in rows]
    (out / "queries.jsonl").write_text("".join(lines))
    judged = [f"{query}\t{one}\t{grade}" for query, all_ in benchmark.relevant.items() for one, grade in all_.items()]
    (out / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
