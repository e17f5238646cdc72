"""Benchmark data sets on the Hugging Face hub: their names, and downloads."""

import re
from pathlib import Path

from nestling.errors import ModelNotFoundError

NANOBEIR = (
    "ArguAna", "ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ",
    "QuoraRetrieval", "SCIDOCS", "SciFact", "Touche2020",
)  # fmt: skip
"""The thirteen NanoBEIR sets, by the names of the repositories `zeta-alpha-ai/Nano...`."""

_PATTERNS = ["*.jsonl", "*.tsv", "*.parquet", "*/*.jsonl", "*/*.tsv", "*/*.parquet", "images/*"]


def repository(name: str) -> str | None:
    """The repository of a data set: a NanoBEIR name in any case, with or without its year, or `org/name`."""
    for known in NANOBEIR:
        if name.lower() in (f"nano{known}".lower(), re.sub(r"20\d\d$", "", f"nano{known}").lower()):
            return f"zeta-alpha-ai/Nano{known}"
    return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) else None


def fetch(data_set: str) -> Path:
    """Download a data set's tables and images, or find them in the hub's cache; ModelNotFoundError if neither works."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(data_set, repo_type="dataset", allow_patterns=_PATTERNS))
    except Exception as error:  # noqa: BLE001 - huggingface_hub raises its own errors, those of HTTP libraries and OSError
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelNotFoundError(
            f"{data_set}: this data set is not in the hub's cache and cannot be downloaded ({reason})"
        ) from None
