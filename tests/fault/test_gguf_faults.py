"""GGUF files that lie: each is refused with the file's name and the byte or field, quickly, and in little memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.raw_gguf import (
    ARRAY,
    BOOL,
    F32,
    FLOAT32,
    INT8,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    array,
    gguf,
    number,
    pair,
    string,
    tensor,
)  # fmt: skip

from nestling.errors import GGUFError
from nestling.formats.gguf import GGUFFile

HUGE = 1 << 63
ALL_ONES = (1 << 64) - 1
DATA = bytes(64)
ALIGNED_TO = "general.alignment"

# What is wrong -> (the file, a part of the message that says so).
MALFORMED: dict[str, tuple[bytes, str]] = {
    # The header.
    "empty": (b"", "shorter than a GGUF header"),
    "four bytes": (b"GGUF", "shorter than a GGUF header"),
    "another magic": (gguf(magic=b"GGML"), "not a GGUF file"),
    "a zip archive": (b"PK\3\4" + bytes(60), "not a GGUF file"),
    "magic backwards": (gguf(magic=b"FUGG"), "not a GGUF file"),
    "version 0": (gguf(version=0), "GGUF version 0"),
    "version 1": (gguf(version=1), "GGUF version 1"),
    "version 4": (gguf(version=4), "GGUF version 4"),
    "big-endian": (b"GGUF" + (3).to_bytes(4, "big") + bytes(16), "GGUF version 50331648.*little-endian"),
    "2^63 tensors": (gguf(counts=(HUGE, 0)), f"tensor count is {HUGE}"),
    "2^64 - 1 tensors": (gguf(counts=(ALL_ONES, 0)), f"tensor count is {ALL_ONES}"),
    "2^63 keys": (gguf(counts=(0, HUGE)), f"metadata count is {HUGE}"),
    "a key is missing": (gguf(counts=(0, 1)), "length of key needs 8 bytes, the file has 0 left"),
    "a tensor is missing": (gguf(counts=(1, 0)), "length of tensor name needs 8 bytes"),
    # Keys and strings.
    "a key of 2^63 bytes": (gguf([string("k", length=HUGE)]), f"length of key is {HUGE}"),
    "a key longer than the file": (gguf([string("k", length=500)]), "key needs 500 bytes, the file has 1 left"),
    "a key that is not UTF-8": (gguf([pair(b"\xff\xfe", UINT8, b"\0")]), "key is not UTF-8"),
    "a key twice": (gguf([pair("k", UINT8, b"\0")] * 2), "duplicate key k"),
    "a key without a type": (gguf([string("key")]), "type of key needs 4 bytes"),
    "an unknown value type": (gguf([pair("k", 13, bytes(8))]), "k has the unknown type 13"),
    "a value type of 2^32 - 1": (gguf([pair("k", (1 << 32) - 1, bytes(8))]), "unknown type 4294967295"),
    "half a number": (gguf([pair("k", UINT64, bytes(7))]), "k needs 8 bytes, the file has 7 left"),
    "half a real": (gguf([pair("k", FLOAT32, bytes(3))]), "k needs 4 bytes, the file has 3 left"),
    "no flag": (gguf([pair("k", BOOL, b"")]), "k needs 1 bytes"),
    "a text of 2^63 bytes": (gguf([pair("k", STRING, string("v", length=HUGE))]), f"length of k is {HUGE}"),
    "a text of 2^64 - 1 bytes": (gguf([pair("k", STRING, string("v", length=ALL_ONES))]), f"is {ALL_ONES}"),
    "a text longer than the file": (gguf([pair("k", STRING, string("v", length=99))]), "k needs 99 bytes"),
    "a text that is not UTF-8": (gguf([pair("k", STRING, string(b"\xc3\x28"))]), "k is not UTF-8"),
    "a text with a surrogate": (gguf([pair("k", STRING, string(b"\xed\xa0\x80"))]), "k is not UTF-8"),
    # Arrays.
    "an array of 2^63 bytes, on which a reader that trusts the count loops for ever (53 bytes)": (
        gguf([pair("loop!", ARRAY, array(UINT8, HUGE))]), f"length of loop! is {HUGE}",
    ),
    "an array of 2^40 items": (gguf([pair("k", ARRAY, array(INT8, 1 << 40))]), "length of k is 1099511627776"),
    "an array of 2^20 items in a short file": (gguf([pair("k", ARRAY, array(UINT64, 1 << 20))]), "k needs 8388608"),
    "an array of 2^20 texts in a short file": (gguf([pair("k", ARRAY, array(STRING, 1 << 20))]), "k ends early"),
    "an array of arrays": (gguf([pair("k", ARRAY, array(ARRAY, 1, array(UINT8, 1, b"\0")))]), "k is an array of arr"),
    "an array of 2^63 arrays": (gguf([pair("k", ARRAY, array(ARRAY, HUGE))]), "k is an array of arrays"),
    "an array of an unknown type": (gguf([pair("k", ARRAY, array(77, 1, b"\0"))]), "items of k has the unknown"),
    "an array's text of 2^63 bytes": (
        gguf([pair("k", ARRAY, array(STRING, 2, string("a") + string("b", length=HUGE)))]), "k: a string of 92233",
    ),
    "an array's text longer than the file": (
        gguf([pair("k", ARRAY, array(STRING, 1, string("b", length=9)))]), "k: a string of 9 bytes, longer",
    ),
    "an array's text that is not UTF-8": (gguf([pair("k", ARRAY, array(STRING, 1, string(b"\xff")))]), "k is not UTF"),
    # Tensors.
    "a tensor's name of 2^63 bytes": (gguf([], [string("t", length=HUGE)]), f"length of tensor name is {HUGE}"),
    "a tensor's name that is not UTF-8": (gguf([], [tensor(b"\xff")], data=DATA), "tensor name is not UTF-8"),
    "a tensor twice": (gguf([], [tensor(), tensor(offset=32)], data=DATA), "duplicate tensor t"),
    "rank 0": (gguf([], [tensor(sizes=())], data=DATA), "t has 0 dimensions"),
    "rank 5": (gguf([], [tensor(sizes=(1, 1, 1, 1, 1))], data=DATA), "t has 5 dimensions"),
    "rank 2^32 - 1": (gguf([], [string("t") + bytes([255] * 4)], data=DATA), "t has 4294967295 dimensions"),
    "a dimension of 0": (gguf([], [tensor(sizes=(0,))], data=DATA), "t has a dimension of 0"),
    "a second dimension of 0": (gguf([], [tensor(sizes=(8, 0))], data=DATA), "t has a dimension of 0"),
    "a dimension of 2^63": (gguf([], [tensor(sizes=(HUGE,))], data=DATA), f"a dimension of t is {HUGE}"),
    "dimensions whose product is 2^64": (
        gguf([], [tensor(sizes=(1 << 16,) * 4)], data=DATA), "a dimension of t is 65536",
    ),
    "dimensions whose product is 2^32 times 4 bytes": (
        gguf([], [tensor(sizes=(256,) * 4)], data=DATA), "17179869184 bytes lies past the end",
    ),
    "an unknown tensor type": (gguf([], [tensor(kind=99)], data=DATA), "t has the unknown tensor type 99"),
    "a tensor type that ggml has dropped": (gguf([], [tensor(kind=4)], data=DATA), "t has the unknown tensor type 4"),
    "rows that are not whole blocks": (gguf([], [tensor(sizes=(33,), kind=Q8_0)], data=DATA), "rows of 33 do not div"),
    "an offset that is not aligned": (gguf([], [tensor(sizes=(1,), offset=4)], data=DATA), "offset 4 is not a multi"),
    "an offset past the end": (gguf([], [tensor(offset=64)], data=DATA), "offset 64 .* lies past the end"),
    "an offset of 2^64 - 32": (gguf([], [tensor(offset=ALL_ONES - 31)], data=DATA), "lies past the end of the file"),
    "an end that wraps around to the start": (
        gguf([], [tensor(sizes=(16,), offset=ALL_ONES - 63)], data=DATA), "lies past the end of the file",
    ),
    "data cut by one byte": (gguf([], [tensor(sizes=(16,))], data=DATA[:-1]), "lies past the end of the file"),
    "no data": (gguf([], [tensor()]), "lies past the end of the file"),
    "tensors in the same place": (gguf([], [tensor("t"), tensor("u")], data=DATA), "u overlaps the tensor before it"),
    "tensors that overlap in part": (
        gguf([], [tensor("u", offset=32), tensor("t", sizes=(9,))], data=DATA), "u overlaps the tensor before it",
    ),
    # Alignment.
    "alignment 0": (gguf([pair(ALIGNED_TO, UINT32, number(0))]), "general.alignment=0"),
    "alignment 24": (gguf([pair(ALIGNED_TO, UINT32, number(24))]), "general.alignment=24: expected a power of two"),
    "alignment 2^31": (gguf([pair(ALIGNED_TO, UINT32, number(1 << 31))]), "general.alignment=2147483648"),
    "alignment as a text": (gguf([pair(ALIGNED_TO, STRING, string("32"))]), "general.alignment='32'"),
    "alignment as 64 bits": (gguf([pair(ALIGNED_TO, UINT64, bytes(8))]), "general.alignment=0"),
}  # fmt: skip

SOUND = gguf(
    [
        pair("general.architecture", STRING, string("x")),
        pair(ALIGNED_TO, UINT32, number(32)),
        pair("list", ARRAY, array(STRING, 2, string("ab") + string("é"))),
        pair("numbers", ARRAY, array(FLOAT32, 2, bytes(8))),
        pair("flag", BOOL, b"\1"),
    ],
    [tensor("t", (2, 4)), tensor("q", (32,), Q8_0, offset=32)],
    data=bytes(66),
)


def read(path: Path, content: bytes) -> GGUFFile:
    """Open the file and touch every tensor."""
    path.write_bytes(content)
    file = GGUFFile.open(path)
    for name, info in file.tensors.items():
        assert file.raw(name).nbytes == info.size_bytes
        assert int(np.add.reduce(file.raw(name), axis=None, dtype=np.int64)) >= 0
    return file


def outcome(path: Path, content: bytes) -> str:
    """How the file is refused, or that it is read; anything else is raised."""
    try:
        return f"{read(path, content).path}: read"
    except GGUFError as error:
        return str(error)


@pytest.mark.parametrize(("content", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_file_that_lies_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(GGUFError, match=message) as caught:
        read(tmp_path / "evil.gguf", content)
    assert str(caught.value).startswith(f"{tmp_path / 'evil.gguf'}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_the_file_that_loops_for_ever_elsewhere_has_53_bytes() -> None:
    assert [len(content) for name, (content, _) in MALFORMED.items() if "53 bytes" in name] == [53]


def test_the_sound_file_is_sound(tmp_path: Path) -> None:
    """Or else the truncations and mutations below would prove nothing."""
    file = read(tmp_path / "x.gguf", SOUND)
    assert file.value("list") == ("ab", "é")
    assert [info.kind.ggml_id for info in file.tensors.values()] == [F32, Q8_0]


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    for length in range(len(SOUND)):
        with pytest.raises(GGUFError, match=r"evil\.gguf: "):
            read(tmp_path / "evil.gguf", SOUND[:length])


@pytest.mark.parametrize("count", [1, 1 << 16, ALL_ONES])
def test_every_length_and_count_replaced(tmp_path: Path, count: int) -> None:
    """Eight bytes anywhere in the header: refused, or read as another sound file."""
    for at in range(len(SOUND) - 66 - 8):
        content = SOUND[:at] + count.to_bytes(8, "little") + SOUND[at + 8 :]
        assert outcome(tmp_path / "evil.gguf", content).startswith(str(tmp_path))


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
    assert outcome(tmp_path / "evil.gguf", content).startswith(str(tmp_path))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200).map(lambda tail: b"GGUF\3\0\0\0" + tail))
def test_random_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    assert outcome(tmp_path / "evil.gguf", content).startswith(str(tmp_path))


@pytest.mark.parametrize("name", ["absent.gguf", ".", "n" * 300])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GGUFError, match=r"no such file|cannot be read: File name too long"):
        GGUFFile.open(tmp_path / name)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(SOUND)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "memmap", forbidden)
    with pytest.raises(GGUFError, match=r"x\.gguf: cannot be read: Permission denied"):
        GGUFFile.open(tmp_path / "x.gguf")


CAPPED = """
import json, resource, sys, time
from pathlib import Path
from nestling.errors import NestlingError
from nestling.formats.gguf import GGUFFile
resource.setrlimit(resource.RLIMIT_AS, (3 << 28, 3 << 28))  # 768 MiB; the libraries alone map about half of it
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused, began = {}, time.monotonic()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        GGUFFile.open(path)
    except NestlingError as error:
        refused[path.name] = type(error).__name__
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"refused": refused, "grown_kib": grown, "took_s": time.monotonic() - began}))
"""


def many_keys() -> bytes:
    """Real keys up to the limit, then one more: the limit is on the count that the header tells."""
    pairs = [pair(f"k{place}", UINT8, b"\0") for place in range(5000)]
    return gguf(pairs)


def test_under_a_memory_cap_and_quickly(tmp_path: Path) -> None:
    files = {f"{place:03}": content for place, (content, _) in enumerate(MALFORMED.values())} | {
        "zeros": gguf(data=b"")[:24] + bytes(1 << 22),
        "many keys": many_keys(),
    }
    (tmp_path / "files").mkdir()
    for name, content in files.items():
        (tmp_path / "files" / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, str(tmp_path / "files")],
        capture_output=True, text=True, check=False, env={"OPENBLAS_NUM_THREADS": "1"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(files) - set(found["refused"]) == {"zeros"}  # trailing bytes are no fault
    assert set(found["refused"].values()) == {"GGUFError"}
    assert found["grown_kib"] < 32 << 10
    assert found["took_s"] < 5
