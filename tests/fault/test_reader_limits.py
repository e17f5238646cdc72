"""Both readers under a memory cap and a clock, and the safetensors reader on mutated files.

Every file here is refused, or read as another sound file, in less than a second and 256 MiB beyond what the libraries
take; nothing but a CheckpointError or a GGUFError comes out.
"""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.raw_gguf import ARRAY, STRING, UINT8, array, gguf, pair, string
from tests.tiny import write_raw_safetensors

from nestling.errors import CheckpointError, FileFormatError
from nestling.formats.gguf import GGUFFile, reader
from nestling.formats.gguf.reader import MAX_ARRAY_ITEMS
from nestling.formats.safetensors import MAX_HEADER_BYTES, MAX_JSON_ITEMS, parse_json, read_header
from nestling.spec import MAX_SPEC_LENGTH, ModelSpec

SIZE = MAX_HEADER_BYTES - 100
MANY = 4_000_000


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def filled(unit: bytes, *, count: int = MANY // 4) -> bytes:
    """A header that is a list of so many units."""
    return safetensors(b'{"a":[' + b",".join([unit] * count) + b"]}")


def entry(*, name: bytes = b"a", dtype: bytes = b"F32", shape: bytes = b"1") -> bytes:
    fields = b'":{"dtype":"' + dtype + b'","shape":[' + shape + b'],"data_offsets":[0,4]}}'
    return safetensors(b'{"' + name + fields, bytes(4))


def gguf_arrays(item: int, content: bytes) -> bytes:
    """Two arrays that are each as long as one may be."""
    value = array(item, MAX_ARRAY_ITEMS, content * MAX_ARRAY_ITEMS)
    return gguf([pair(f"k{number}", ARRAY, value) for number in range(2)])


BOMBS: dict[str, Callable[[], bytes]] = {
    "empty objects": lambda: filled(b"{}"),
    "empty lists": lambda: filled(b"[]"),
    "numbers": lambda: filled(b"1"),
    "texts": lambda: filled(b'""'),
    "as many items as are allowed": lambda: filled(b"{}", count=MAX_JSON_ITEMS // 2 - 2),
    "one long text": lambda: safetensors(b'{"a":"' + b"x" * SIZE + b'"}'),
    "a long number": lambda: safetensors(b'{"a":' + b"9" * SIZE + b"}"),
    "depth": lambda: safetensors(b'{"a":' + b"[" * 200_000),
    "a long name": lambda: entry(name=b"x" * SIZE),
    "a long type": lambda: entry(dtype=b"x" * SIZE),
    "a long shape": lambda: entry(shape=b",".join([b"1"] * (MAX_JSON_ITEMS - 9))),
    "sizes of 4,000 digits": lambda: entry(shape=b",".join([b"9" * 4000] * 8)),
    "zeros": lambda: bytes(MANY),
    "many gguf numbers": lambda: gguf_arrays(UINT8, bytes(1)),
    "many gguf texts": lambda: gguf_arrays(STRING, bytes(8)),
    "long gguf texts": lambda: gguf([pair(f"k{number}", STRING, string(bytes(1 << 24))) for number in range(5)]),
}

CAPPED = """
import json, os, sys, time
from pathlib import Path
from nestling.formats.safetensors import read_header
from nestling.errors import CheckpointError, GGUFError
from nestling.formats.gguf import GGUFFile
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    pid = os.fork()
    if pid == 0:
        began, end = time.process_time(), 3
        try:
            (GGUFFile.open if path.read_bytes()[:4] == b"GGUF" else read_header)(path)
        except (CheckpointError, GGUFError) as error:
            end = 0 if len(str(error)) < 2000 and time.process_time() - began < 5 else 4
        finally:
            os._exit(end)
    _, status, usage = os.wait4(pid, 0)
    found[path.name] = os.waitstatus_to_exitcode(status), usage.ru_maxrss >> 10
print(json.dumps(found))
"""


def test_bombs_are_refused_fast_and_within_256_mib(tmp_path: Path) -> None:
    """Under a second on an idle core; five are allowed, because shared cores count stalls as time of theirs."""
    for name, content in BOMBS.items():
        (tmp_path / name).write_bytes(content())
    (tmp_path / "nothing").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, str(tmp_path)],
        capture_output=True, text=True, check=False, env={"OPENBLAS_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    libraries = found["nothing"][1]
    assert {name: (code, grown) for name, (code, grown) in found.items() if code or grown - libraries > 256} == {}


def test_a_long_specification_is_not_even_parsed() -> None:
    with pytest.raises(FileFormatError, match="longer than 65536 characters"):
        ModelSpec.from_json("[]" + " " * MAX_SPEC_LENGTH)


def test_the_messages_say_what_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=f"x: .* items; at most {MAX_JSON_ITEMS} are allowed"):
        parse_json("[" * (MAX_JSON_ITEMS + 1), what="x")
    (tmp_path / "a.gguf").write_bytes(BOMBS["many gguf numbers"]())
    with pytest.raises(FileFormatError, match="k1: more than 1048576 items in all arrays together"):
        GGUFFile.open(tmp_path / "a.gguf")
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 1 << 16)
    with pytest.raises(FileFormatError, match=r"k0 needs 1048576 bytes, the header \(at most 65536 bytes\) has"):
        GGUFFile.open(tmp_path / "a.gguf")


# Mutated files.

ENTRIES = {
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]},
    "__metadata__": {"format": "pt"},
}
DATA = np.arange(14, dtype="<u2").tobytes()
SOUND = safetensors(json.dumps(ENTRIES).encode(), DATA)


def read(path: Path, content: bytes) -> str:
    """The names of the tensors, every one read; or the error that refuses the file."""
    path.write_bytes(content)
    try:
        tensors = read_header(path)
        assert all(tensor.read_rows().shape == tensor.shape for tensor in tensors.values())
    except CheckpointError as error:
        return str(error)
    return f"{path}: {', '.join(tensors)}"


def test_the_sound_file_is_sound(tmp_path: Path) -> None:
    """Or else the mutations would prove nothing."""
    assert read(tmp_path / "x.safetensors", SOUND).endswith("x.safetensors: a, b")


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    for length in range(len(SOUND)):
        (tmp_path / "x.safetensors").write_bytes(SOUND[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
            read_header(tmp_path / "x.safetensors")


MUTATIONS = st.lists(
    st.tuples(st.integers(0, len(SOUND)), st.integers(0, 12), st.binary(max_size=12)), min_size=1, max_size=4
)


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=MUTATIONS)
def test_mutated_files_are_read_or_refused(tmp_path: Path, mutations: list[tuple[int, int, bytes]]) -> None:
    """Bytes replaced, put in and taken out, up to four times."""
    content = SOUND
    for at, length, new in mutations:
        content = content[:at] + new + content[at + length :]
    assert read(tmp_path / "evil.safetensors", content).startswith(str(tmp_path))


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
COUNTS = st.integers(-2, 30) | st.sampled_from([1 << 31, 1 << 32, 1 << 63, 1 << 64, -(1 << 63)]) | ODD
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["BF16", "F32", "F16", "I8", "BOOL"]) | ODD, "shape": st.lists(COUNTS, max_size=4) | ODD,
     "data_offsets": st.lists(COUNTS, min_size=1, max_size=3) | ODD},
    optional={"x": ODD},
)  # fmt: skip


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "é\0"]), ENTRY | ODD, max_size=3))
def test_headers_of_odd_values_are_read_or_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    write_raw_safetensors(tmp_path / "evil.safetensors", header, DATA)
    content = (tmp_path / "evil.safetensors").read_bytes()
    assert read(tmp_path / "evil.safetensors", content).startswith(str(tmp_path))
