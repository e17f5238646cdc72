"""The server's own pages, and the tries that its first page offers: examples with known answers, one click each.

The texts of the tries are in `playground/tries.json`; their pictures are files of nestling-data, so without that
package, or without Pillow, which decodes them, tries with pictures are left out. Whether a try holds depends on the
model: the page says what it found.
"""

import base64
import json
from pathlib import Path
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from nestling._util.data import data_folder
from nestling._util.extras import need
from nestling.errors import UsageError

FOLDER = Path(__file__).parent / "playground"
TRIES = FOLDER / "tries.json"
POLICY = (
    "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


async def index(_request: Request) -> Response:
    """The page to try the server."""
    return _page("index.html")


async def docs(_request: Request) -> Response:
    """The page of the API."""
    return _page("docs.html")


async def tries(_request: Request) -> Response:
    """The tries, their pictures as base64."""
    return Response(to_json(whole(json.loads(TRIES.read_text("utf-8")))), media_type="application/json")


def whole(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tries as the page gets them: each picture with its bytes; those with pictures need nestling-data and Pillow."""
    try:
        need("PIL", wanted_for="the pictures of the page's tries", extra="images")
        data = data_folder(".", wanted_for="the pictures of the page's tries")
    except UsageError:
        return [one for one in listed if not one["images"]]
    return [{**one, "images": [_picture(data / file) for file in one["images"]]} for one in listed]


def _picture(path: Path) -> dict[str, str]:
    code = base64.b64encode(path.read_bytes()).decode()
    return {"text": path.name, "uri": f"data:image/png;base64,{code}", "base64": code}


def _page(file: str) -> Response:
    return Response((FOLDER / file).read_bytes(), headers=_HEADERS, media_type="text/html; charset=utf-8")


PAGES = {"/": index, "/docs": docs, "/tries": tries}
