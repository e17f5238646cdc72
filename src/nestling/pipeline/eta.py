"""Estimated time of the steps of a build, for the remaining time of the progress bar.

The figures are seconds per 10^9 weights on one core (those of the tensor types are in
`benchmarks/results/quantizing.json`). On other machines all of them are scaled by about the same factor, which the
remaining time corrects for.
"""

from collections.abc import Mapping
from math import prod

from nestling.formats.quant_types import FLOAT_FILE_TYPES
from nestling.formats.quant_types import QuantType as T
from nestling.pipeline.quantization.file_types import tensor_types

CONVERT = 75.0
"""Bound by one thread and the disk."""
OBSERVE_A_TOKEN = 0.011
COMPARE = 45.0
"""Comparing a quantized file's vectors with those of its F16 file."""
_OVERHEAD = 20.0
"""Reading, checking and writing weights of any type, and measuring their quantization error."""
_QUANTIZE = {
    T.Q4_0: 33.0, T.Q4_1: 144.0, T.Q5_0: 32.0, T.Q5_1: 142.0, T.Q8_0: 3.0, T.Q2_K: 168.0, T.Q3_K: 44.0, T.Q4_K: 144.0,
    T.Q5_K: 149.0, T.Q6_K: 36.0, T.IQ2_XXS: 474.0, T.IQ2_XS: 962.0, T.IQ3_XXS: 510.0, T.IQ1_S: 206.0, T.IQ4_NL: 385.0,
    T.IQ3_S: 368.0, T.IQ2_S: 275.0, T.IQ4_XS: 395.0, T.IQ1_M: 172.0,
}  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]


def weights(shapes: Shapes) -> float:
    """A model's weights in units of 10^9."""
    return sum(map(prod, shapes.values())) / 1e9


def file_effort(shapes: Shapes, file_type: str, *, heads: int, kv_heads: int, threads: int) -> float:
    """Estimated seconds to convert to a float file type, or to quantize with an importance matrix."""
    if file_type in FLOAT_FILE_TYPES:
        return CONVERT * weights(shapes)
    kinds = tensor_types(shapes, file_type=file_type, heads=heads, kv_heads=kv_heads, has_imatrix=True)
    costs = (prod(shape) * (_OVERHEAD + _QUANTIZE.get(kinds[name], 0.0)) for name, shape in shapes.items())
    return sum(costs) / 1e9 / threads
