"""Broken safetensors files and shards: each is refused in one line that names the file and the tensor."""

import shutil
import struct
from pathlib import Path

import pytest
from tests.broken import (
    ADAPTERS,
    FIRST,
    INDEX,
    SECOND,
    Change,
    Q,
    cut,
    entry,
    in_header,
    in_json,
    link_out,
    mapped,
    put,
    refused,
    remove,
    whole,
)

from nestling.errors import CheckpointError
from nestling.formats.safetensors import read_header


@pytest.fixture
def folder(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


HEADERS: dict[str, tuple[Change, str]] = {
    "cut in the data": (cut(SECOND, -100), "lies past the end of the file, which is truncated"),
    "cut in the header": (cut(SECOND, 500), r"a header of \d+ bytes, but the file has 500 bytes: it is truncated"),
    "empty": (whole(SECOND, b""), "0 bytes are too few"),
    "header over 25 MB": (whole(SECOND, struct.pack("<Q", 25_000_001) + b"{}"), "at most 25000000 are allowed"),
    "header of 2^63": (whole(SECOND, struct.pack("<Q", 1 << 63) + b"{}"), "at most 25000000 are allowed"),
    "header not JSON": (whole(SECOND, struct.pack("<Q", 4) + b"{'a}"), "header: not valid JSON"),
    "header not UTF-8": (whole(SECOND, struct.pack("<Q", 4) + b"{\xff\xff}"), "header: not valid JSON"),
    "header a list": (whole(SECOND, struct.pack("<Q", 2) + b"[]"), "header: expected a JSON object, not list"),
    "nested without end": (
        whole(SECOND, struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995),
        "header: not valid JSON",
    ),
    "a key twice": (
        whole(SECOND, struct.pack("<Q", 13) + b'{"a":1,"a":2}'),
        "header: not valid JSON .duplicate key 'a'",
    ),
    "trailing bytes": (
        in_header(SECOND, lambda _: None, extra=b"12"),
        "2 bytes after the last tensor belong to no tensor",
    ),
    "past the end": (
        in_header(SECOND, lambda header: header[Q].update(data_offsets=[1 << 40, (1 << 40) + 8192])),
        f"{Q}: lies past the end of the file",
    ),
    "overlap": (
        in_header(SECOND, lambda header: header[Q].update(data_offsets=[2, 8194])),
        "overlaps the tensor before it|has a gap before it",
    ),
    "same place": (
        in_header(SECOND, lambda header: header[Q].update(header["model.layers.0.self_attn.o_proj.weight"])),
        "overlaps the tensor before it|has a gap before it",
    ),
    "end before begin": (in_header(SECOND, entry(Q, data_offsets=[8192, 0])), f"{Q}: data_offsets"),
    "negative offset": (in_header(SECOND, entry(Q, data_offsets=[-8192, 0])), f"{Q}: data_offsets"),
    "float offset": (in_header(SECOND, entry(Q, data_offsets=[0.0, 8192.0])), f"{Q}: data_offsets"),
    "one offset": (in_header(SECOND, entry(Q, data_offsets=[0])), f"{Q}: data_offsets"),
    "wrong size": (in_header(SECOND, entry(Q, shape=[64, 63])), f"{Q}: data_offsets .* takes 8064 bytes"),
    "shape product beyond 2^64": (in_header(SECOND, entry(Q, shape=[1 << 40, 1 << 40])), f"{Q}: data_offsets"),
    "negative shape": (in_header(SECOND, entry(Q, shape=[-64, -64])), f"{Q}: shape"),
    "zero in the shape": (in_header(SECOND, entry(Q, shape=[0, 64])), f"{Q}: shape"),
    "true in the shape": (in_header(SECOND, entry(Q, shape=[True, 4096])), f"{Q}: shape"),
    "no shape": (in_header(SECOND, entry(Q, shape=None)), f"{Q}: shape"),
    "a scalar": (in_header(SECOND, entry(Q, shape=[])), f"{Q}: shape"),
    "integers": (in_header(SECOND, entry(Q, dtype="I16")), f"{Q}: dtype I16: expected one of BF16, F16, F32"),
    "dtype a list": (in_header(SECOND, entry(Q, dtype=["BF16"])), f"{Q}: dtype"),
    "an entry too many": (in_header(SECOND, entry(Q, more=1)), f"{Q}: expected dtype, shape and data_offsets"),
    "an entry that is none": (in_header(SECOND, lambda header: header.update({Q: 5})), f"{Q}: expected dtype"),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_unsound_safetensors(folder: Path, fault: str) -> None:
    change, message = HEADERS[fault]
    change(folder)
    refused(folder, f"{SECOND}: .*({message})")


def test_any_cut_of_a_file_is_noticed(folder: Path) -> None:
    raw = (folder / ADAPTERS).read_bytes()
    path = folder / "cut.safetensors"
    for size in [*range(0, 64), *range(64, len(raw), 997), len(raw) - 1]:
        path.write_bytes(raw[:size])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            read_header(path)


SHARDS: dict[str, tuple[Change, str]] = {
    "parent folder": (mapped(Q, "../../etc/passwd"), rf"{INDEX}: weight_map: {Q}: '\.\./\.\./etc/passwd'"),
    "parent of a shard": (mapped(Q, f"../checkpoint/{SECOND}"), "weight_map: .* expected a file name like"),
    "absolute": (mapped(Q, "/etc/passwd.safetensors"), "weight_map: .* expected a file name like"),
    "a folder": (mapped(Q, f"adapters/{SECOND}"), "weight_map: .* expected a file name like"),
    "backslashes": (mapped(Q, f"..\\{SECOND}"), "weight_map: .* expected a file name like"),
    "a pickle": (mapped(Q, "pytorch_model.bin"), "weight_map: .* expected a file name like"),
    "a number": (mapped(Q, 5), "weight_map: .*: 5: expected a file name"),
    "no map": (put(INDEX, "weight_map", None), f"{INDEX}: weight_map: expected an object"),
    "index cut": (cut(INDEX, 100), f"{INDEX}: not valid JSON"),
    "a link out": (link_out, f"{FIRST}: a link that leaves"),
    "a link to nothing": (lambda folder: (folder / FIRST).rename(folder / "x.bin"), f"{FIRST}: no such file"),
    "missing shard": (remove(FIRST), f"{FIRST}: no such file"),
    "extra shard": (
        lambda folder: shutil.copy(folder / FIRST, folder / "model-00003-of-00003.safetensors"),
        "model-00003-of-00003.safetensors: a shard that",
    ),
    "in the other shard": (mapped(Q, FIRST), f"{SECOND}: {Q}: .* it is in {FIRST}"),
    "not in the map": (in_json(INDEX, lambda raw: raw["weight_map"].pop(Q)), f"{Q}: .* it is in no shard"),
    "not in the shard": (mapped("model.more.weight", SECOND), f"{SECOND}: the tensor model.more.weight is missing"),
    "no index": (remove(INDEX), "expected model.safetensors.index.json or one file model.safetensors"),
}


@pytest.mark.parametrize("fault", SHARDS)
def test_unsound_shards(folder: Path, fault: str) -> None:
    change, message = SHARDS[fault]
    change(folder)
    refused(folder, message)
