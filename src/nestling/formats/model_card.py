"""The YAML front matter of a model's README.md, read and written by huggingface_hub. No network, no rules of the hub.

huggingface_hub is imported on first use: it is slow to load.
"""

from collections.abc import Mapping
from typing import Any

from nestling.errors import FileFormatError

_DASHES = "---"
_MAX_REASON = 160
"""Most characters of the library's own error in a message."""


def read_front_matter(text: str, *, strict: bool = False) -> dict[str, Any]:
    """The fields of the front matter; empty without one.

    FileFormatError for front matter that is not a YAML mapping, and if `strict` for fields that the library refuses.
    """
    start, _, rest = text.lstrip().partition("\n")
    if start.strip() != _DASHES or f"\n{_DASHES}" not in "\n" + rest:
        return {}
    import huggingface_hub
    import yaml

    try:
        card: Any = huggingface_hub.ModelCard(text, ignore_metadata_errors=not strict)
        fields: dict[str, Any] = card.data.to_dict()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise FileFormatError(f"README.md: invalid front matter ({reason})") from None
    return fields


def write_front_matter(fields: Mapping[str, Any]) -> str:
    """Front matter with its delimiters."""
    import huggingface_hub

    return f"{_DASHES}\n{huggingface_hub.ModelCardData(**fields).to_yaml()}\n{_DASHES}\n\n"
