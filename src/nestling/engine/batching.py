"""Which texts go through the engine together: a pure function of their lengths and a token budget.

Everything in the engine runs on the real tokens alone but attention, which is laid out as a rectangle of texts by the
longest. So texts of like length share a batch; how unlike they may be is a balance, since a batch costs time of its
own: all weights are read for it.
"""

from collections.abc import Sequence

import numpy as np

TOKEN_BUDGET = 1024
"""Most tokens of a CPU engine's batch: twice as many were 2 % faster and took 0.3 GiB more at full size."""
SPARE_PAIRS = 1 << 17
"""Pairs of positions in a batch's attention that may be padding. At the full model's width so many take as long as
some 12 tokens in the matrix products, which is about what one more batch costs."""


def plan(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Split texts into batches: (B,) token counts -> lists of indices, longest texts first.

    Every index appears once. A batch holds at most `token_budget` tokens, or a single text that alone has more.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches: list[list[int]] = []
    longest = tokens = padding = 0
    for index in order.tolist():
        length = lengths[index]
        more = longest**2 - length**2
        if batches and tokens + length <= token_budget and padding + more <= SPARE_PAIRS:
            batches[-1].append(index)
            tokens, padding = tokens + length, padding + more
        else:
            batches.append([index])
            longest, tokens, padding = length, length, 0
    return batches
