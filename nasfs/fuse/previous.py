"""`.snapshots/@GMT/@GMT-YYYY.MM.DD-hh.mm.ss/`: all snapshots once more, named by their time in UTC.

People name snapshots as they like; Samba's `shadow_copy2`, which shows them to Windows as Previous
Versions, knows them by names that are times.  No snapshot can be called `@GMT`, so these names
are in nobody's way.  The directory is reached by its name and not listed in `.snapshots`.

What is below has inode numbers of its own: a directory that had two places under one number would
be moved by the kernel from one to the other with each look at it.
"""

from __future__ import annotations

import errno
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Protocol

import pyfuse3

from nasfs.fuse.slots import Slots
from nasfs.fuse.tree import Entry, to_entry
from nasfs.volume import FsError, Snapshot, View
from nasfs.volume.types import ROOT_INO, Epoch

PREVIOUS_NAME = b"@GMT"
PREVIOUS_INO = 3

PREVIOUS_NUMBERS = 1 << 63
"""Above the number that the inode has below `.snapshots/NAME`."""

FORMAT = "@GMT-%Y.%m.%d-%H.%M.%S"

_SECOND_NS = 1_000_000_000
_FIRST_S, _LAST_S = 86_400, 253_402_300_799
"""There are no names for times before (a clock that was never set) and after the year 9999."""

_FIRST_COOKIE = 2
"""Cookies up to it are those of "." and ".."."""


def by_second(snapshots: Sequence[Snapshot]) -> dict[int, Snapshot]:
    """Each snapshot under a second (since 1970) of its own, oldest first.

    That is the second in which it was taken, or as many before as it takes to be older than the
    next one: none hides another, their order is that of their times, and one that is taken in a
    later second moves no other.
    """
    found: dict[int, Snapshot] = {}
    limit = _LAST_S
    for snapshot in sorted(snapshots, key=lambda s: (s.time_ns, s.epoch), reverse=True):
        second = min(max(snapshot.time_ns // _SECOND_NS, _FIRST_S), limit)
        found[second] = snapshot
        limit = second - 1
    return dict(reversed(found.items()))


def to_name(second: int) -> bytes:
    return time.strftime(FORMAT, time.gmtime(second)).encode()


class SnapshotViews(Protocol):
    def snapshots(self) -> list[Snapshot]: ...

    def view(self, epoch: Epoch, /) -> View: ...


class PreviousVersions:
    """The tree that is the directory `.snapshots/@GMT` itself and nothing else.

    Args:
        attributes: those of `.snapshots`, under another number.
        above: the number of `.snapshots`.
        name_s: seconds that the kernel may keep a name.
    """

    def __init__(
        self,
        volume: SnapshotViews,
        slots: Slots,
        attributes: Callable[[int], pyfuse3.EntryAttributes],
        *,
        above: int,
        name_s: float,
    ) -> None:
        self._volume = volume
        self._slots = slots
        self._above = above
        self._attributes = attributes
        self._name_s = name_s
        self._snapshots: list[Snapshot] = []
        self._names: dict[bytes, Snapshot] = {}
        self._listing: list[tuple[int, bytes]] = []
        """Cookies and names, in the order of cookies."""

    def _learn(self) -> None:
        """What there is now; only when a snapshot has come or gone there is something to do."""
        snapshots = self._volume.snapshots()
        if snapshots == self._snapshots:
            return
        self._names = {to_name(s): found for s, found in by_second(snapshots).items()}
        self._listing = sorted((s.epoch + _FIRST_COOKIE, n) for n, s in self._names.items())
        self._snapshots = snapshots

    def lookup(self, number: int, name: bytes) -> pyfuse3.EntryAttributes:
        if name == b".":
            return self.getattr(number)
        if name == b"..":
            return self._attributes(self.parent(number))
        self._learn()
        snapshot = self._names.get(name)
        if snapshot is None:
            raise FsError(errno.ENOENT)  # unlike an entry of 0, it is not remembered
        return self._entry(snapshot)

    def getattr(self, number: int) -> pyfuse3.EntryAttributes:
        return self._attributes(number)

    def parent(self, number: int) -> int:
        return self._above

    def readdir(self, number: int, after: int, limit: int) -> list[Entry]:
        self._learn()
        first = bisect_right(self._listing, after, key=lambda item: item[0])
        page = self._listing[first : first + limit]
        return [(name, self._entry(self._names[name]), cookie) for cookie, name in page]

    def _entry(self, snapshot: Snapshot) -> pyfuse3.EntryAttributes:
        root = self._volume.view(snapshot.epoch).getattr(ROOT_INO)
        entry = to_entry(root, PREVIOUS_NUMBERS | self._slots.base(snapshot.epoch))
        entry.entry_timeout = self._name_s
        return entry

    def readlink(self, number: int) -> bytes:
        raise FsError(errno.EINVAL)

    def read_into(self, number: int, offset: int, buffer: memoryview) -> int:
        raise FsError(errno.EISDIR)

    def getxattr(self, number: int, name: bytes) -> bytes:
        raise FsError(errno.ENODATA)

    def listxattr(self, number: int) -> list[bytes]:
        return []
