"""A text graph compiled for this processor."""

from nestling.engine.openvino.arithmetic import Arithmetic
from nestling.engine.openvino.runtime import ov

KEPT_SHAPES = 128
"""Kernels cached by shape; unbounded, a server's memory would grow with every new number of tokens."""


def compiled(model: ov.Model, arithmetic: Arithmetic, *, threads: int, profile: bool = False) -> ov.InferRequest:
    """Compile. RuntimeError from OpenVINO when that fails."""
    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # pinned, several processes would share the first cores
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": arithmetic.precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": arithmetic.group,
        "CPU_RUNTIME_CACHE_CAPACITY": KEPT_SHAPES,
        **({"KV_CACHE_PRECISION": "bf16"} if arithmetic.precision == "bf16" else {}),  # not rounded to 8 bits
        **({"PERF_COUNT": True} if profile else {}),
    }
    return ov.Core().compile_model(model, "CPU", properties).create_infer_request()
