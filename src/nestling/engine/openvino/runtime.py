"""OpenVINO without its telemetry: the only module that imports the package.

On import, openvino reports to an analytics service through `openvino_telemetry`, if that package can be imported. It is
blocked while openvino loads: nestling sends no telemetry.
"""

import sys

_TELEMETRY = "openvino_telemetry"
_loaded = sys.modules.get(_TELEMETRY)
sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # Python's own way to make an import fail
try:
    import openvino as ov
    from openvino import Node
    from openvino import opset15 as op
finally:
    if _loaded is None:
        del sys.modules[_TELEMETRY]
    else:
        sys.modules[_TELEMETRY] = _loaded

__all__ = ["Node", "op", "ov"]
