"""`.snapshots/NAME/`: the sealed snapshots of a mounted volume, read-only, beside the live view.

The directory can be reached by its name at the mount's root, which does not list it unless the
volume, or the mount, was told to.  It knows which tree an inode number belongs to: the live view's
numbers are below 2**40, a snapshot's have its slot above them (`nasfs.fuse.slots`), and the
directory itself has a number that no file is given.  `nasfs.fuse.previous` shows the same snapshots
by their times.
"""

from __future__ import annotations

import errno
import stat
from typing import Protocol

import pyfuse3

from nasfs.fuse.previous import (
    PREVIOUS_INO,
    PREVIOUS_NAME,
    PREVIOUS_NUMBERS,
    PreviousVersions,
)
from nasfs.fuse.slots import Slots
from nasfs.fuse.tree import Entry, Tree, ViewTree, to_entry
from nasfs.volume import FsError, Ino, Inode, NoSuchSnapshot, Snapshot, View, Volume
from nasfs.volume.types import INO_BITS, ROOT_INO, Epoch

SNAPSHOTS_NAME = b".snapshots"
SNAPSHOTS_INO = 2
OWN_NUMBERS = frozenset({SNAPSHOTS_INO, PREVIOUS_INO})
"""Directories that are in no view."""

FIRST_SNAPSHOT_NUMBER = 1 << INO_BITS

NAME_S = 1.0
"""Seconds that the kernel may keep the name of a snapshot: it can be destroyed or renamed."""

_BASE_MASK = ~(FIRST_SNAPSHOT_NUMBER - 1)
TREES = 256
"""Snapshots that are browsed at once without beginning anew."""

_FIRST_COOKIE = 2
"""Cookies up to it are those of "." and ".."."""

_OWN_COOKIE = 3
"""Of `.snapshots` itself in the root; the engine's begin above."""


def to_bytes(name: str) -> bytes:
    """The name of a snapshot as the kernel has it."""
    return name.encode("utf-8", "surrogateescape")


class SnapshotTree(ViewTree):
    """A snapshot below `.snapshots/NAME`, or below `.snapshots/@GMT`.

    Args:
        base: what stands above the engine's inode numbers: the slot, and which of the two it is.
    """

    def __init__(self, view: View, base: int, directory: SnapshotDirectory) -> None:
        above = PREVIOUS_INO if base & PREVIOUS_NUMBERS else SNAPSHOTS_INO
        super().__init__(view, base=base, above=above, remembered=1_000)
        self._directory = directory

    def lookup(self, number: int, name: bytes) -> pyfuse3.EntryAttributes:
        if name == b".." and number == self._base | ROOT_INO:
            return self._directory.getattr(self._above)
        return super().lookup(number, name)


class SnapshotSource(Protocol):
    """What is told about the snapshots beside a view, and that view's root."""

    @property
    def snapshot_count(self) -> int: ...

    def getattr(self, ino: Ino, /) -> Inode: ...

    def snapshots(self) -> list[Snapshot]: ...

    def find_snapshot(self, name: str) -> Snapshot | None: ...

    def newest_snapshot(self) -> Snapshot | None: ...

    def snapshots_after(self, epoch: int, limit: int) -> list[Snapshot]: ...

    def root_of(self, epoch: Epoch) -> Inode: ...

    def view(self, epoch: Epoch) -> View: ...


class LiveTree(ViewTree):
    """The live view, or the one that stands for it, with `.snapshots` in its root."""

    def __init__(self, view: View, directory: SnapshotDirectory, *, listed: bool) -> None:
        super().__init__(view)
        self._directory = directory
        self.listed = listed
        """Whether the root lists `.snapshots`."""

    def readdir(self, number: int, after: int, limit: int) -> list[Entry]:
        if number != ROOT_INO or not self.listed or after >= _OWN_COOKIE:
            return super().readdir(number, after, limit)
        own = (SNAPSHOTS_NAME, self._directory.getattr(SNAPSHOTS_INO), _OWN_COOKIE)
        return [own, *super().readdir(number, _OWN_COOKIE, limit - 1)]

    def lookup(self, number: int, name: bytes) -> pyfuse3.EntryAttributes:
        if name == SNAPSHOTS_NAME and number == ROOT_INO:
            return self._directory.getattr(SNAPSHOTS_INO)
        return super().lookup(number, name)


class SnapshotDirectory:
    """The tree that is the directory `.snapshots` itself and nothing else."""

    def __init__(self, volume: SnapshotSource, slots: Slots) -> None:
        self._volume = volume
        self._slots = slots

    def lookup(self, number: int, name: bytes) -> pyfuse3.EntryAttributes:
        if name == b".":
            return self.getattr(number)
        if name == b"..":
            return to_entry(self._volume.getattr(ROOT_INO))
        if name == PREVIOUS_NAME:
            return self.getattr(PREVIOUS_INO)
        snapshot = self._volume.find_snapshot(name.decode("utf-8", "surrogateescape"))
        if snapshot is None:
            raise FsError(errno.ENOENT)  # unlike an entry of 0, it is not remembered
        return self._entry(snapshot)

    def getattr(self, number: int) -> pyfuse3.EntryAttributes:
        root = self._volume.getattr(ROOT_INO)
        entry = to_entry(root)
        entry.st_ino = pyfuse3.InodeT(number)
        entry.generation = 0
        entry.attr_timeout = 0
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o555)
        entry.st_nlink = 2 + self._volume.snapshot_count
        entry.st_uid = entry.st_gid = entry.st_size = entry.st_blocks = 0
        newest = self._volume.newest_snapshot()
        changed = root.btime_ns if newest is None else newest.time_ns
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = changed
        return entry

    def parent(self, number: int) -> int:
        return ROOT_INO

    def readdir(self, number: int, after: int, limit: int) -> list[Entry]:
        found = self._volume.snapshots_after(after - _FIRST_COOKIE, limit)
        return [(to_bytes(s.name), self._entry(s), s.epoch + _FIRST_COOKIE) for s in found]

    def _entry(self, snapshot: Snapshot) -> pyfuse3.EntryAttributes:
        root = self._volume.root_of(snapshot.epoch)
        entry = to_entry(root, self._slots.base(snapshot.epoch))
        entry.entry_timeout = NAME_S
        return entry

    def readlink(self, number: int) -> bytes:
        raise FsError(errno.EINVAL)

    def read_into(self, number: int, offset: int, buffer: memoryview) -> int:
        raise FsError(errno.EISDIR)

    def getxattr(self, number: int, name: bytes) -> bytes:
        raise FsError(errno.ENODATA)

    def listxattr(self, number: int) -> list[bytes]:
        return []


class SnapshotTrees:
    """The snapshots' trees of a mount, made when they are first asked for."""

    def __init__(self, volume: SnapshotSource) -> None:
        self._volume = volume
        self._slots = Slots(volume)
        self.directory = SnapshotDirectory(volume, self._slots)
        self.previous = PreviousVersions(
            volume, self._slots, self.directory.getattr, above=SNAPSHOTS_INO, name_s=NAME_S
        )
        self._trees: dict[int, SnapshotTree] = {}

    def of(self, number: int) -> SnapshotTree:
        base = number & _BASE_MASK
        tree = self._trees.get(base)
        if tree is None:
            try:
                view = self._volume.view(self.epoch(number))
                tree = SnapshotTree(view, base, self.directory)
            except NoSuchSnapshot as exc:
                raise FsError(errno.ESTALE) from exc
            if len(self._trees) >= TREES:
                del self._trees[next(iter(self._trees))]
            self._trees[base] = tree
        return tree

    def epoch(self, number: int) -> Epoch:
        """The snapshot that a number belongs to; ESTALE if none does."""
        return self._slots.epoch(number & _BASE_MASK & ~PREVIOUS_NUMBERS)

    def forget(self, epoch: Epoch) -> None:
        """The snapshot was destroyed: its numbers are stale from now on."""
        base = self._slots.base(epoch)
        self._trees.pop(base, None)
        self._trees.pop(base | PREVIOUS_NUMBERS, None)
        self._slots.forget(epoch)


class Trees:
    """All trees of one mount, by inode number."""

    def __init__(self, root: ViewTree, snapshots: SnapshotTrees | None) -> None:
        self._root = root
        self.entry = root.entry
        """The kernel's form of an inode of the view at the root."""
        self._snapshots = snapshots

    @classmethod
    def live(cls, volume: Volume, *, listed: bool | None = None) -> Trees:
        """The live view at the root, the snapshots below `.snapshots`.

        Args:
            listed: whether the root lists that; as the volume says if None.
        """
        snapshots = SnapshotTrees(volume)
        listed = volume.lists_snapshots if listed is None else listed
        return cls(LiveTree(volume, snapshots.directory, listed=listed), snapshots)

    @classmethod
    def following(cls, view: View, snapshots: SnapshotTrees, *, listed: bool) -> Trees:
        """A snapshot at the root, in turn with others (`show`), and all of them below it."""
        return cls(LiveTree(view, snapshots.directory, listed=listed), snapshots)

    @classmethod
    def as_of(cls, view: View) -> Trees:
        """One snapshot at the root, with the inode numbers of the live view, and nothing else."""
        return cls(ViewTree(view), None)

    def of(self, number: int) -> Tree:
        """The tree that a number belongs to; ESTALE if its snapshot is gone."""
        if number < FIRST_SNAPSHOT_NUMBER:
            if self._snapshots is None or number not in OWN_NUMBERS:
                return self._root
            own = self._snapshots
            return own.directory if number == SNAPSHOTS_INO else own.previous
        if self._snapshots is None:
            raise FsError(errno.ESTALE)
        return self._snapshots.of(number)

    def show(self, view: View) -> None:
        """Another snapshot at the root, from now on; for who follows."""
        assert isinstance(self._root, LiveTree)
        assert self._snapshots is not None
        self._root = LiveTree(view, self._snapshots.directory, listed=self._root.listed)

    def list_snapshots(self, on: bool) -> None:
        """Whether the root lists `.snapshots` from now on."""
        if isinstance(self._root, LiveTree):
            self._root.listed = on

    def forget_snapshot(self, epoch: Epoch) -> None:
        if self._snapshots is not None:
            self._snapshots.forget(epoch)
