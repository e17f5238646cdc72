"""A hub on loopback: the protocol that huggingface_hub speaks, as far as nestling uses it, and its faults on demand.

Served: a repository's listing with hashes, `resolve` with ETag, X-Linked-Etag, X-Linked-Size, X-Repo-Commit and the
redirect of large files to another host, ranges, and uploads small enough to come inside the commit. Every request is
remembered.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from nestling.models.hub import client

COMMIT = "c0ffee" + "0" * 34
PIECE_BYTES = 1 << 16
LARGE_BYTES = 1000
"""Files from this size on are large ones (LFS): hashed with SHA-256 and served by another host's name."""


@dataclass
class Fault:
    """What is wrong with a file: each request for its bytes takes the next cut; a pause follows each 64 KiB."""

    cuts: list[int] = field(default_factory=list)
    content: bytes | None = None
    surplus: bytes = b""
    status: int = 200
    ignores_ranges: bool = False
    pause_s: float = 0.0


@dataclass
class Request:
    """A request as it came."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    agent: str | None


class HubServer(ThreadingHTTPServer):
    """The server: put files into `repositories`, and faults by file name into `faults`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.faults: dict[str, Fault] = {}
        self.changes: dict[str, dict[str, Any]] = {}
        self.requests: list[Request] = []
        self.commits: list[list[dict[str, Any]]] = []
        self.answer: dict[str, Any] = {}

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients here are cut off and killed."""

    def downloads(self, name: str) -> list[str | None]:
        """The ranges that were asked of a file's bytes, in order."""
        oids = {oid_of(files[name]) for files in self.repositories.values() if name in files}
        paths = {f"/cdn/{oid}" for oid in oids}
        hits = (one for one in self.requests if one.method == "GET")
        return [one.range for one in hits if one.path in paths or one.path.endswith(f"/resolve/{COMMIT}/{name}")]


def oid_of(content: bytes) -> str:
    """SHA-256 of a large file, git's hash of a small one."""
    if len(content) >= LARGE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def use(server: HubServer, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Make it this process's hub, emptied of all that a test gave it, with a cache of its own and without waiting."""
    for held in (server.repositories, server.faults, server.changes, server.answer, server.requests, server.commits):
        held.clear()
    patch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(client, "WAIT_S", 0)


@contextmanager
def running() -> Iterator[HubServer]:
    """A hub that listens."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        self._remember()
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._listing("/".join(parts[2:4]))
        elif parts[0] == "cdn":
            self._bytes(*self._by_oid(parts[1]))
        elif "resolve" in parts:
            self._resolve("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._json(404, {"error": "not here"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._remember()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            raw = json.loads(body)
            name = f"{raw['organization']}/{raw['name']}"
            self.server.repositories.setdefault(name, {})
            self._json(200, {"url": f"{self.server.endpoint}/{name}"})
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif "/preupload/" in path:
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]
            self._json(200, {"files": modes})
        elif "/commit/" in path:
            self._commit("/".join(path.split("/")[3:5]), body)
        else:
            self._json(404, {"error": "not here"})

    def _validate(self, card: str) -> None:
        """What the hub asks of the licence `other` (its `modelcard.md`)."""
        head = huggingface_hub.ModelCard(card).data
        link = str(head.get("license_link"))
        linked = link in ("LICENSE", "LICENSE.md") or link.startswith("https://")
        sound = head.get("license") != "other" or (head.get("license_name") and linked)
        errors = [] if sound else [{"message": '"license_link" must be LICENSE, LICENSE.md or an address'}]
        self._json(200 if sound else 400, {"errors": errors, "warnings": []})

    def _commit(self, repository: str, body: bytes) -> None:
        operations = [json.loads(line) for line in body.splitlines()]
        self.server.commits.append(operations)
        for one in operations:
            if one["key"] == "file":
                content = base64.b64decode(one["value"]["content"])
                self.server.repositories[repository][one["value"]["path"]] = content
        url = f"{self.server.endpoint}/{repository}/commit/{COMMIT}"
        self._json(200, {"commitUrl": url, "commitOid": COMMIT})

    def _listing(self, repository: str) -> None:
        files = self.server.repositories.get(repository)
        if files is None:
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        assert parse_qs(urlsplit(self.path).query).get("blobs")
        entries = [self._entry(name, content) for name, content in files.items()]
        self._json(200, {"id": repository, "sha": COMMIT, "siblings": entries} | self.server.answer)

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
        if len(content) >= LARGE_BYTES:
            entry["lfs"] = {"size": len(content), "sha256": oid_of(content), "pointerSize": 134}
        else:
            entry["blobId"] = oid_of(content)
        return entry | self.server.changes.get(name, {})

    def _resolve(self, repository: str, name: str) -> None:
        content = self.server.repositories.get(repository, {}).get(name)
        if content is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        oid = oid_of(content)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{oid}"'}
        if len(content) < LARGE_BYTES:
            self._bytes(name, content, headers)
            return
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self._send(302, b"", headers | {"Location": f"http://localhost:{self.server.server_address[1]}/cdn/{oid}"})

    def _by_oid(self, oid: str) -> tuple[str, bytes]:
        every = (one for files in self.server.repositories.values() for one in files.items())
        return next((name, content) for name, content in every if oid_of(content) == oid)

    def _bytes(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        fault = self.server.faults.get(name, Fault())
        if fault.status != 200:
            self._json(fault.status, {"error": "at your service"})
            return
        whole = (content if fault.content is None else fault.content) + fault.surplus
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.headers["Range"] else 0
        if start and start >= len(whole):
            self._send(416, b"", {"Content-Range": f"bytes */{len(whole)}"})
            return
        start = 0 if fault.ignores_ranges else start
        extra = {"Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"} if start else {}
        cut = fault.cuts.pop(0) if fault.cuts else None
        with suppress(ConnectionError):  # the client was killed
            self._send(206 if start else 200, whole[start:], (headers or {}) | extra, cut=cut, pause_s=fault.pause_s)

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None, pause_s: float = 0
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            step = PIECE_BYTES if pause_s else len(body) + 1
            for at in range(0, len(body) if cut is None else cut, step):
                self.wfile.write(body[at : min(at + step, len(body) if cut is None else cut)])
                time.sleep(pause_s)
        if cut is not None:
            self.close_connection = True

    def _remember(self) -> None:
        path = urlsplit(self.path).path
        headers = self.headers
        one = Request(self.command, path, headers["Range"], headers["Authorization"], headers["User-Agent"])
        self.server.requests.append(one)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
