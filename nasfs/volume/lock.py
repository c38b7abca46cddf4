"""One owner process at a time: a flock on the file ``lock`` of the volume.

Whoever reads a snapshot for longer, without being the owner, leases it: a lock on one byte of that
file, `LEASES` behind its beginning and as many more as the snapshot's epoch.  Many may have a lease
of the same snapshot; who destroys it locks the byte against them until that is committed.

The kernel drops all of these locks when their process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nasfs.volume.errors import VolumeBusy

LEASES = 1 << 20

_FLOCK = struct.Struct("hhqqi4x")
"""Of fcntl(2), on 64 bits: type, whence, start, length (0: to the end), process."""


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


class Lease:
    """A lock on one snapshot's byte, taken in the constructor.

    Args:
        path: the volume's file ``lock``.
        against_all: nobody else may have one.

    Raises:
        BlockingIOError: somebody has one that forbids it.
    """

    def __init__(self, path: Path, epoch: int, *, against_all: bool = False) -> None:
        self.epoch = epoch
        access = os.O_RDWR if against_all else os.O_RDONLY
        self._fd = os.open(path, access | os.O_CLOEXEC)
        kind = fcntl.F_WRLCK if against_all else fcntl.F_RDLCK
        try:
            # Of the open file, not of the process: closing another descriptor does not drop it.
            words = _FLOCK.pack(kind, os.SEEK_SET, LEASES + epoch, 1, 0)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, words)
        except BaseException:
            os.close(self._fd)
            raise

    def release(self) -> None:
        """Once."""
        os.close(self._fd)


def leased(path: Path) -> Iterator[int]:
    """The epochs of snapshots of which somebody has a lease."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        position = LEASES
        while True:
            words = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, position, 0, 0)
            kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, words))
            if kind == fcntl.F_UNLCK:
                return
            yield start - LEASES
            position = start + length
    finally:
        os.close(fd)
