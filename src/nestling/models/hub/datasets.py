"""Benchmarks on the Hugging Face hub: their names there, and a folder of one's files."""

import re
from pathlib import Path

from nestling.errors import ModelNotFoundError

NANOBEIR = (
    "ArguAna", "ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ",
    "QuoraRetrieval", "SCIDOCS", "SciFact", "Touche2020",
)  # fmt: skip
"""The thirteen sets, as the repositories `zeta-alpha-ai/Nano...` are called."""

_PATTERNS = ["*.jsonl", "*.tsv", "*.parquet", "*/*.jsonl", "*/*.tsv", "*/*.parquet", "images/*"]


def repository(name: str) -> str | None:
    """The data set that a name means: a NanoBEIR set in any case, with or without its year, or `org/name`."""
    for known in NANOBEIR:
        if name.lower() in (f"nano{known}".lower(), re.sub(r"20\d\d$", "", f"nano{known}").lower()):
            return f"zeta-alpha-ai/Nano{known}"
    return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) else None


def fetch(data_set: str) -> Path:
    """Download a data set's tables and images, or find them in the hub's cache; ModelNotFoundError if neither works."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(data_set, repo_type="dataset", allow_patterns=_PATTERNS))
    except Exception as error:  # noqa: BLE001 - the library raises its own, requests', httpx' and OS errors
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelNotFoundError(
            f"{data_set}: the hub's data set is not on this machine and cannot be fetched ({reason})"
        ) from None
