"""The hub: what its repositories hold, and files of theirs in huggingface_hub's own cache, whole and verified.

The only package that imports huggingface_hub, whose variables (`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
`HF_TOKEN`, `HF_ENDPOINT`) mean here what they mean there. `cache` is what lies on this machine, `client` what comes
over the network, `metadata` the head of a card. Knows no model.
"""

from nestling.models.hub.cache import (
    HubReference,
    cached_repositories,
    hash_of,
    is_readable,
    known_hash,
    names_in,
    remove,
    repository_folder,
    snapshot_of,
)
from nestling.models.hub.client import HubFile, Listing, fetch, listing, upload
from nestling.models.hub.metadata import LICENCE_FILES, check_metadata, front_matter, is_url

__all__ = [
    "LICENCE_FILES",
    "HubFile",
    "HubReference",
    "Listing",
    "cached_repositories",
    "check_metadata",
    "fetch",
    "front_matter",
    "hash_of",
    "is_readable",
    "is_url",
    "known_hash",
    "listing",
    "names_in",
    "remove",
    "repository_folder",
    "snapshot_of",
    "upload",
]
