"""Close a listening socket without resetting connections: refuse new handshakes, then accept the completed ones.

The kernel completes a handshake before the process accepts the connection, and resets completed ones when the socket is
closed. So the socket first drops every SYN (a Linux socket filter): a client that connects now retries a second later
and is refused, having sent nothing. Other systems lack the filter; there, a connection that is completed between the
last accept and the close is still reset.
"""

import ctypes
import socket
import struct
import sys
from contextlib import suppress

SO_ATTACH_FILTER = 26
"""Linux's constant, which the socket module does not export."""
_NO_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""Classic BPF on a TCP header: load the flags, keep SYN and ACK, drop a SYN without ACK, take anything else."""


def refuse_new(listener: socket.socket) -> bool:
    """Refuse further handshakes: True, or False where the system has no such filter."""
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:  # a Unix socket has no handshakes
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in _NO_SYN))
    try:
        filtered = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filtered)
    except OSError:
        return False
    return True


def accepted(listener: socket.socket) -> list[socket.socket]:
    """Accept every connection that the kernel has completed; `listener` does not block."""
    found = []
    with suppress(OSError):  # none is left, or too many files are open
        while True:
            found.append(listener.accept()[0])
    return found
