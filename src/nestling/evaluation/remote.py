"""One keep-alive connection to an OpenAI-compatible server. Does not know prompts, roles or tasks.

Requests to busy servers (429, 503) are retried after the time in `Retry-After`. An API key is read from
`NESTLING_EVAL_API_KEY`.
"""

import base64
import binascii
import json
import os
import re
import time
from typing import Any

import httpx
import numpy as np

from nestling.errors import EngineError, UsageError
from nestling.vectors import Floats

KEY_VARIABLE = "NESTLING_EVAL_API_KEY"
TIMEOUT_S = 600
ATTEMPTS = 8
LONGEST_WAIT_S = 30.0
_STAGE = re.compile(r'^nestling_stage_seconds_sum\{stage="(\w+)"\} ([0-9.e+-]+)$', re.MULTILINE)
_OK, _BUSY = 200, (429, 503)


class Connection:
    """A connection to a server by its base URL, `http://host:port/v1`; not thread-safe."""

    def __init__(self, url: str) -> None:
        base = _base(url)
        path = base.path.rstrip("/")
        self.url, self._path = url, base.copy_with(path=(path or "/v1") + "/embeddings")
        self._stages_path = base.copy_with(path=path.removesuffix("/v1") + "/metrics")
        self._inner = httpx.Client(timeout=TIMEOUT_S, trust_env=False)

    def embed(self, body: dict[str, Any]) -> Floats:
        """Post an embeddings request: -> (B, D) float32 in the order of its input."""
        asked = json.dumps({**body, "encoding_format": "base64"}).encode()
        return self.vectors(self.post(asked))

    def post(self, body: bytes) -> bytes:
        """Post a request and return the response body; EngineError for any failure."""
        for attempt in range(1, ATTEMPTS + 1):
            status, wait, answer = self._once(body)
            if status == _OK:
                return answer
            if status not in _BUSY or attempt == ATTEMPTS:
                break
            time.sleep(wait)
        raise EngineError(f"{self.url}: status {status}: {' '.join(answer.decode('utf-8', 'replace').split())[:200]}")

    def stages(self) -> dict[str, float]:
        """Total seconds of all requests by stage, from the `/metrics` of nestling's server; empty for other servers."""
        try:
            text = self._inner.get(self._stages_path).text
        except httpx.HTTPError:
            return {}
        return {stage: float(value) for stage, value in _STAGE.findall(text)}

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def vectors(self, answer: bytes) -> Floats:
        """The vectors in a response, as floats or base64."""
        try:
            items = sorted(json.loads(answer)["data"], key=lambda item: item["index"])
            return np.stack([_row(item["embedding"]) for item in items])
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise EngineError(f"{self.url}: not an embeddings response ({error})") from None

    def _once(self, body: bytes) -> tuple[int, float, bytes]:
        headers = {"Content-Type": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        try:
            response = self._inner.post(self._path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise EngineError(f"{self.url}: no response ({error or type(error).__name__})") from None
        return response.status_code, _wait(response.headers.get("Retry-After")), response.content


def _base(url: str) -> httpx.URL:
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL:
        base = httpx.URL("")
    if base.scheme not in ("http", "https") or not base.host:
        raise UsageError(f"url={url!r}: expected http://host:port/v1", param="url")
    return base


def _key() -> str | None:
    """The key, if there is one; UsageError for one that an HTTP header cannot hold, which is not shown."""
    key = os.environ.get(KEY_VARIABLE)
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(f"{KEY_VARIABLE}: expected printable ASCII characters; copy the key again", param="key")
    return key


def _wait(header: str | None) -> float:
    try:
        return min(float(header or 1), LONGEST_WAIT_S)
    except ValueError:
        return 1.0


def _row(embedding: str | list[float]) -> Floats:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    return np.array(embedding, np.float32)
