"""The hub over the network: list a repository, download its files into the cache, upload a folder.

huggingface_hub's own download does not resume after a killed process and does not verify hashes. So files are
downloaded here to `blobs/<oid>.incomplete`, from which a rerun resumes, and renamed when their hash is the hub's.
Nothing of a repository is executed or unpickled: only files that `is_readable` allows are requested.
"""

import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import huggingface_hub
from huggingface_hub import constants

from nestling._util.files import lock
from nestling._util.progress import Progress, Steps, silent
from nestling._util.version import __version__
from nestling.errors import BuildError, FileFormatError
from nestling.models.hub.cache import OID, hash_of, is_readable, repository_folder
from nestling.models.hub.failures import UnreachableError, check_token, one_line

ATTEMPTS = 5
"""Consecutive attempts without a byte before a download fails."""
WAIT_S = 1.0
"""Wait after an attempt without a byte."""
TIMEOUT_S = 30.0
SPARE_BYTES = 64 << 20
"""Disk space that a download leaves free."""
_FILE_NAME = re.compile(r"(?:[\w][\w.+-]*/)*[\w][\w.+-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PARTIAL, _RANGE_REFUSED = 206, 416


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; `oid` is its SHA-256 in hex, or git's SHA-1 for a small file."""

    name: str
    size_bytes: int
    oid: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The readable files of a repository at one commit, by name."""

    repository: str
    commit: str
    files: dict[str, HubFile]
    odd: tuple[str, ...] = ()
    """Readable files with names that are not safe in every shell and file system."""

    @property
    def snapshot(self) -> Path:
        """The cache folder of this commit."""
        return repository_folder(self.repository) / "snapshots" / self.commit


def _api() -> "huggingface_hub.HfApi":
    """huggingface_hub's client, with telemetry and user-agent details switched off."""
    constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub.HfApi(library_name="nestling", library_version=__version__)


def listing(repository: str) -> Listing:
    """List a repository's main branch.

    ModelNotFoundError when it cannot be reached, does not exist or does not accept the token; FileFormatError when the
    response names a file outside the repository, or has an invalid hash, size or commit.
    """
    check_token()
    try:
        with one_line(repository):
            info = _api().model_info(repository, revision="main", files_metadata=True, timeout=TIMEOUT_S)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileFormatError(
            f"{repository}: {constants.ENDPOINT} does not answer like a Hugging Face hub ({error!r})"
        ) from None
    if not _COMMIT.fullmatch(commit := str(info.sha)):
        raise FileFormatError(f"{repository}: the hub names the commit {commit[:80]!r}: expected 40 hexadecimal digits")
    entries = [entry for entry in info.siblings or () if is_readable(str(entry.rfilename))]
    odd = tuple(str(entry.rfilename) for entry in entries if _is_odd(str(entry.rfilename)))
    files = [_listed(repository, entry) for entry in entries if str(entry.rfilename) not in odd]
    return Listing(repository, commit, {file.name: file for file in files}, odd)


def _is_odd(name: str) -> bool:
    """True for a name with spaces, colons and the like, but inside the repository; such files are not downloaded."""
    parts = name.split("/")
    safe = all(part and part[0] not in ".-~" for part in parts) and name.isprintable() and "\\" not in name
    return safe and not _FILE_NAME.fullmatch(name) and not re.match("[A-Za-z]:", name)


def _listed(repository: str, entry: Any) -> HubFile:  # noqa: ANN401 - huggingface_hub's RepoSibling
    name = str(entry.rfilename)
    if not _FILE_NAME.fullmatch(name):
        raise FileFormatError(
            f"{repository}: the hub lists {name[:120]!r}: expected the plain name of a file in the repository"
        )
    oid, size = (entry.lfs.sha256, entry.lfs.size) if entry.lfs else (entry.blob_id, entry.size)
    if not isinstance(oid, str) or not OID.fullmatch(oid) or type(size) is not int or size < 0:
        raise FileFormatError(f"{repository}: {name}: the hub gives no valid hash and size ({oid!r}, {size!r})")
    return HubFile(name, size, oid)


def fetch(listed: Listing, names: Sequence[str], *, steps: Steps = silent) -> Path:
    """Download the missing ones of a listing's files into the cache; returns the snapshot's folder.

    Resumes interrupted downloads. BuildError when the disk is too small or full, FileFormatError when size or hash are
    not the hub's, ModelNotFoundError when the connection fails repeatedly.
    """
    wanted = [listed.files[name] for name in names]
    folder = repository_folder(listed.repository)
    try:
        with lock(Path(constants.HF_HUB_CACHE) / ".locks" / folder.name / "nestling.lock", what=str(folder)):
            _fetch_missing(listed, folder, wanted, steps)
            for file in wanted:
                _link(listed.snapshot, file)
            _set_main(folder, listed.commit)
    except OSError as error:
        raise BuildError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from error
    return listed.snapshot


def _fetch_missing(listed: Listing, folder: Path, wanted: Sequence[HubFile], steps: Steps) -> None:
    missing = {file.oid: file for file in wanted if not (folder / "blobs" / file.oid).is_file()}
    _check_space(folder, missing.values())
    for file in missing.values():
        _fetch_blob(listed, file, folder / "blobs" / file.oid, steps(file.name))


def _check_space(folder: Path, missing: Iterable[HubFile]) -> None:
    parts = {file: folder / "blobs" / f"{file.oid}.incomplete" for file in missing}
    sizes = [max(file.size_bytes - (part.stat().st_size if part.is_file() else 0), 0) for file, part in parts.items()]
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    needed, free = sum(sizes) + SPARE_BYTES, shutil.disk_usage(parent).free
    if sizes and needed > free:
        raise BuildError(
            f"{folder}: {needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free; free disk space, "
            "or set HF_HOME to a folder on a larger disk"
        )


def _fetch_blob(listed: Listing, file: HubFile, blob: Path, progress: Progress) -> None:
    part = blob.with_name(f"{blob.name}.incomplete")
    part.parent.mkdir(parents=True, exist_ok=True)
    what = f"{listed.repository}: {file.name}"
    url = huggingface_hub.hf_hub_url(listed.repository, file.name, revision=listed.commit)
    try:
        with part.open("ab") as out:
            _fetch_all(url, out, what=what, size=file.size_bytes, progress=progress)
            os.fsync(out.fileno())
        _verify(what, file, part)
        part.replace(blob)
    except OSError as error:
        raise BuildError(f"{part}: cannot be written: {error.strerror or error}") from error


def _fetch_all(url: str, out: BinaryIO, *, what: str, size: int, progress: Progress) -> None:
    """Download a file completely; each attempt resumes where the last one, of this run or an earlier one, ended."""
    fruitless, furthest = 0, out.tell()
    if furthest > size:
        _empty(out)
    while out.tell() < size:
        reason = UnreachableError(f"{what}: the hub sends fewer than the announced {size} bytes")
        try:
            with one_line(what):
                _receive(url, out, what=what, size=size, progress=progress)
        except UnreachableError as error:
            reason = error
        fruitless, furthest = (0, out.tell()) if out.tell() > furthest else (fruitless + 1, furthest)
        if fruitless >= ATTEMPTS:
            raise reason
        time.sleep(WAIT_S if fruitless else 0)


def _receive(url: str, out: BinaryIO, *, what: str, size: int, progress: Progress) -> None:
    """Append missing bytes, never beyond `size`; may end early with the connection."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented, but not in its __all__

    headers = build_hf_headers(library_name="nestling", library_version=__version__) | {"Accept-Encoding": "identity"}
    if start := out.tell():
        headers["Range"] = f"bytes={start}-"
    session = huggingface_hub.get_session()
    with session.stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        if response.status_code == _RANGE_REFUSED:
            return _empty(out)
        huggingface_hub.hf_raise_for_status(response)
        if start and response.status_code != _PARTIAL:  # the server sends the whole file again
            _empty(out)
        elif start and not _continues(response.headers.get("Content-Range", ""), start, size):
            raise UnreachableError(f"{what}: the hub answers with a range other than bytes {start} to {size - 1}")
        for piece in response.iter_raw():  # unbuffered: an interruption loses nothing, and nothing is decompressed
            if out.tell() + len(piece) > size:
                _empty(out)
                raise FileFormatError(f"{what}: the hub sends more than the announced {size} bytes")
            out.write(piece)
            out.flush()
            progress(out.tell(), size)
    return None


def _continues(content_range: str, start: int, size: int) -> bool:
    """True for a `Content-Range` (RFC 9110, 14.4) that begins at `start`, of a file of `size` bytes."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range.strip())
    return found is not None and int(found[1]) == start and found[2] in ("*", str(size))


def _empty(out: BinaryIO) -> None:
    out.seek(0)
    out.truncate()


def _verify(what: str, file: HubFile, part: Path) -> None:
    found = hash_of(part, like=file.oid)
    if found != file.oid:
        part.unlink()
        raise FileFormatError(
            f"{what}: the downloaded file has the hash {found}, expected {file.oid}; it was deleted. "
            "Pull again; if that fails too, do not trust the source"
        )


def _link(snapshot: Path, file: HubFile) -> None:
    pointer = snapshot / file.name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not pointer.exists():
        pointer.unlink(missing_ok=True)
        pointer.symlink_to("../" * (2 + file.name.count("/")) + f"blobs/{file.oid}")


def _set_main(folder: Path, commit: str) -> None:
    """Record the commit of `main`, atomically; the temporary file is outside `refs`."""
    part = folder / ".main.part"
    with part.open("w", encoding="utf-8") as out:
        out.write(commit)
        out.flush()
        os.fsync(out.fileno())
    (folder / "refs").mkdir(exist_ok=True)
    part.replace(folder / "refs" / "main")


def upload(repository: str, files: Mapping[str, Path | bytes], *, message: str, private: bool) -> str:
    """Upload files (paths or bytes by name) as one commit, creating the repository if needed; returns its URL."""
    adds = [huggingface_hub.CommitOperationAdd(name, content) for name, content in files.items()]
    api = _api()
    with one_line(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, adds, commit_message=message)
    return str(done.commit_url)
