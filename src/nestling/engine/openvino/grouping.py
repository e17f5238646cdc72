"""The int8 group size of a file; does not import openvino."""

from math import prod

from nestling.formats.gguf import GGUFFile, TensorInfo

FINE = 32
GROUPS = ((6.0, FINE), (5.0, 64), (0.0, 128))
"""(least bits per weight of the file, group size), for weights and activations alike. Larger groups are faster and less
exact; the error stays far below that of the file's own quantization (`benchmarks/results/int8-cost.json`)."""


def kind_of(name: str) -> str:
    """`attn_q` of `blk.0.attn_q.weight`."""
    return name.split(".")[-2]


def matrices(file: GGUFFile) -> list[TensorInfo]:
    """The matrices of the layers; neither embeddings nor vectors."""
    return [info for info in file.tensors.values() if len(info.shape) > 1 and info.name.startswith("blk.")]


def is_quantized(file: GGUFFile) -> bool:
    """Whether no matrix of the layers is stored as floats."""
    return not any(info.kind.is_float for info in matrices(file))


def group_of(file: GGUFFile) -> int:
    """The group size for all of a file's matrices: the largest allowed one that divides every width."""
    infos = matrices(file)
    bits = 8 * sum(info.size_bytes for info in infos) / sum(prod(info.shape) for info in infos)
    most = next(group for least, group in GROUPS if bits >= least)
    fitting = (group for _, group in GROUPS if group <= most and not any(info.shape[-1] % group for info in infos))
    return max(fitting, default=FINE)
