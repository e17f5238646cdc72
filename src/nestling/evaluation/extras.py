"""Import what the extra `eval` installs, when it is wanted."""

from functools import partial

from nestling._util import extras

need = partial(extras.need, extra="eval")
"""As `extras.need`, for the extra `eval`."""
