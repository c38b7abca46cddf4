"""What the machine itself does to a measurement."""

from __future__ import annotations

import mmap
from pathlib import Path


def touch_memory(size: int) -> None:
    """A virtual machine's memory is slow at its first use: let that be over."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def drop_names() -> None:
    """The kernel forgets names and attributes that nobody uses, of all file systems."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
