"""Work on a device; its failure is an EngineError of one line: the file, the device, what was being done, why."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nestling.engine.torch.devices import Placement, first_line
from nestling.errors import EngineError

MIB = 1 << 20


@contextmanager
def working(path: Path, on: Placement, doing: str) -> Iterator[None]:
    """Work on a device: EngineError for torch's errors inside the block; `doing` is loading or computing."""
    try:
        with on.current():
            yield
    except torch.OutOfMemoryError as error:
        used = on.memory()[0] // MIB
        raise EngineError(f"{path}: {on.device}: out of memory {doing} ({used} MiB in use)") from error
    except RuntimeError as error:
        raise EngineError(f"{path}: {on.device}: {doing}: {first_line(error)}") from error
