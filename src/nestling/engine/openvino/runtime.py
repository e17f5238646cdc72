"""OpenVINO without its telemetry: the only module that imports the package.

On import, openvino reports to an analytics service through `openvino_telemetry`, if that package can be imported. It is
blocked while openvino loads: nestling sends no telemetry.
"""

import sys

import numpy as np

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

__all__ = ["Node", "has_paged_attention", "op", "ov", "paged_attention"]


def has_paged_attention(version: str = ov.__version__) -> bool:
    """Whether this release's paged attention is the one that is known; the operation is not public and may change."""
    return version.startswith("2026.4.")


def paged_attention(tensors: list[Node], index: list[Node], *, head_dim: int) -> Node:
    """The plugin's paged attention.

    `tensors`: queries (N, heads * d), keys and values (N, key heads * d), pages of keys and of values. `index`: past
    lengths, starts of the new rows, pages of each sequence, starts of those, the longest sequence.
    """
    from openvino.op import _PagedAttentionExtension  # other releases may lack it

    floats, whole, zero = np.zeros(0, np.float32), np.zeros(0, np.int32), np.int32(0)
    *before, longest = index
    inputs = [
        *tensors, *before, np.float32(head_dim**-0.5), zero, floats, longest,
        whole, whole, np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32),  # no scores, no rotation of pages
        floats, zero, zero,  # all blocks
        floats, zero, whole, whole, whole, whole,  # no sinks, no eviction, no types of tokens
        np.zeros(0, np.uint8), whole,  # no bias
    ]  # fmt: skip
    nodes = [one if isinstance(one, Node) else op.constant(one) for one in inputs]
    attention = _PagedAttentionExtension([node.output(0) for node in nodes])
    heads = tensors[1].get_output_partial_shape(0)[1].get_length() // head_dim
    info = attention.get_rt_info()
    for side in "kv":
        info[f"{side}_head_size"], info[f"num_{side}_heads"] = head_dim, heads
    return attention.output(0)
