"""What a process of many thousand objects and connections asks of its heap."""

import ctypes
import gc
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3), for which Python has no names."""
_LARGE_BYTES = 128 * 1024
"""What glibc begins with, and raises by itself unless it is told."""


def spare_collector() -> None:
    """Have the garbage collector pass over what was loaded, which stays: one pass over 25,000 machines takes 60 ms.
    Of what is new it looks at a few thousand objects at a time: everything waits for it, 80 ns for each of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 3, 100)


def spare_heap() -> None:
    """Have large blocks mapped each by itself, and what is free at the heap's end given back. uvloop reads TLS into
    256 KiB for each connection, of which a page or two is ever touched; cut from the heap they lie where handshakes
    just had their buffers, and a host took 18 KiB more."""
    with suppress(AttributeError):  # a C library without it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
