"""Which texts go through the engine together: a pure function of their lengths and a token budget.

Texts of like length share a batch, so that the attention of a batch, which is laid out as a rectangle, has little
padding; everything else in the engine runs on the real tokens alone.
"""

from collections.abc import Sequence

import numpy as np

PADDING = 0.25
"""Share of a batch's attention rows that may be padding."""


def plan(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Split texts into batches: (B,) token counts -> lists of indices, longest texts first.

    Every index appears once. A batch holds at most `token_budget` tokens, or a single text that alone has more.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches: list[list[int]] = []
    tokens = 0
    for index in order.tolist():
        length = lengths[index]
        if (
            batches
            and tokens + length <= token_budget
            and _fits(lengths[batches[-1][0]], len(batches[-1]), tokens + length)
        ):
            batches[-1].append(index)
            tokens += length
        else:
            batches.append([index])
            tokens = length
    return batches


def _fits(longest: int, count: int, tokens: int) -> bool:
    return tokens >= (1 - PADDING) * longest * (count + 1)
