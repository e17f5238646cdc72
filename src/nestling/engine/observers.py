"""Choose and load what collects the sums of an importance matrix (imatrix): OpenVINO, or torch on a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nestling._util.cpu import usable_threads
from nestling._util.extras import need
from nestling.engine.lora import Adapter
from nestling.engine.names import DEFAULT_ENGINE, EngineName, check_device, parse_device
from nestling.engine.registry import preferred
from nestling.errors import EngineError, UsageError
from nestling.formats.gguf import GGUFFile


class Observer(Protocol):
    """A float file, loaded to be observed."""

    def collect(self, sequences: Sequence[Sequence[int]]) -> dict[str, tuple[NDArray[np.float32], int]]:
        """Run the texts: matrix name -> (sum over tokens of the input's squares (W,), number of tokens).

        With adapters, text i takes adapter i modulo their number.
        """
        ...


@dataclass(frozen=True, slots=True)
class ObserverOptions:
    """Where a float file is observed: `auto` is torch if a GPU is named or found, else OpenVINO.

    `device`: torch's; `threads`: all usable processors by default.
    """

    engine: EngineName = DEFAULT_ENGINE
    device: str | None = None
    threads: int | None = None

    def load(self, file: GGUFFile, adapters: Sequence[Adapter] = ()) -> Observer:
        """Load a file; UsageError for an engine without this, EngineError for a device that cannot be used."""
        if self.device is not None:
            check_device(self.engine, parse_device(self.device))
        name = self.engine
        if name is EngineName.AUTO:
            name = EngineName.TORCH if preferred(self.device)[0] is EngineName.TORCH else EngineName.OPENVINO
        if name not in _LOADERS:
            raise UsageError(f"engine='{name}': expected one of auto, openvino, torch", param="engine")
        return _LOADERS[name](file, self.device, self.threads or usable_threads(), adapters)


def _torch(file: GGUFFile, device: str | None, threads: int, adapters: Sequence[Adapter]) -> Observer:
    module = need("nestling.engine.torch.engine", wanted_for="engine='torch'", extra="gpu", param="engine")
    from nestling.engine.torch.devices import place

    made: Observer = module.Observer(file, on=place(device, threads=threads), adapters=adapters)
    return made


def _openvino(file: GGUFFile, device: str | None, threads: int, adapters: Sequence[Adapter]) -> Observer:
    assert device in (None, "cpu"), "checked by `load`"
    try:
        from nestling.engine.openvino.observer import Observer
    except ImportError as error:
        raise EngineError(f"openvino is not installed ({error})") from error
    return Observer(file, threads=threads, adapters=adapters)


_LOADERS: dict[EngineName, Callable[[GGUFFile, str | None, int, Sequence[Adapter]], Observer]] = {
    EngineName.OPENVINO: _openvino,
    EngineName.TORCH: _torch,
}
