"""Choose and load a vision tower; one copy per file and process, shared by its users.

Its memory is freed when the last reference is dropped.
"""

import threading
from dataclasses import dataclass
from weakref import WeakValueDictionary

from nestling._util.cpu import usable_threads
from nestling._util.extras import need
from nestling._util.hashes import stamp
from nestling.engine.names import EngineName
from nestling.engine.vision import VisionEngine
from nestling.errors import EngineError, UsageError
from nestling.formats.mmproj import VisionFile

_loaded: WeakValueDictionary[tuple[object, ...], VisionEngine] = WeakValueDictionary()
_lock = threading.Lock()


def load_tower(
    vision: VisionFile,
    *,
    name: EngineName,
    device: str | None = None,
    threads: int | None = None,
    exact: bool = False,
) -> VisionEngine:
    """Load a vision tower, or return the one already loaded with the same arguments.

    `device`: the torch engine's. `threads`: all usable processors by default. `exact`: float32 throughout, else
    bfloat16 where the device has it.
    UsageError for an engine without vision, EngineError when this processor or installation cannot run it.
    """
    wanted = threads or usable_threads()
    on = device if name is EngineName.TORCH else None
    key = stamp(vision.file.path), name, on, wanted, exact
    with _lock:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = _load(_Wanted(vision, name, on, wanted, exact))
        return found


def check_vision(name: EngineName) -> None:
    """UsageError for an engine that takes no images."""
    if name is EngineName.LLAMACPP:
        why = "engine='llamacpp': no images (llama.cpp pools the wrong tokens)"
        raise UsageError(f"{why}; expected one of auto, openvino, torch, reference", param="engine")


@dataclass(frozen=True, slots=True)
class _Wanted:
    vision: VisionFile
    name: EngineName
    device: str | None
    threads: int
    exact: bool


def _load(wanted: _Wanted) -> VisionEngine:
    check_vision(wanted.name)
    if wanted.name is EngineName.REFERENCE:
        from nestling.engine.numpy_vision import ReferenceTower

        return ReferenceTower(wanted.vision)
    return _torch(wanted) if wanted.name is EngineName.TORCH else _openvino(wanted)


def _torch(wanted: _Wanted) -> VisionEngine:
    module = need("nestling.engine.torch.vision", wanted_for="engine='torch'", extra="gpu", param="engine")
    from nestling.engine.torch.devices import place

    on = place(wanted.device, threads=wanted.threads)
    tower: VisionEngine = module.TorchTower(wanted.vision, on=on, exact=wanted.exact)
    return tower if wanted.exact or on.is_cpu else _one_colour(wanted, tower)


def _openvino(wanted: _Wanted) -> VisionEngine:
    try:
        from nestling.engine.openvino.vision import OpenVINOTower

        tower = OpenVINOTower(wanted.vision, threads=wanted.threads, exact=wanted.exact)
        return tower if wanted.exact else _one_colour(wanted, tower)
    except (ImportError, RuntimeError) as reason:
        said = f"openvino does not load this vision tower ({reason})"
        raise EngineError(f"{wanted.vision.file.path}: {said}") from reason


def _one_colour(wanted: _Wanted, tower: VisionEngine) -> VisionEngine:
    from nestling.engine.one_colour import OneColourTower

    return OneColourTower(tower, wanted.vision)
