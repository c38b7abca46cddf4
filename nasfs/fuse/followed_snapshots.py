"""The snapshots beside the one that a mount follows: `.snapshots` of a volume that others own.

The owner is in general a receiver, and its retention destroys what nobody holds.  So what is looked
into below `.snapshots` is leased from then on, until nobody has looked for a while.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import trio

from nasfs.fuse.snapdir import SnapshotTree, SnapshotTrees
from nasfs.volume import FsError, Ino, Inode, Lease, NoSuchSnapshot, Snapshot, View, Volume
from nasfs.volume.types import Epoch

IDLE_S = 60.0
"""So long a snapshot is kept that nobody has looked into (seconds)."""


class SeenSnapshots:
    """What a volume's owner has sealed, as of its last commit.

    Args:
        volume: opened read-only.
        shown: what stands at the root now.
    """

    def __init__(self, volume: Volume, shown: Callable[[], View]) -> None:
        self._volume = volume
        self._shown = shown
        self._seen = -1

    def _fresh(self) -> Volume:
        """With the snapshots that are there now."""
        seen = self._volume.commits_seen()
        if seen != self._seen:
            self._volume.snapshots()
            self._seen = seen
        return self._volume

    @property
    def snapshot_count(self) -> int:
        return self._fresh().snapshot_count

    def getattr(self, ino: Ino) -> Inode:
        return self._shown().getattr(ino)

    def snapshots(self) -> list[Snapshot]:
        return self._volume.snapshots()

    def find_snapshot(self, name: str) -> Snapshot | None:
        return self._fresh().find_snapshot(name)

    def newest_snapshot(self) -> Snapshot | None:
        return self._fresh().newest_snapshot()

    def snapshots_after(self, epoch: int, limit: int) -> list[Snapshot]:
        return self._fresh().snapshots_after(epoch, limit)

    def root_of(self, epoch: Epoch) -> Inode:
        return self._volume.root_of(epoch)

    def view(self, epoch: Epoch) -> View:
        return self._volume.view(epoch)


class LeasedTrees(SnapshotTrees):
    """Trees of snapshots that others may destroy, but while somebody looks into them."""

    def __init__(self, volume: Volume, shown: Callable[[], View]) -> None:
        super().__init__(SeenSnapshots(volume, shown))
        self._reader = volume
        self._leases: dict[Epoch, tuple[Lease, float]] = {}
        """With the time of the latest look."""

    def of(self, number: int) -> SnapshotTree:
        epoch = self.epoch(number)
        known = self._leases.get(epoch)
        lease = known[0] if known else self._lease(epoch)
        self._leases[epoch] = lease, trio.current_time()
        return super().of(number)

    def _lease(self, epoch: Epoch) -> Lease:
        try:
            guid = next(s.guid for s in self._reader.snapshots() if s.epoch == epoch)
            return self._reader.lease(guid)[1]
        except (StopIteration, NoSuchSnapshot):
            self.forget(epoch)
            raise FsError(errno.ESTALE) from None

    def let_go(self, now: float) -> None:
        """Of what nobody has looked into for a while."""
        for epoch, (lease, looked) in list(self._leases.items()):
            if now - looked > IDLE_S:
                del self._leases[epoch]
                lease.release()
