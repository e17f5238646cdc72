"""GGUF files: a reader that trusts nothing, a writer whose bytes are a function of its input."""

from nestling.gguf_io.fields import Field, ValueKind
from nestling.gguf_io.reader import GGUFFile, TensorInfo
from nestling.gguf_io.writer import TensorPlan, write_gguf

__all__ = ["Field", "GGUFFile", "TensorInfo", "TensorPlan", "ValueKind", "write_gguf"]
