"""Memory that was freed but that the C library has not returned to the operating system."""

import ctypes
import sys


def give_back_freed() -> None:
    """Return it to the operating system (glibc's `malloc_trim`; nothing happens with other C libraries)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
