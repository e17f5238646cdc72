"""Memory that the C library keeps after it was freed, in holes between what is in use."""

import ctypes
import sys


def give_back_freed() -> None:
    """Hand it back to the system, where the C library is glibc and can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
