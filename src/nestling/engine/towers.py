"""Choose and load a vision tower; one copy per file and process, shared by its users.

Its memory is freed when the last reference is dropped.
"""

import threading
from weakref import WeakValueDictionary

from nestling._util.cpu import usable_threads
from nestling._util.hashes import stamp
from nestling.engine.names import EngineName
from nestling.engine.vision import VisionEngine
from nestling.errors import EngineError, UsageError
from nestling.formats.mmproj import VisionFile

_loaded: WeakValueDictionary[tuple[object, ...], VisionEngine] = WeakValueDictionary()
_lock = threading.Lock()


def load_tower(
    vision: VisionFile, *, name: EngineName, threads: int | None = None, exact: bool = False
) -> VisionEngine:
    """Load a vision tower, or return the one already loaded with the same arguments.

    `threads`: all usable processors by default. `exact`: float32 throughout, else bfloat16 where the processor has it.
    UsageError for an engine without vision, EngineError when this processor or installation cannot run it.
    """
    wanted = threads or usable_threads()
    key = stamp(vision.file.path), name, wanted, exact
    with _lock:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = _load(vision, name, wanted, exact=exact)
        return found


def check_vision(name: EngineName) -> None:
    """UsageError for an engine that takes no images."""
    if reason := _WITHOUT.get(name):
        raise UsageError(
            f"engine='{name}': no images ({reason}); expected one of auto, openvino, reference", param="engine"
        )


_WITHOUT = {
    EngineName.LLAMACPP: "llama.cpp pools the wrong tokens",
    EngineName.TORCH: "this engine computes texts alone",
}


def _load(vision: VisionFile, name: EngineName, threads: int, *, exact: bool) -> VisionEngine:
    if name is EngineName.REFERENCE:
        from nestling.engine.numpy_vision import ReferenceTower

        return ReferenceTower(vision)
    check_vision(name)
    try:
        from nestling.engine.one_colour import OneColourTower
        from nestling.engine.openvino.vision import OpenVINOTower

        tower = OpenVINOTower(vision, threads=threads, exact=exact)
        return tower if exact else OneColourTower(tower, vision)
    except (ImportError, RuntimeError) as reason:
        raise EngineError(f"{vision.file.path}: openvino does not load this vision tower ({reason})") from reason
