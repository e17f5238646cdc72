"""Small nodes that every graph is made of."""

import numpy as np

from nestling.engine.openvino.runtime import Node, op


def number(value: float) -> Node:
    """One float32 number."""
    return op.constant(np.float32(value))


def integer(value: int) -> Node:
    """One whole number."""
    return op.constant(np.int64(value))


def ints(*values: int) -> Node:
    """Several whole numbers: (n,)."""
    return op.constant(np.array(values, np.int64))


def times(x: Node, matrix: Node) -> Node:
    """(N, in), (out, in) -> (N, out)."""
    return op.matmul(x, matrix, transpose_a=False, transpose_b=True)
