"""An open jina-embeddings-v4 checkpoint: configuration, tensors by one naming scheme, LoRA adapters by task.

Opening reads headers and configuration only; weights are read row by row when needed. Nothing in the folder is
executed or unpickled: only the JSON and safetensors files named here are opened. Does not know GGUF.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from nestling._util.hashes import sha256_of
from nestling._util.text import read_text
from nestling.errors import CheckpointError, FileFormatError
from nestling.formats.model_card import read_front_matter
from nestling.formats.safetensors import Floats, StoredTensor, read_header
from nestling.pipeline.conversion.config import AdapterConfig, TextConfig
from nestling.pipeline.conversion.snapshot import Folder

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapters/adapter_config.json"
ADAPTER_MODEL = "adapters/adapter_model.safetensors"
LICENCE_FIELDS = ("license", "license_name", "license_link")
_ADAPTER_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<task>[^.]+)\.weight")
_NEWER_PREFIXES = {"model.language_model.": "model.", "model.visual.": "visual."}


@dataclass(frozen=True, slots=True)
class Adapter:
    """The LoRA adapter of one weight matrix for one task: `a` is (rank, in), `b` is (out, rank)."""

    a: StoredTensor
    b: StoredTensor

    @property
    def parameters(self) -> int:
        """Number of weights in A and B."""
        return self.a.parameters + self.b.parameters


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: `tensors` by name (the older naming scheme), `adapters` by task and module."""

    folder: Folder
    config: TextConfig
    adapter_config: AdapterConfig
    tensors: dict[str, StoredTensor]
    adapters: dict[str, dict[str, Adapter]]
    tokenizer_json: Path

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a plain folder, a hub cache folder or one of its snapshots; CheckpointError for an invalid one."""
        files = Folder.open(folder)
        config = TextConfig.from_json(files.json("config.json"), path=files.path / "config.json")
        adapter_config = AdapterConfig.from_json(
            files.json(ADAPTER_CONFIG), task_names=config.task_names, path=files.path / ADAPTER_CONFIG
        )
        tensors = _by_older_name(_stored_tensors(files))
        adapters = _adapters(files.file(ADAPTER_MODEL), adapter_config, tensors)
        return cls(files, config, adapter_config, tensors, adapters, files.file("tokenizer.json"))

    def read_rows(self, name: str, *, start: int = 0, stop: int | None = None) -> Floats:
        """Rows [start, stop) of a tensor as float32; CheckpointError for NaN or infinity."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder.path}: the tensor {name} is missing")
        return self.tensors[name].read_rows(start=start, stop=stop)

    @cached_property
    def source(self) -> str:
        """The identity of the weights: `org/name@revision` for a hub snapshot, else a hash of the files' contents.

        The hash is over every byte; those of files that have not changed since are remembered.
        """
        if self.folder.revision:
            return f"{self.folder.repository}@{self.folder.revision}"
        shards = sorted({tensor.path for tensor in self.tensors.values()})
        names = [self.folder.file(name) for name in ("config.json", "tokenizer.json", ADAPTER_CONFIG, ADAPTER_MODEL)]
        return "sha256:" + hashlib.sha256("".join(map(sha256_of, [*names, *shards])).encode()).hexdigest()

    def licence(self) -> dict[str, str]:
        """`license`, `license_name` and `license_link` of the README's YAML front matter, where present.

        CheckpointError for front matter that is not YAML, and for a licence that is not a string.
        """
        if not (self.folder.path / "README.md").exists():
            return {}
        path = self.folder.file("README.md")
        try:
            head = read_front_matter(read_text(path, error=CheckpointError))
        except FileFormatError as error:
            raise CheckpointError(f"{path.parent}: {error}") from None
        found = {name: head[name] for name in LICENCE_FIELDS if name in head}
        for name, value in found.items():
            if not isinstance(value, str):
                raise CheckpointError(f"{path}: {name}={value!r:.80}: expected a text")
        return found


def _stored_tensors(files: Folder) -> dict[str, StoredTensor]:
    present = {path.name for path in files.path.glob("*.safetensors")}
    if not (files.path / INDEX).exists():
        if present != {SINGLE}:
            found = ", ".join(sorted(present)) or "no safetensors file (.bin and .pt files are never read)"
            raise CheckpointError(f"{files.path}: expected {INDEX} or one file {SINGLE}, found {found}")
        return read_header(files.file(SINGLE))
    return _sharded(files, _weight_map(files), present)


def _weight_map(files: Folder) -> dict[str, str]:
    where = files.path / INDEX
    found: Any = files.json(INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{where}: weight_map: expected an object from tensor names to shards")
    for tensor, shard in found.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w][\w.-]*\.safetensors", shard):
            raise CheckpointError(f"{where}: weight_map: {tensor}: {shard!r}: expected a file name like {SINGLE}")
    return found


def _sharded(files: Folder, weight_map: dict[str, str], present: set[str]) -> dict[str, StoredTensor]:
    where, shards = files.path / INDEX, set(weight_map.values())
    if surplus := sorted(present - shards):
        raise CheckpointError(f"{files.path / surplus[0]}: a shard that {INDEX} does not list")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(shards):
        path = files.file(shard)
        for name, tensor in read_header(path).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(f"{path}: {name}: by {where} it is in {weight_map.get(name, 'no shard')}")
            tensors[name] = tensor
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(f"{files.path / weight_map[missing[0]]}: the tensor {missing[0]} is missing")
    return tensors


def _older_name(name: str) -> str:
    for newer, older in _NEWER_PREFIXES.items():
        if name.startswith(newer):
            return older + name.removeprefix(newer)
    return name


def _by_older_name(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        older = _older_name(name)
        if older in found:
            raise CheckpointError(f"{tensor.path}: {name} and {found[older].name} are the same tensor")
        found[older] = tensor
    return found


def _adapters(path: Path, config: AdapterConfig, tensors: dict[str, StoredTensor]) -> dict[str, dict[str, Adapter]]:
    sides: dict[tuple[str, str], dict[str, StoredTensor]] = {}
    for name, tensor in read_header(path).items():
        match = _ADAPTER_NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{path}: {name}: expected a LoRA tensor name (module.lora_A.task.weight or module.lora_B.task.weight)"
            )
        if match["task"] not in config.task_names:
            raise CheckpointError(f"{path}: {name}: expected one of the tasks {', '.join(config.task_names)}")
        sides.setdefault((match["task"], _older_name(match["module"])), {})[match["side"]] = tensor
    adapters: dict[str, dict[str, Adapter]] = {task: {} for task in config.task_names}
    for (task, module), pair in sides.items():
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"{path}: {module} for {task}: expected both lora_A and lora_B")
        adapters[task][module] = Adapter(pair["A"], pair["B"])
        _check_fit(adapters[task][module], config.rank, tensors.get(f"{module}.weight"))
    return adapters


def _check_fit(adapter: Adapter, rank: int, base: StoredTensor | None) -> None:
    if base is None or len(base.shape) != 2:  # noqa: PLR2004 - a matrix
        raise CheckpointError(f"{adapter.a.path}: {adapter.a.name}: the checkpoint has no matrix of this name")
    for tensor, shape in ((adapter.a, (rank, base.shape[1])), (adapter.b, (base.shape[0], rank))):
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.path}: {tensor.name}: shape {tensor.shape}: expected {shape}, for rank {rank}"
            )
