"""Recipe files: a mix of tensor types as JSON, to read, share and apply again; each tensor with shape and type."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from nestling._util.files import atomic_write
from nestling._util.text import read_text
from nestling.errors import BuildError, FileFormatError, UsageError
from nestling.formats.quant_types import QuantType, parse_file_type
from nestling.pipeline.quantization.file_types import is_quantizable
from nestling.pipeline.quantization.imatrix import ImportanceMatrix
from nestling.pipeline.quantization.plan import Mix, parse_quant_type

FORMAT = "nestling-mix-1"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class MixRecipe:
    """The types of a model's matrices; `file_type` is the stock file type nearest in size, written into the GGUF file.

    `imatrix` names the calibration text that the mix was chosen with; `error` is its measured mean of 1 - cosine to the
    source. Both are for information and do not change how the mix is applied.
    """

    file_type: str
    types: dict[str, QuantType]
    shapes: dict[str, tuple[int, ...]]
    imatrix: str = ""
    error: float = 0.0

    def write(self, path: Path) -> None:
        """Write the file atomically; equal recipes give equal bytes."""
        facts = asdict(self)
        tensors = {name: {"shape": self.shapes[name], "type": kind.name} for name, kind in self.types.items()}
        shown = {"format": FORMAT, **{key: facts[key] for key in ("file_type", "imatrix", "error")}, "tensors": tensors}
        with atomic_write(path) as file:
            file.write((json.dumps(shown, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` wrote; FileFormatError for anything else."""
        try:
            raw: Any = json.loads(read_text(path, error=ValueError))
            found, tensors = raw["format"], raw["tensors"].items()
            types = {name: parse_quant_type(one["type"], param=name) for name, one in tensors}
            shapes = {name: tuple(map(int, one["shape"])) for name, one in tensors}
            file_type = parse_file_type(raw["file_type"])
            recipe = cls(file_type, types, shapes, str(raw["imatrix"]), float(raw["error"]))
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise FileFormatError(f"{path}: not a mix recipe ({error})") from None
        if found != FORMAT:
            raise FileFormatError(f"{path}: format={found!r}: expected {FORMAT!r}")
        return recipe

    def mix(self, shapes: Shapes, imatrix: ImportanceMatrix | None) -> Mix:
        """The mix for a model with these tensors; BuildError if the recipe is another model's."""
        own = {name: shape for name, shape in shapes.items() if is_quantizable(name, shape)}
        if own != self.shapes:
            name = next(name for name in sorted({**own, **self.shapes}) if own.get(name) != self.shapes.get(name))
            raise BuildError(
                f"the recipe is another model's: {name} is {self.shapes.get(name, 'missing')} in it,"
                f" {own.get(name, 'missing')} in the model"
            )
        chosen = tuple((f"^{re.escape(name)}$", kind) for name, kind in self.types.items())
        return Mix(self.file_type, chosen, imatrix=imatrix)
