"""What a request may read: a tree of inodes under numbers that the kernel knows.

A tree turns the engine's values into the kernel's: attributes, time-outs, inode numbers.  The
live view has its own inode numbers; a snapshot's view has the number of its epoch above them, so
that both stand side by side in one mount.
"""

from __future__ import annotations

import stat
from typing import Protocol

import pyfuse3

from nasfs.volume import Ino, Inode, View
from nasfs.volume.types import INO_BITS, ROOT_INO

FOREVER_S = 86_400.0
"""Seconds that the kernel may keep what only this mount can change."""

PREFERRED_IO = 131_072
"""st_blksize: programs that follow it send 32 times fewer requests than with 4096."""

_INO_MASK = (1 << INO_BITS) - 1


Entry = tuple[bytes, pyfuse3.EntryAttributes, int]
"""A name in a directory, ready for the kernel: name, attributes, cookie."""


class Tree(Protocol):
    """Reading, in the kernel's inode numbers.  All methods raise `FsError`."""

    def lookup(self, number: int, name: bytes) -> pyfuse3.EntryAttributes:
        """An entry with st_ino 0 says: there is none, and you may remember that."""
        ...

    def getattr(self, number: int) -> pyfuse3.EntryAttributes: ...

    def parent(self, number: int) -> int:
        """The number of the directory above a directory."""
        ...

    def readdir(self, number: int, after: int, limit: int) -> list[Entry]:
        """Entries with a cookie above *after* (cookies are above 2), without "." and ".."."""
        ...

    def readlink(self, number: int) -> bytes: ...

    def read_into(self, number: int, offset: int, buffer: memoryview) -> int:
        """Fill the buffer up to the end of the file; how many bytes that were."""
        ...

    def getxattr(self, number: int, name: bytes) -> bytes: ...

    def listxattr(self, number: int) -> list[bytes]: ...


def to_entry(inode: Inode, base: int = 0) -> pyfuse3.EntryAttributes:
    """The kernel's form of an inode, under the number `base | inode.ino`."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = base | inode.ino
    entry.generation = inode.generation
    entry.entry_timeout = FOREVER_S
    entry.attr_timeout = FOREVER_S
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blksize = PREFERRED_IO
    entry.st_blocks = inode.blocks * 8
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


NO_ENTRY = pyfuse3.EntryAttributes()
"""A name that does not exist, which the kernel may remember.  Not to be changed."""
NO_ENTRY.st_ino = pyfuse3.InodeT(0)
NO_ENTRY.entry_timeout = FOREVER_S


def directory_stub(number: int) -> pyfuse3.EntryAttributes:
    """All that the kernel takes of "." and ".." in a listing: a number and a type."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(number)
    entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR)
    return entry


class ViewTree:
    """One view of a volume.

    Args:
        base: what stands above the engine's inode numbers (0, or an epoch << INO_BITS).
        above: the number of the directory above the root; the root itself by default.
        remembered: of so many inodes at most the kernel's form is kept.
    """

    def __init__(
        self, view: View, *, base: int = 0, above: int = ROOT_INO, remembered: int = 32_768
    ) -> None:
        self._view = view
        self._remembered = remembered
        self._base = base
        self._above = above
        self._inodes: dict[int, Inode] = {}
        """By number, the inode whose form is remembered; once changed, it is another object."""
        self._forms: dict[int, pyfuse3.EntryAttributes] = {}

    def entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The kernel's form of one of the view's inodes; not to be changed."""
        ino = inode.ino
        if self._inodes.get(ino) is inode:
            return self._forms[ino]
        if len(self._forms) >= self._remembered:
            self._inodes.clear()
            self._forms.clear()
        self._inodes[ino] = inode
        entry = self._forms[ino] = to_entry(inode, self._base)
        return entry

    def lookup(self, number: int, name: bytes) -> pyfuse3.EntryAttributes:
        inode = self._view.find(Ino(number & _INO_MASK), name)
        return NO_ENTRY if inode is None else self.entry(inode)

    def getattr(self, number: int) -> pyfuse3.EntryAttributes:
        return self.entry(self._view.getattr(Ino(number & _INO_MASK)))

    def parent(self, number: int) -> int:
        ino = number & _INO_MASK
        if ino == ROOT_INO:
            return self._above
        return self._base | self._view.getattr(Ino(ino)).parent

    def readdir(self, number: int, after: int, limit: int) -> list[Entry]:
        dirents, inodes = self._view.listing(Ino(number & _INO_MASK), after, limit)
        numbers = [dirent.ino for dirent in dirents]
        if list(map(self._inodes.get, numbers)) == inodes:  # as for most listings
            forms = [self._forms[ino] for ino in numbers]
        else:
            forms = [self.entry(inode) for inode in inodes]
        return [
            (dirent.name, form, dirent.cookie) for dirent, form in zip(dirents, forms, strict=True)
        ]

    def readlink(self, number: int) -> bytes:
        return self._view.readlink(Ino(number & _INO_MASK))

    def read_into(self, number: int, offset: int, buffer: memoryview) -> int:
        return self._view.read_into(Ino(number & _INO_MASK), offset, buffer)

    def getxattr(self, number: int, name: bytes) -> bytes:
        return self._view.getxattr(Ino(number & _INO_MASK), name)

    def listxattr(self, number: int) -> list[bytes]:
        return self._view.listxattr(Ino(number & _INO_MASK))
