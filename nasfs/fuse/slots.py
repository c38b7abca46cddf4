"""Where a snapshot's inodes stand among the kernel's 64 bits of inode numbers.

Above an inode's own number is room for 22 bits, and a volume that is sealed once a second has
more epochs than that after seven weeks.  So a snapshot stands at a *slot*: the low bits of its
epoch or, if another snapshot stands there, the next that is free.
"""

from __future__ import annotations

import errno
from typing import Protocol

from nasfs.volume import FsError, Snapshot
from nasfs.volume.types import INO_BITS, Epoch

SLOTS = 1 << 22


class SnapshotList(Protocol):
    def snapshots(self) -> list[Snapshot]: ...


class Slots:
    """Slots of one mount; a snapshot keeps its slot until it is forgotten."""

    def __init__(self, volume: SnapshotList) -> None:
        self._volume = volume
        self._slots: dict[int, int] = {}
        self._epochs: dict[int, Epoch] = {}

    def base(self, epoch: Epoch) -> int:
        """What stands above the engine's inode numbers in a snapshot."""
        slot = self._slots.get(epoch)
        if slot is None:
            slot = epoch % SLOTS
            while not slot or slot in self._epochs:  # 0 is the live view
                slot = (slot + 1) % SLOTS
            self._slots[epoch], self._epochs[slot] = slot, epoch
        return slot << INO_BITS

    def epoch(self, base: int) -> Epoch:
        """The other way; ESTALE if no snapshot stands there.

        The kernel may have the number from an earlier mount, as an NFS server's clients do.
        """
        slot = base >> INO_BITS
        found = self._epochs.get(slot)
        if found is None:
            for snapshot in self._volume.snapshots():
                if snapshot.epoch % SLOTS == slot:
                    self.base(snapshot.epoch)
            found = self._epochs.get(slot)
        if found is None:
            raise FsError(errno.ESTALE)
        return found

    def forget(self, epoch: Epoch) -> None:
        """The snapshot is gone."""
        slot = self._slots.pop(epoch, None)
        if slot is not None:
            del self._epochs[slot]
