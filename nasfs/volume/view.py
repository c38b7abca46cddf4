"""Reading a file system: the live view, and the views as of a sealed epoch.

`View` is everything that can be read, on top of a handful of row look-ups.  `AsOf` answers those
from the rows visible at a sealed epoch; the live `Volume` answers them from the live tables.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from nasfs.volume import acl
from nasfs.volume.blockmap import LeafValue, base_runs, leaf_runs, map_runs
from nasfs.volume.errors import FsError
from nasfs.volume.layers import Layers
from nasfs.volume.store import Store
from nasfs.volume.types import (
    BLOCK,
    NAME_MAX,
    REGION_BLOCKS,
    Dirent,
    Epoch,
    Inode,
    Run,
    VolumeStats,
)

XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")


def is_xattr_name(name: bytes) -> bool:
    """Whether there may be an attribute of that name; of ``system.`` only POSIX ACLs."""
    return name.startswith(XATTR_NAMESPACES) or name in (acl.ACCESS, acl.DEFAULT)


class View(ABC):
    """A file system that can be read.  All errors of its methods are `FsError` with an errno."""

    def __init__(self, store: Store, layers: Layers) -> None:
        self._store = store
        self._layers = layers

    # what a view has to know

    @abstractmethod
    def _inode(self, ino: int) -> Inode | None: ...

    @abstractmethod
    def _dirent(self, parent: int, name: bytes) -> Dirent | None: ...

    @abstractmethod
    def _dirents(self, parent: int, after: int, limit: int) -> list[Dirent]:
        """Entries with a cookie above *after*, in the order of cookies."""

    def _inodes(self, numbers: list[int]) -> list[Inode | None]:
        return [self._inode(number) for number in numbers]

    @abstractmethod
    def _xattr(self, ino: int, name: bytes) -> bytes | None: ...

    @abstractmethod
    def _xattr_names(self, ino: int) -> list[bytes]: ...

    @abstractmethod
    def _leaves(self, ino: int, first: int, last: int) -> list[tuple[int, LeafValue]]:
        """Leaf values of regions first to last (both included), in the order of regions."""

    # what follows from it

    def getattr(self, ino: int) -> Inode:
        """The inode; ESTALE if there is none of that number."""
        inode = self._inode(ino)
        if inode is None:
            raise FsError(errno.ESTALE, f"no inode {ino}")
        return inode

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode of a name; ``.`` answers for any inode, ``..`` for any directory.

        ``.`` is asked for a file handle by a kernel that does not know the inode: nobody has it
        open, so if it has no name it is gone.
        """
        inode = self.find(parent, name)
        if inode is None:
            raise FsError(errno.ENOENT)
        return inode

    def find(self, parent: int, name: bytes) -> Inode | None:
        """Like `lookup`; None if there is no such name."""
        inode = self.getattr(parent)
        if name == b".":
            if inode.nlink == 0:
                raise FsError(errno.ESTALE, f"inode {parent} has no name")
            return inode
        if not inode.is_dir:
            raise FsError(errno.ENOTDIR)
        if name == b"..":
            return self.getattr(inode.parent)
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        entry = self._dirent(parent, name)
        return None if entry is None else self.getattr(entry.ino)

    def readdir(self, ino: int, after: int, limit: int) -> list[tuple[Dirent, Inode]]:
        """Entries with a cookie above *after*, in the order of cookies; no ``.`` and ``..``."""
        return list(zip(*self.listing(ino, after, limit), strict=True))

    def listing(self, ino: int, after: int, limit: int) -> tuple[list[Dirent], list[Inode]]:
        """The entries of `readdir`, and what they name."""
        if not self.getattr(ino).is_dir:
            raise FsError(errno.ENOTDIR)
        entries = self._dirents(ino, after, limit)
        inodes = self._inodes([entry.ino for entry in entries])
        found = list(filter(None, inodes))  # an inode is never false
        if len(found) < len(entries):
            found = [self.getattr(entry.ino) for entry in entries]  # which says that one is gone
        return entries, found

    def readlink(self, ino: int) -> bytes:
        target = self.getattr(ino).target
        if target is None:
            raise FsError(errno.EINVAL)
        return target

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value; ENODATA if there is no attribute of that name."""
        value = self._xattr(ino, name)
        if value is None:
            self.getattr(ino)
            raise FsError(errno.ENODATA if is_xattr_name(name) else errno.EOPNOTSUPP)
        return value

    def listxattr(self, ino: int) -> list[bytes]:
        self.getattr(ino)
        return self._xattr_names(ino)

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size), cut at the end of the file; holes are zeros."""
        buffer = bytearray(max(0, min(size, self.getattr(ino).size - offset)))
        with memoryview(buffer) as whole:
            count = self.read_into(ino, offset, whole)
        return bytes(buffer[:count])

    def read_into(self, ino: int, offset: int, buffer: memoryview) -> int:
        """Like `read`, into a buffer; how many of its bytes there are.

        Raises:
            WouldWait: the view was told not to wait for the disk.
        """
        inode = self.getattr(ino)
        if inode.is_dir:
            raise FsError(errno.EISDIR)
        stop = min(offset + len(buffer), inode.size)
        if stop <= offset:
            return 0
        if inode.leaves == 0 and stop <= inode.layer_end * BLOCK:
            self._layers.read_into(ino, inode.layer, buffer[: stop - offset], offset)
            return stop - offset
        for run in self.runs(inode, offset // BLOCK, -(-stop // BLOCK)):
            start = max(offset, run.start * BLOCK)
            end = min(stop, run.stop * BLOCK)
            part = buffer[start - offset : end - offset]
            if run.layer:
                self._layers.read_into(ino, run.layer, part, start)
            else:
                part[:] = bytes(end - start)
        return stop - offset

    def wait_for_disk(self, waits: bool) -> None:
        """Whether reading waits for the disk, or raises `WouldWait`."""
        self._layers.waits = waits

    def runs(self, inode: Inode, start: int, stop: int) -> Iterator[Run]:
        """Where blocks [start, stop) of a file are; holes included."""
        if not inode.leaves or start >= stop:
            return base_runs(inode.layer, inode.layer_end, start, stop)
        first, last = start // REGION_BLOCKS, (stop - 1) // REGION_BLOCKS
        leaves = self._leaves(inode.ino, first, last)
        if first == last and leaves:  # the usual request: all of it in one leaf row
            return leaf_runs(first, leaves[0][1], start, stop)
        return map_runs(inode.layer, inode.layer_end, leaves, start, stop)

    def statfs(self) -> VolumeStats:
        counters = self._store.counters
        used = (counters.live_blocks + counters.snapshot_blocks) * BLOCK
        return VolumeStats(
            size=self._store.size,
            used=used,
            live=counters.live_blocks * BLOCK,
            available=max(self._store.size - used, 0),
            inodes=counters.inodes,
        )


class AsOf(View):
    """The file system as of a sealed epoch."""

    CACHE = 5_000
    """Inodes remembered: what was sealed never changes."""

    def __init__(self, store: Store, layers: Layers, epoch: Epoch) -> None:
        super().__init__(store, layers)
        self.epoch = epoch
        self._cache: dict[int, Inode] = {}

    def _inode(self, ino: int) -> Inode | None:
        found = self._cache.get(ino)
        if found is not None:
            return found
        row = self._store.inodes.get_at((ino,), self.epoch)
        if row is None:
            return None
        if len(self._cache) >= self.CACHE:
            self._cache.clear()
        inode = self._cache[ino] = Inode(*row)
        return inode

    def look_ahead(self, inos: Sequence[int]) -> None:
        """These (much fewer than `CACHE`) are about to be asked for: by one statement."""
        if len(self._cache) + len(inos) > self.CACHE:
            self._cache.clear()
        for row in self._store.inodes.get_many_at(inos, self.epoch):
            self._cache[row[0]] = Inode(*row)

    def _dirent(self, parent: int, name: bytes) -> Dirent | None:
        row = self._store.dirents.get_at((parent, name), self.epoch)
        return None if row is None else Dirent(*row)

    def _dirents(self, parent: int, after: int, limit: int) -> list[Dirent]:
        order = f"ORDER BY cookie LIMIT {int(limit)}"
        rows = self._store.dirents.scan_at(
            "parent = ? AND cookie > ?", (parent, after), self.epoch, order
        )
        return [Dirent(*row) for row in rows]

    def _xattr(self, ino: int, name: bytes) -> bytes | None:
        row = self._store.xattrs.get_at((ino, name), self.epoch)
        return None if row is None else row[3]

    def _xattr_names(self, ino: int) -> list[bytes]:
        rows = self._store.xattrs.scan_at("ino = ?", (ino,), self.epoch, "ORDER BY name")
        return [row[1] for row in rows]

    def _leaves(self, ino: int, first: int, last: int) -> list[tuple[int, LeafValue]]:
        rows = self._store.leaves.scan_at(
            "ino = ? AND region BETWEEN ? AND ?", (ino, first, last), self.epoch, "ORDER BY region"
        )
        return [(row[1], row[3]) for row in rows]

    def runs_of(self, ino: int) -> list[Run]:
        """All mapped runs of an inode (no holes); [] if it is not there or has no blocks."""
        inode = self._inode(ino)
        return [] if inode is None else mapped_runs(self, inode)


def mapped_runs(view: View, inode: Inode) -> list[Run]:
    """All runs of a file that are in a layer."""
    if not inode.is_file or not inode.blocks:
        return []
    stop = -(-inode.size // BLOCK)
    return [run for run in view.runs(inode, 0, stop) if run.layer]
