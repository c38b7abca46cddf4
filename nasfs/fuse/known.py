"""Which inodes the kernel knows, and so may still ask about after their last name is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nasfs.volume import Ino, Volume


class KnownInodes:
    """The kernel's lookup counts of the live view's inodes.

    A removed inode that the kernel knows (a process stands in that directory, or holds a path to
    it) lives on until the kernel forgets it, just as an open one does until it is closed.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._counts: dict[int, int] = {}
        self._kept: set[int] = set()

    def add(self, number: int) -> None:
        """The kernel was told of this inode."""
        counts = self._counts
        counts[number] = counts.get(number, 0) + 1

    @contextmanager
    def outliving(self, ino: Ino) -> Iterator[None]:
        """A name of *ino* goes in the body; if it was the last one, the inode stays for now."""
        if ino not in self._counts or ino in self._kept:
            yield
            return
        self._volume.acquire(ino)
        try:
            yield
        finally:
            if self._volume.getattr(ino).nlink:
                self._volume.release(ino)
            else:
                self._kept.add(ino)

    def forget(self, number: int, count: int) -> bool:
        """The kernel takes *count* lookups back; True if the inode was kept for it alone."""
        left = self._counts.get(number, 0) - count
        if left > 0:
            self._counts[number] = left
            return False
        self._counts.pop(number, None)
        return number in self._kept

    def drop(self, ino: Ino) -> None:
        """Let a kept inode go, unless the kernel has asked for it again."""
        if ino in self._kept and ino not in self._counts:
            self._kept.discard(ino)
            self._volume.release(ino)

    def drop_all(self) -> None:
        """The mount is over: the kernel knows nothing any more."""
        self._counts.clear()
        for number in list(self._kept):
            self.drop(Ino(number))
