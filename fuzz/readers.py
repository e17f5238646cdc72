"""Feed the two file readers with mutated files: atheris, guided by coverage.

    pip install atheris
    python fuzz/readers.py gguf -runs=1000000 -timeout=5 -rss_limit_mb=512
    python fuzz/readers.py safetensors -runs=1000000 -timeout=5 -rss_limit_mb=512

Options after the reader's name are libFuzzer's; 512 MiB are 256 for the reader and as many for the libraries. A file
is either read, every tensor of it, or refused with the reader's own error in one line that is not long; anything else
ends the run and leaves the file behind. The tests run the same checks with a fixed budget (`tests/fault`).
"""

import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nestling"]):
    from nestling.errors import CheckpointError, GGUFError
    from nestling.formats.gguf import GGUFFile
    from nestling.formats.safetensors import read_header

from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType

LONGEST_MESSAGE = 20_000
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there


def read_gguf(path: Path) -> None:
    """Open the file and touch every tensor."""
    try:
        file = GGUFFile.open(path)
    except GGUFError as error:
        check(str(error), path)
        return
    for name, info in file.tensors.items():
        assert file.raw(name).nbytes == info.size_bytes


def read_safetensors(path: Path) -> None:
    """Read the header, then every tensor that is not large."""
    try:
        for tensor in read_header(path).values():
            assert tensor.read_rows().shape == tensor.shape
    except CheckpointError as error:
        check(str(error), path)


def check(message: str, path: Path) -> None:
    """An error names the file and is no flood."""
    assert message.startswith(str(path))
    assert len(message) < LONGEST_MESSAGE


def seed_gguf(path: Path) -> None:
    """A sound file with every kind of field."""
    fields = {
        "general.architecture": Field.string("qwen2vl"),
        "general.alignment": Field.uint32(32),
        "list": Field.strings(("ab", "é")),
        "numbers": Field.int32s((1, -2)),
        "real": Field.float32(0.5),
        "flag": Field.boolean(True),  # noqa: FBT003 - the field's value
    }
    plans = [
        TensorPlan("t", (2, 8), QuantType.F32, lambda: [bytes(64)]),
        TensorPlan("q", (1, 32), QuantType.Q8_0, lambda: [bytes(34)]),
    ]
    write_gguf(path, fields, plans)


def seed_safetensors(path: Path) -> None:
    """A sound file with two tensors and metadata."""
    entries = {
        "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]},
        "__metadata__": {"format": "pt"},
    }
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(28))


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "gguf": (read_gguf, seed_gguf),
    "safetensors": (read_safetensors, seed_safetensors),
}


def main() -> None:
    """Fuzz the reader that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:  # noqa: PLR2004 - the name
        sys.exit(f"the first argument is one of {', '.join(READERS)}; see the head of {sys.argv[0]}")
    reader, seed = READERS[sys.argv[1]]
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    (folder / "corpus").mkdir()
    seed(folder / "corpus" / "seed")
    target = folder / "input"

    def once(data: bytes) -> None:
        target.write_bytes(data)
        reader(target)

    options = [f"-artifact_prefix={folder}/", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
