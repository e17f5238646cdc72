"""Choose and load a vision tower, one copy of a file for all who use it in this process.

Whoever drops the last reference to a tower gives its memory back.
"""

import threading
from weakref import WeakValueDictionary

from nestling._util.cpu import usable_threads
from nestling.engine.registry import EngineName
from nestling.engine.vision import VisionEngine
from nestling.errors import EngineError, UsageError
from nestling.formats.mmproj import VisionFile

_loaded: WeakValueDictionary[tuple[object, ...], VisionEngine] = WeakValueDictionary()
_lock = threading.Lock()


def load_tower(
    vision: VisionFile, *, name: EngineName, threads: int | None = None, exact: bool = False
) -> VisionEngine:
    """The tower of a file in an engine, with so many threads (all usable processors by default).

    `exact` computes in float32 throughout, else in bfloat16 where the processor has it. UsageError for an engine that
    has no vision, EngineError where this processor or installation cannot run one.
    """
    stat = vision.file.path.stat()
    wanted = threads or usable_threads()
    key = vision.file.path.resolve(), stat.st_size, stat.st_mtime_ns, name, wanted, exact
    with _lock:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = _load(vision, name, wanted, exact=exact)
        return found


def _load(vision: VisionFile, name: EngineName, threads: int, *, exact: bool) -> VisionEngine:
    if name is EngineName.REFERENCE:
        from nestling.engine.numpy_vision import ReferenceTower

        return ReferenceTower(vision)
    if name not in (EngineName.AUTO, EngineName.OPENVINO):
        raise UsageError(
            f"engine='{name}': no images, of which llama.cpp pools the wrong tokens; expected one of auto, openvino, "
            "reference",
            param="engine",
        )
    try:
        from nestling.engine.openvino.vision import OpenVINOTower

        return OpenVINOTower(vision, threads=threads, exact=exact)
    except (ImportError, RuntimeError) as reason:
        raise EngineError(f"{vision.file.path}: openvino does not load this vision tower ({reason})") from reason
