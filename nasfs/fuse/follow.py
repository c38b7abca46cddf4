"""A read-only mount of the newest snapshot, whichever that is: new ones are followed.

It reads beside the volume's owner, in general a receiver, and never asks it for anything.  What
is shown is leased, so that retention leaves it alone.  When there is a newer one, requests are
answered from it at once, and the kernel is told what to forget; docs/replication.md says what
programs see.
"""

from __future__ import annotations

import logging

import trio

from nasfs.errors import NasError, Refused
from nasfs.fuse.followed_snapshots import LeasedTrees
from nasfs.fuse.snapdir import Trees
from nasfs.fuse.versions import forget_entries, forget_inodes
from nasfs.volume import Lease, NoSuchSnapshot, Snapshot, Volume

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""So often it is looked whether there is a newer snapshot (seconds)."""
GRACE_S = 30.0
"""So long the one that was shown before stays: a read of it may be waiting for the disk."""
TRIES = 5


class Follower:
    """What a volume that was opened read-only shows, and the task that keeps that up.

    Args:
        listed: whether the root lists `.snapshots`; as the volume says if None.

    Raises:
        Refused: it has no snapshot yet.
    """

    def __init__(self, volume: Volume, *, listed: bool | None = None) -> None:
        self._volume = volume
        self._seen = volume.commits_seen()
        self._shown, self._lease = self._newest()
        self._former: list[tuple[float, Lease]] = []
        """Leases that end at a time."""
        self._view = volume.view(self._shown.epoch)
        self._others = LeasedTrees(volume, lambda: self._view)
        listed = volume.lists_snapshots if listed is None else listed
        self.trees = Trees.following(self._view, self._others, listed=listed)

    def _newest(self) -> tuple[Snapshot, Lease]:
        for _ in range(TRIES):
            found = self._volume.ancestors()
            if not found:
                raise Refused(
                    f"volume {self._volume.name} has no snapshot that could be shown",
                    hint="wait until the first one has arrived: nasfs replication reception GROUP",
                )
            try:
                return self._volume.lease(found[-1].guid)
            except NoSuchSnapshot:  # destroyed just now, so there is a newer one
                continue
        raise NoSuchSnapshot(f"the snapshots of volume {self._volume.name} come and go too fast")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                await self.look()
            except NasError as exc:
                log.warning("there may be a newer snapshot than is shown: %s", exc)

    async def look(self) -> None:
        """Show the newest snapshot, if it is another one."""
        now = trio.current_time()
        self._others.let_go(now)
        while self._former and self._former[0][0] <= now:
            self._former.pop(0)[1].release()
        seen = self._volume.commits_seen()
        if seen == self._seen:
            return
        self._seen = seen
        newest = self._volume.ancestors()
        if not newest or newest[-1].guid == self._shown.guid:
            return
        before = self._shown
        self._former.append((now + GRACE_S, self._lease))
        self._shown, self._lease = self._newest()
        self._volume.look_again()
        self._view = self._volume.view(self._shown.epoch)
        self.trees.show(self._view)
        log.info("showing snapshot %s", self._shown.name)
        low, high = sorted((before.epoch, self._shown.epoch))
        for inodes in self._volume.inodes_changed_since(low, high):
            await forget_inodes(inodes)
        for entries in self._volume.entries_changed_since(low, high):
            await forget_entries(entries)
