"""A small visual benchmark made by script: pages of text drawn with Pillow, questions, and graded judgements."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw
from pyarrow import parquet

TEXTS = (
    "revenue of the river works grew by four percent",
    "the socket is opened before the pump is started",
    "birds rest on the wires in the evening",
    "",
    "revenue of the pump works fell",
)
QUERIES = {11: "how did revenue grow", 12: "when is the socket opened", 13: "where do birds rest"}
GRADES = {(11, 101): 2, (11, 105): 1, (12, 102): 1, (13, 103): 1, (13, 101): 0}
"""Query and page -> grade; pages are numbered from 101."""


def page(text: str) -> bytes:
    """A page of words as a PNG."""
    image = Image.new("RGB", (112, 84), "white")
    draw = ImageDraw.Draw(image)
    words = text.split()
    for line in range(0, len(words), 3):
        draw.text((4, 4 + 4 * line), " ".join(words[line : line + 3]), fill="black")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_lines(folder: Path, *, ocr: bool = True) -> Path:
    """BEIR layout: corpus.jsonl with a folder of images beside it."""
    (folder / "images").mkdir(parents=True)
    corpus = []
    for number, text in enumerate(TEXTS, 101):
        (folder / "images" / f"{number}.png").write_bytes(page(text))
        corpus.append({"_id": str(number), "image": f"images/{number}.png"} | ({"ocr": text} if ocr else {}))
    write_rows(folder / "corpus.jsonl", corpus)
    write_rows(folder / "queries.jsonl", [{"_id": str(one), "text": text} for one, text in QUERIES.items()])
    qrels = [f"{query}\t{document}\t{grade}" for (query, document), grade in GRADES.items()]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]))
    return folder


def write_parquet(folder: Path, *, ocr: bool = True) -> Path:
    """ViDoRe's layout: three tables of parquet, ids that are numbers, images as the hub's data sets store them."""
    images = [{"bytes": page(text), "path": None} for text in TEXTS]
    corpus: dict[str, Any] = {"corpus-id": list(range(101, 101 + len(TEXTS))), "image": images}
    tables = {
        "corpus": corpus | ({"ocr": list(TEXTS)} if ocr else {}),
        "queries": {"query-id": list(QUERIES), "query": list(QUERIES.values())},
        "qrels": {
            "query-id": [query for query, _ in GRADES],
            "corpus-id": [document for _, document in GRADES],
            "score": [float(grade) for grade in GRADES.values()],
        },
    }
    for name, columns in tables.items():
        (folder / name).mkdir(parents=True)
        parquet.write_table(pa.table(columns), folder / name / "test-00000-of-00001.parquet", row_group_size=2)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
