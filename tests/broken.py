"""Ways to break a copy of the tiny checkpoint, and what must come of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny

from nestling.errors import CheckpointError, NestlingError
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.convert import convert
from nestling.spec import Task

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTERS, LORA = "adapters/adapter_model.safetensors", "adapters/adapter_config.json"
Q = "model.layers.0.self_attn.q_proj.weight"
Change = Callable[[Path], object]


def build(folder: Path) -> None:
    convert(Checkpoint.open(folder), task=Task.CODE, out=folder.parent / "out" / "model.gguf", family="tiny")


def refused(folder: Path, message: str, *, error: type[NestlingError] = CheckpointError) -> None:
    """The build fails with one line that matches, and leaves no file."""
    with pytest.raises(error, match=message) as caught:
        build(folder)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    out = folder.parent / "out"
    assert not out.exists() or not list(out.iterdir())


def in_json(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        raw = json.loads((folder / name).read_text("utf-8"))
        change(raw)
        (folder / name).write_text(json.dumps(raw), "utf-8")

    return apply


def put(name: str, field: str, value: object) -> Change:
    return in_json(name, lambda raw: raw.update({field: value}))


def in_config(field: str, value: object) -> Change:
    def change(raw: dict[str, Any]) -> None:
        raw[field] = value
        raw["text_config"][field] = value

    return in_json("config.json", change)


def in_header(name: str, change: Callable[[dict[str, Any]], object], *, extra: bytes = b"") -> Change:
    def apply(folder: Path) -> None:
        header, data = tiny.read_raw_safetensors(folder / name)
        change(header)
        tiny.write_raw_safetensors(folder / name, header, data + extra)

    return apply


def entry(tensor: str, **fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[tensor].update(fields)


def cut(name: str, size: int) -> Change:
    """Only the first `size` bytes, or all but the last -`size`."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def whole(name: str, raw: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(raw)


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def drop(name: str, tensor: str) -> Change:
    """Take a tensor out of a file and of the index, the rest moved up."""

    def apply(folder: Path) -> None:
        header, data = tiny.read_raw_safetensors(folder / name)
        start, stop = header.pop(tensor)["data_offsets"]
        for other in header.values():
            if "data_offsets" in other and other["data_offsets"][0] >= stop:
                other["data_offsets"] = [offset - (stop - start) for offset in other["data_offsets"]]
        tiny.write_raw_safetensors(folder / name, header, data[:start] + data[stop:])
        in_json(INDEX, lambda raw: raw["weight_map"].pop(tensor, None))(folder)

    return apply


def rename(name: str, tensor: str, new: str) -> Change:
    def change(header: dict[str, Any]) -> None:
        header[new] = header.pop(tensor)

    def apply(folder: Path) -> None:
        in_header(name, change)(folder)
        if name != ADAPTERS:
            in_json(INDEX, lambda raw: raw["weight_map"].update({new: raw["weight_map"].pop(tensor)}))(folder)

    return apply


def weight(name: str, tensor: str, value: float) -> Change:
    """One weight of a tensor, its last."""

    def apply(folder: Path) -> None:
        header, data = tiny.read_raw_safetensors(folder / name)
        stop = header[tensor]["data_offsets"][1]
        raw = tiny.bf16(np.array([value], np.float32)).tobytes()
        tiny.write_raw_safetensors(folder / name, header, data[: stop - 2] + raw + data[stop:])

    return apply


def mapped(tensor: str, shard: object) -> Change:
    return in_json(INDEX, lambda raw: raw["weight_map"].update({tensor: shard}))


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / FIRST).rename(outside)
    (folder / FIRST).symlink_to(outside)
