"""Memory for bulk data: buffers of a few MiB that are taken and given back all the time.

glibc maps a large block anew each time and unmaps it at once, so that the kernel has to clear each
page of it again: that takes longer than encrypting what is in it.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>
_MAPPED_BYTES = 32 * 1024 * 1024
_KEPT_BYTES = 128 * 1024 * 1024


def keep_buffers() -> None:
    """From now on, this process keeps the memory of what it frees, up to 128 MiB."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # another libc than glibc
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    libc.mallopt(_M_ARENA_MAX, 1)  # else each thread keeps some of its own
