"""The hub's cache on this machine, in the layout that huggingface_hub documents; no network.

    models--org--name/blobs/<oid>                  a file's bytes, named by their hash
    models--org--name/snapshots/<commit>/<name>    a link into blobs
    models--org--name/refs/main                    the commit

A large file's oid is its SHA-256, a small one's is git's SHA-1 of it.
"""

import hashlib
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
"""Text of a tokenizer, and the card, of which only the licence is read."""
OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256_DIGITS = 64
_PIECE_BYTES = 1 << 20
_REFERENCE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([A-Za-z0-9][\w.-]*))?")


@dataclass(frozen=True, slots=True)
class HubReference:
    """`org/repo`, and the file type that is wanted of it (None for the default)."""

    repository: str
    quant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `[hf.co/]org/repo[:QUANT]`, with or without `https://`; None for what is not of this form."""
        bare = re.sub(r"^(?:https?|hf)://", "", text)
        host, _, rest = bare.partition("/")
        found = _REFERENCE.fullmatch(rest if host in _hosts() else bare)
        if found is None or ".." in found[1] or "--" in found[1] or bare.endswith(".gguf"):
            return None
        return cls(found[1], found[2])

    def __str__(self) -> str:
        """The reference as `parse` reads it."""
        return self.repository + (f":{self.quant}" if self.quant else "")


def _hosts() -> set[str]:
    """What may stand in front of a repository: the hub's names, and the one of `HF_ENDPOINT`."""
    return {"hf.co", *(urlsplit(url).netloc for url in (constants.HUGGINGFACE_CO_URL_HOME, constants.ENDPOINT))}


def is_readable(name: str) -> bool:
    """True for the kinds of file that are ever downloaded: weights without code, JSON, a tokenizer's text, the card."""
    return name.endswith(SUFFIXES) or name.rpartition("/")[2] in TEXT_FILES


def repository_folder(repository: str) -> Path:
    """Where the cache keeps a repository."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def snapshot_of(repository: str) -> Path | None:
    """The snapshot of `main` (or the only one) of a repository in the cache; None when there is none."""
    folder = repository_folder(repository)
    ref = folder / "refs" / "main"
    if ref.is_file() and OID.fullmatch(commit := ref.read_text("utf-8", errors="replace").strip()):
        found = folder / "snapshots" / commit
        return found if found.is_dir() else None
    every = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return every[0] if len(every) == 1 else None


def names_in(snapshot: Path) -> list[str]:
    """The files of a snapshot that are there and lie in its repository's folder, wherever its links lead."""
    home = snapshot.parent.parent.resolve()
    paths = sorted(path for path in snapshot.rglob("*") if path.is_file() and path.resolve().is_relative_to(home))
    return [str(PurePosixPath(path.relative_to(snapshot))) for path in paths]


def cached_repositories() -> list[str]:
    """The model repositories in the cache."""
    folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*/"))
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def remove(snapshot: Path, names: Sequence[str]) -> int:
    """Take files out of a snapshot, and their bytes with them unless another name has them; -> bytes freed.

    A repository of which nothing is left goes whole.
    """
    folder, freed = snapshot.parent.parent, 0
    for name in names:
        blob = (snapshot / name).resolve()
        (snapshot / name).unlink()
        others = (path.resolve() for path in (folder / "snapshots").rglob("*") if path.is_symlink())
        if blob.parent == (folder / "blobs").resolve() and blob not in others:
            freed += blob.stat().st_size
            blob.unlink()
    if not any(path.is_symlink() or path.is_file() for path in (folder / "snapshots").rglob("*")):
        shutil.rmtree(folder)
    return freed


def hash_of(path: Path, *, like: str) -> str:
    """The hash of a file's bytes in hex, SHA-256 or git's SHA-1, whichever has as many digits as `like`."""
    with path.open("rb") as source:
        if len(like) == _SHA256_DIGITS:
            return hashlib.file_digest(source, "sha256").hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while piece := source.read(_PIECE_BYTES):
            blob.update(piece)
        return blob.hexdigest()


def known_hash(path: Path) -> str | None:
    """The hash that the hub gave for a file of its cache (its blob's name); None for any other file."""
    target = path.resolve()
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return target.name if in_cache and OID.fullmatch(target.name) else None
