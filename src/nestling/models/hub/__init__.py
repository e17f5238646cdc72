"""The Hugging Face hub: list repositories, download files into huggingface_hub's cache, verify, upload.

The only package that imports huggingface_hub; its environment variables (`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
`HF_TOKEN`, `HF_ENDPOINT`) apply. `cache` works on local files, `client` over the network, `metadata` on the front
matter of model cards. Does not know models.
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
from nestling.models.hub.metadata import LICENCE_FILES, check_metadata, is_url

__all__ = [
    "LICENCE_FILES",
    "HubFile",
    "HubReference",
    "Listing",
    "cached_repositories",
    "check_metadata",
    "fetch",
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
