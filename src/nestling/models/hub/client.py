"""The hub over the network: what a repository holds, its files brought into the cache, a folder sent to it.

huggingface_hub's own download starts again when its process was killed, and does not check what came. So the bytes are
fetched here, into `blobs/<oid>.incomplete`, from which a rerun resumes, and get their final name when the hub's hash of
them is right. Nothing of a repository is executed or unpickled: only names that `is_readable` allows are asked for.
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
"""In a row that bring nothing, before a download is given up."""
WAIT_S = 1.0
"""Before an attempt that follows one which brought nothing."""
TIMEOUT_S = 30.0
SPARE_BYTES = 64 << 20
"""Free space that a download leaves over."""
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
    """What a repository held at one commit: the readable files, by name."""

    repository: str
    commit: str
    files: dict[str, HubFile]
    odd: tuple[str, ...] = ()
    """Readable files whose names are inside the repository, but not fit for every shell and file system."""

    @property
    def snapshot(self) -> Path:
        """Where the files of this commit lie in the cache."""
        return repository_folder(self.repository) / "snapshots" / self.commit


def _api() -> huggingface_hub.HfApi:
    """The library's client, which is kept from telling the hub what else is installed and which program calls it."""
    constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub.HfApi(library_name="nestling", library_version=__version__)


def listing(repository: str) -> Listing:
    """Ask the hub what a repository holds on its main branch.

    ModelNotFoundError when it cannot be reached, does not exist or is closed to this token; FileFormatError when the
    answer names a file outside the repository, or has no sound hash, size or commit.
    """
    check_token()
    try:
        with one_line(repository):
            info = _api().model_info(repository, revision="main", files_metadata=True, timeout=TIMEOUT_S)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileFormatError(f"{repository}: {constants.ENDPOINT} does not answer as a hub ({error!r})") from None
    if not _COMMIT.fullmatch(commit := str(info.sha)):
        raise FileFormatError(
            f"{repository}: the hub names the commit {commit[:80]!r}; 40 hexadecimal digits are right"
        )
    entries = [entry for entry in info.siblings or () if is_readable(str(entry.rfilename))]
    odd = tuple(str(entry.rfilename) for entry in entries if _is_odd(str(entry.rfilename)))
    files = [_listed(repository, entry) for entry in entries if str(entry.rfilename) not in odd]
    return Listing(repository, commit, {file.name: file for file in files}, odd)


def _is_odd(name: str) -> bool:
    """True for a name with blanks, colons and the like, which leads nowhere else; such a file is never fetched."""
    parts = name.split("/")
    safe = all(part and part[0] not in ".-~" for part in parts) and name.isprintable() and "\\" not in name
    return safe and not _FILE_NAME.fullmatch(name) and not re.match("[A-Za-z]:", name)


def _listed(repository: str, entry: Any) -> HubFile:  # noqa: ANN401 - huggingface_hub's RepoSibling
    name = str(entry.rfilename)
    if not _FILE_NAME.fullmatch(name):
        raise FileFormatError(f"{repository}: the hub lists {name[:120]!r}, which is no plain name of a file inside it")
    oid, size = (entry.lfs.sha256, entry.lfs.size) if entry.lfs else (entry.blob_id, entry.size)
    if not isinstance(oid, str) or not OID.fullmatch(oid) or type(size) is not int or size < 0:
        raise FileFormatError(f"{repository}: {name}: the hub gives no sound hash and size for it ({oid!r}, {size!r})")
    return HubFile(name, size, oid)


def fetch(listed: Listing, names: Sequence[str], *, steps: Steps = silent) -> Path:
    """Bring files of a listing into the cache, those that are missing; -> the snapshot's folder.

    Resumes what an earlier run left. BuildError when the disk is too small or full, FileFormatError when what
    comes is not what the hub said, ModelNotFoundError when it stops coming.
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
            f"{folder}: {needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free; make room, "
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
    """Receive until all is there: an attempt resumes where the last one, of this run or another, was cut."""
    fruitless, furthest = 0, out.tell()
    if furthest > size:
        _empty(out)
    while out.tell() < size:
        reason = UnreachableError(f"{what}: the hub sends less than the {size} bytes that it said")
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
    """Append what is missing; may end early when the connection does, never takes more than `size` bytes."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented, but not in its __all__

    headers = build_hf_headers(library_name="nestling", library_version=__version__) | {"Accept-Encoding": "identity"}
    if start := out.tell():
        headers["Range"] = f"bytes={start}-"
    session = huggingface_hub.get_session()
    with session.stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        if response.status_code == _RANGE_REFUSED:
            return _empty(out)
        huggingface_hub.hf_raise_for_status(response)
        if start and response.status_code != _PARTIAL:  # the whole file comes again
            _empty(out)
        elif start and not _continues(response.headers.get("Content-Range", ""), start, size):
            raise UnreachableError(f"{what}: the hub answers another range than bytes {start} to {size - 1}")
        for piece in response.iter_raw():  # as it comes: a cut loses nothing, and nothing is unpacked
            if out.tell() + len(piece) > size:
                _empty(out)
                raise FileFormatError(f"{what}: the hub sends more than the {size} bytes that it said")
            out.write(piece)
            out.flush()
            progress(out.tell(), size)
    return None


def _continues(content_range: str, start: int, size: int) -> bool:
    """True for a `Content-Range` (RFC 9110, 14.4) that begins where we stopped, in a file as long as was said."""
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
            f"{what}: what came has the hash {found}, the hub says {file.oid}; it was thrown away. "
            "Pull again; if that ends the same, do not trust the source"
        )


def _link(snapshot: Path, file: HubFile) -> None:
    pointer = snapshot / file.name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not pointer.exists():
        pointer.unlink(missing_ok=True)
        pointer.symlink_to("../" * (2 + file.name.count("/")) + f"blobs/{file.oid}")


def _set_main(folder: Path, commit: str) -> None:
    """Say which commit `main` is, whole or not at all; the half file lies where nobody looks for references."""
    part = folder / ".main.part"
    with part.open("w", encoding="utf-8") as out:
        out.write(commit)
        out.flush()
        os.fsync(out.fileno())
    (folder / "refs").mkdir(exist_ok=True)
    part.replace(folder / "refs" / "main")


def upload(repository: str, files: Mapping[str, Path | bytes], *, message: str, private: bool) -> str:
    """Make the repository if need be and send files (paths or bytes by name) as one commit; -> its address."""
    adds = [huggingface_hub.CommitOperationAdd(name, content) for name, content in files.items()]
    api = _api()
    with one_line(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, adds, commit_message=message)
    return str(done.commit_url)
