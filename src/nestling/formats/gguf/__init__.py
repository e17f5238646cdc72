"""GGUF files: a reader that checks everything, and a deterministic writer."""

from nestling.formats.gguf.fields import Field, ValueKind
from nestling.formats.gguf.reader import GGUFFile, TensorInfo
from nestling.formats.gguf.writer import GGUFWriter, TensorHead, TensorPlan, file_size, open_writer, write_gguf

__all__ = [
    "Field",
    "GGUFFile",
    "GGUFWriter",
    "TensorHead",
    "TensorInfo",
    "TensorPlan",
    "ValueKind",
    "file_size",
    "open_writer",
    "write_gguf",
]
