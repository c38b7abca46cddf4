"""One owner process at a time: a flock on the file ``lock`` of the volume.

The kernel drops the lock when its owner dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from nasfs.volume.errors import VolumeBusy


class VolumeLock:
    """Taken in the constructor.  Raises `VolumeBusy` if another process has it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._fd, 32).decode(errors="replace").strip()
            os.close(self._fd)
            raise VolumeBusy(
                f"volume {path.parent.name} is in use by process {owner or 'unknown'}",
                hint="unmount it first, or go through the daemon",
            ) from None
        except BaseException:
            os.close(self._fd)
            raise
        with suppress(OSError):  # a full disk: the number is only for people
            os.ftruncate(self._fd, os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0))

    def release(self) -> None:
        os.close(self._fd)
