"""Which texts go through the engine together: a pure function of their lengths and a token budget.

All layers but attention run on real tokens only. Some engines pad attention to the longest text of the batch, so texts
of similar length share a batch. More padding means fewer batches, each of which reads all weights once.
"""

from collections.abc import Sequence

import numpy as np

TOKEN_BUDGET = 1024
"""Most tokens in a batch of a CPU engine. Twice as many were 2 % faster and took 0.3 GiB more on the full model."""
SPARE_PAIRS = 1 << 17
"""Query-key pairs of a batch that may be padding, where attention is padded. On the full model they take as long as the
matrix products of about 12 tokens, which is about the fixed cost of one more batch."""


def plan(lengths: Sequence[int], token_budget: int, *, spare_pairs: float) -> list[list[int]]:
    """Split texts into batches: (B,) token counts -> lists of indices, longest texts first.

    Every index appears once. A batch holds at most `token_budget` tokens, or a single text that alone has more, and at
    most `spare_pairs` pairs of a query and a key that are padding.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches: list[list[int]] = []
    longest = tokens = padding = 0
    for index in order.tolist():
        length = lengths[index]
        more = longest**2 - length**2
        if batches and tokens + length <= token_budget and padding + more <= spare_pairs:
            batches[-1].append(index)
            tokens, padding = tokens + length, padding + more
        else:
            batches.append([index])
            longest, tokens, padding = length, length, 0
    return batches
