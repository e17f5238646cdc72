"""Import packages of the extra `eval` when they are needed."""

from functools import partial

from nestling._util import extras

need = partial(extras.need, extra="eval")
"""As `extras.need`, for the extra `eval`."""
