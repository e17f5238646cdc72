"""The local cache of the hub, in the layout that huggingface_hub documents; no network.

    models--org--name/blobs/<oid>                  a file's bytes, named by their hash
    models--org--name/snapshots/<commit>/<name>    a link into blobs
    models--org--name/refs/main                    the commit
    blobs/<2 digits>/<hash>                        bytes shared by several repositories, which link to them

A large file's oid is its SHA-256, a small one's is git's SHA-1 of it.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import urlsplit

from huggingface_hub import constants

SUFFIXES = (".safetensors", ".json", ".gguf")
TEXT_FILES = ("merges.txt", "vocab.txt", "README.md")
"""Text files of tokenizers, and the model card, from which only the licence is read."""
OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256_DIGITS = 64
_PIECE_BYTES = 1 << 20
_REFERENCE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([A-Za-z0-9][\w.-]*))?")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository `org/repo` and a file type in it (None for the default)."""

    repository: str
    quant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse `[hf.co/]org/repo[:QUANT]`, with or without `https://`; None for anything else."""
        bare = re.sub(r"^(?:https?|hf)://", "", text)
        host, _, rest = bare.partition("/")
        found = _REFERENCE.fullmatch(rest if host in _hosts() else bare)
        if found is None or ".." in found[1] or "--" in found[1] or bare.endswith(".gguf"):
            return None
        return cls(found[1], found[2])

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return self.repository + (f":{self.quant}" if self.quant else "")


def _hosts() -> set[str]:
    """Host names that may precede a repository: the hub's, and that of `HF_ENDPOINT`."""
    return {"hf.co", *(urlsplit(url).netloc for url in (constants.HUGGINGFACE_CO_URL_HOME, constants.ENDPOINT))}


def is_readable(name: str) -> bool:
    """True for the kinds of files that are downloaded: weights without code, JSON, tokenizer texts, the model card."""
    return name.endswith(SUFFIXES) or name.rpartition("/")[2] in TEXT_FILES


def repository_folder(repository: str) -> Path:
    """The cache folder of a repository."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def snapshot_of(repository: str) -> Path | None:
    """A repository's cached snapshot of `main`, or its only snapshot; None when there is none."""
    folder = repository_folder(repository)
    ref = folder / "refs" / "main"
    if ref.is_file() and OID.fullmatch(commit := ref.read_text("utf-8", errors="replace").strip()):
        found = folder / "snapshots" / commit
        return found if found.is_dir() else None
    every = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return every[0] if len(every) == 1 else None


def names_in(snapshot: Path) -> list[str]:
    """The existing files of a snapshot, without links that leave the repository's folder and the shared blobs."""
    repository = snapshot.parent.parent.resolve()
    homes = (repository, repository.parent / "blobs")
    found = ((path, path.resolve()) for path in sorted(snapshot.rglob("*")) if path.is_file())
    inside = (path for path, target in found if any(target.is_relative_to(home) for home in homes))
    return [str(PurePosixPath(path.relative_to(snapshot))) for path in inside]


def cached_repositories() -> list[str]:
    """The model repositories in the cache."""
    folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*/"))
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def remove(snapshot: Path, names: Sequence[str]) -> int:
    """Delete files of a snapshot, and their blobs unless another link uses them; returns the bytes freed.

    A repository without remaining files is deleted entirely.
    """
    folder, freed = snapshot.parent.parent, 0
    for name in names:
        blob = _target(snapshot / name)
        (snapshot / name).unlink()
        if blob not in map(_target, (folder / "snapshots").rglob("*")):
            freed += _remove_blob(blob)
    if not any(path.is_symlink() or path.is_file() for path in (folder / "snapshots").rglob("*")):
        shutil.rmtree(folder)
    return freed


def _target(path: Path) -> Path:
    """The target of a link (one step); a path that is not a link is its own target."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def _remove_blob(blob: Path) -> int:
    """Delete a blob, and the shared blob it links to unless another repository uses it; returns the bytes freed."""
    if not blob.exists():
        return 0
    shared, size = _target(blob), blob.stat().st_size
    blob.unlink()
    if shared == blob:
        return size
    store = blob.parents[2] / "blobs"
    others = (path for path in store.parent.glob("*--*/blobs/*") if path.is_symlink())
    if not shared.is_relative_to(store) or any(_target(path) == shared for path in others):
        return 0
    shared.unlink()
    shared.with_name(f"{shared.name}.refs").unlink(missing_ok=True)
    return size


def hash_of(path: Path, *, like: str) -> str:
    """The hash of a file in hex: SHA-256 or git's SHA-1, whichever has as many digits as `like`."""
    with path.open("rb") as source:
        if len(like) == _SHA256_DIGITS:
            return hashlib.file_digest(source, "sha256").hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while piece := source.read(_PIECE_BYTES):
            blob.update(piece)
        return blob.hexdigest()


def known_hash(path: Path) -> str | None:
    """The hub's hash of a cached file, which is the name of its blob; None for any other file."""
    target = _target(path)
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return target.name if in_cache and OID.fullmatch(target.name) else None
