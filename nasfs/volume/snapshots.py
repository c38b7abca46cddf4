"""The snapshots of an open volume: sealed, offered, held, destroyed, gone back to.

Functions that end in ``_nowait`` belong to the transaction that is open; the others are durable on
return.
"""

from __future__ import annotations

import errno
import time
import uuid as uuids
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from nasfs.volume.delta import Delta, touched
from nasfs.volume.errors import (
    FsError,
    MediaError,
    NoSuchSnapshot,
    SnapshotExists,
    SnapshotHeld,
)
from nasfs.volume.files import Files
from nasfs.volume.history import FOREVER
from nasfs.volume.kept import own_by_rows
from nasfs.volume.layers import Layers
from nasfs.volume.lock import Lease, leased
from nasfs.volume.media import Media
from nasfs.volume.rollback import roll_back
from nasfs.volume.room import Kind
from nasfs.volume.store import Store
from nasfs.volume.types import NAME_MAX, ROOT_INO, Epoch, Hold, Inode, Snapshot, SnapshotState
from nasfs.volume.view import AsOf

READER = "reader"
"""Who holds a snapshot of which there is a lease."""

_LEASE = Hold(READER, "it is mounted as the newest one, or compared with the partner's")


class Snapshots(Files):
    """The live view, and the snapshots beside it."""

    def __init__(self, path: Path, store: Store, layers: Layers, media: Media) -> None:
        super().__init__(path, store, layers, media)
        self._views: dict[int, AsOf] = {}
        self._doomed: list[Lease] = []
        """Against readers of what the open transaction destroys."""

    @abstractmethod
    def _sync_data(self) -> None:
        """All data that was written is on stable storage on return."""

    @abstractmethod
    def _commit_metadata(self) -> None:
        """Commit without waiting for the disk; all data must be synced before."""

    @abstractmethod
    def _sync_log(self) -> None:
        """What was committed is durable on return."""

    def snapshots(self) -> list[Snapshot]:
        """The sealed ones, oldest first."""
        if not self._store.writable:
            self._store.load_snapshots()
        return list(self._store.sealed.values())

    def ancestors(self) -> list[Snapshot]:
        """Those from which the live view descends, oldest first: no rollback left them aside."""
        if not self._store.writable:
            self._store.load_snapshots()
        return self._store.ancestors()

    def own_blocks(self) -> dict[int, int]:
        """By epoch, how many blocks a snapshot alone sees: what destroying just it gives back."""
        if self._store.writable:
            self._store.flush(self._store.kept)
        else:
            self._store.load_snapshots()
            self._store.kept.load()
        epochs = self._store.snapshot_epochs
        if self._store.kept.is_known:
            return self._store.kept.own(epochs)
        if self._store.writable:
            self._store.flush()
        return own_by_rows(self._store.db, epochs)

    def pending(self) -> list[str]:
        """The snap groups of which a snapshot waits for `settle`."""
        snapshots = self._store.all_snapshots
        return [s.snap_group for s in snapshots if s.state is SnapshotState.PENDING]

    def snapshot(self, name: str) -> Snapshot:
        """By its name or GUID."""
        if not self._store.writable:
            self._store.load_snapshots()
        found = self._store.sealed_names.get(name)
        if found is not None:
            return found
        for snapshot in self._store.sealed.values():
            if name == snapshot.guid:
                return snapshot
        raise NoSuchSnapshot(
            f"volume {self.name} has no snapshot {name}", hint="list them: nasfs snapshot list"
        )

    def find_snapshot(self, name: str) -> Snapshot | None:
        """By its name alone, at once however many there are; for the owner."""
        return self._store.sealed_names.get(name)

    @property
    def snapshot_count(self) -> int:
        """For the owner."""
        return len(self._store.sealed)

    def newest_snapshot(self) -> Snapshot | None:
        """For the owner."""
        return next(reversed(self._store.sealed.values()), None)

    def snapshots_after(self, epoch: int, limit: int) -> list[Snapshot]:
        """Those with a higher epoch, oldest first, *limit* at most; for the owner."""
        found = self._store.all_snapshots
        first = bisect_right(found, epoch, key=lambda snapshot: snapshot.epoch)
        rest = (found[index] for index in range(first, len(found)))
        return list(islice((s for s in rest if s.state is SnapshotState.SEALED), limit))

    def root_of(self, epoch: Epoch) -> Inode:
        """The root as of a sealed snapshot, without a view of its own."""
        row = self._store.inodes.get_at((ROOT_INO,), epoch)
        if row is None:
            raise FsError(errno.ESTALE, f"no snapshot of epoch {epoch}")
        return Inode(*row)

    def view(self, epoch: Epoch) -> AsOf:
        """The file system as of a sealed snapshot."""
        view = self._views.get(epoch)
        if view is None:
            if not self._store.writable:
                self._store.load_snapshots()
            if epoch not in self._store.sealed:
                raise NoSuchSnapshot(f"volume {self.name} has no snapshot of epoch {epoch}")
            if len(self._views) >= 16:
                del self._views[next(iter(self._views))]
            view = self._views[epoch] = AsOf(self._store, self._layers, epoch)
        return view

    def lease(self, name: str) -> tuple[Snapshot, Lease]:
        """Nobody destroys that snapshot (name or GUID) until the lease is released, or we end.

        For who has the volume open read-only, and reads for longer.
        """
        try:
            lease = Lease(self.path / "lock", self.snapshot(name).epoch)
        except BlockingIOError:
            raise NoSuchSnapshot(f"snapshot {name} of volume {self.name} is destroyed") from None
        try:
            return self.snapshot(name), lease  # it could have been destroyed just before
        except BaseException:
            lease.release()
            raise

    def _let_readers_go(self) -> None:
        """What was destroyed is committed, or will not be."""
        for lease in self._doomed:
            lease.release()
        self._doomed.clear()

    @contextmanager
    def as_of_last_commit(self) -> Iterator[Epoch]:
        """For who has opened it read-only: within, `AsOf` of this epoch is the live view.

        It stays as it was, whatever the owner does; meanwhile its log can't be emptied.
        """
        db = self._store.db
        db.execute("BEGIN")
        try:
            yield Epoch(db.execute("SELECT epoch FROM volume").fetchone()[0])
        finally:
            db.execute("ROLLBACK")

    def delta(self, base: Epoch, target: Epoch) -> Delta:
        """What changed from one sealed snapshot to a later one; base 0 is the empty volume."""
        if base:
            self.view(base)
        self.view(target)
        return Delta(self._store, self._layers, base, target)

    def changed_since(self, name: str) -> bool:
        """Whether the live view was changed after a snapshot (name or GUID), committed or not.

        Costs the same whatever the volume holds.  What was changed and changed back counts.
        Without owning the volume: as of its last commit.
        """
        return self._store.changed_since(self.snapshot(name).epoch)

    def seal(
        self,
        name: str,
        *,
        guid: str | None = None,
        time_ns: int | None = None,
        snap_group: str = "",
        along: Callable[[Snapshot], None] | None = None,
    ) -> Snapshot:
        """A snapshot of everything that returned before; durable and immutable on return.

        Args:
            along: what it changes of metadata becomes durable at no further cost.
        """
        self._sync_data()
        snapshot = self.seal_nowait(name, guid=guid, time_ns=time_ns, snap_group=snap_group)
        if along is not None:
            along(snapshot)
            self._commit_metadata()
        self._sync_log()
        return snapshot

    def seal_nowait(
        self,
        name: str,
        *,
        guid: str | None = None,
        time_ns: int | None = None,
        snap_group: str = "",
        pending: bool = False,
    ) -> Snapshot:
        """Like `seal` but durable only after `sync_log`; all data must be synced before.

        Args:
            pending: not offered until `settle_nowait` has been told that its snap group is whole.
        """
        assert not self._layers.is_dirty, "data is synced before the metadata that names it"
        check_snapshot_name(name)
        self._begin()
        for other in self._store.all_snapshots:
            taken = other.name == name and other.state is not SnapshotState.DESTROYING
            if taken or other.guid == guid:
                raise SnapshotExists(
                    f"volume {self.name} has a snapshot {other.name} already",
                    hint="choose another name, or destroy that snapshot first",
                )
        epoch = self.epoch
        snapshot = Snapshot(
            epoch=epoch,
            name=name,
            guid=guid or str(uuids.uuid4()),
            time_ns=time.time_ns() if time_ns is None else time_ns,
            snap_group=snap_group,
            state=SnapshotState.PENDING if pending else SnapshotState.SEALED,
            blocks=self._store.counters.live_blocks,
        )
        self._store.flush()
        self._store.execute(
            "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                epoch,
                name,
                snapshot.guid,
                snapshot.time_ns,
                snap_group,
                snapshot.state.value,
                snapshot.blocks,
            ),
        )
        self._store.epochs.current = epoch + 1
        try:
            self._commit_metadata()
        except MediaError:
            if self.writable:  # the transaction is still open: take the snapshot out of it
                self._store.epochs.current = epoch
                self._store.execute("DELETE FROM snapshot WHERE epoch = ?", (epoch,))
            raise
        self._layers.seal()
        self._store.add_snapshot(snapshot)
        return snapshot

    def settle(self, snap_group: str, *, keep: bool) -> None:
        """See `settle_nowait`; durable on return."""
        self.settle_nowait(snap_group, keep=keep)
        self.commit()

    def settle_nowait(self, snap_group: str, *, keep: bool) -> None:
        """Offer the pending snapshot of a snap group, or drop it.  To be told twice is fine.

        Raises:
            NoSuchSnapshot: it shall be kept, and there is none of that snap group.
        """
        found = [s for s in self._store.all_snapshots if s.snap_group == snap_group]
        pending = [s for s in found if s.state is SnapshotState.PENDING]
        if keep and not any(s.state is not SnapshotState.DESTROYING for s in found):
            raise NoSuchSnapshot(f"volume {self.name} has no snapshot of snap group {snap_group}")
        self._set_state(pending, SnapshotState.SEALED if keep else SnapshotState.DESTROYING)

    def _set_state(self, snapshots: Sequence[Snapshot], state: SnapshotState) -> None:
        for snapshot in snapshots:
            self._begin(Kind.RECLAIMS)
            self._store.execute(
                "UPDATE snapshot SET state = ? WHERE epoch = ?", (state.value, snapshot.epoch)
            )
            if state is SnapshotState.DESTROYING:
                self._views.pop(snapshot.epoch, None)
        self._store.load_snapshots()

    def rename_snapshot(self, name: str, new_name: str) -> None:
        """Durable on return."""
        self.rename_snapshot_nowait(name, new_name)
        self.commit()

    def rename_snapshot_nowait(self, name: str, new_name: str) -> None:
        """Within the open transaction."""
        snapshot = self.snapshot(name)
        check_snapshot_name(new_name)
        if any(s.name == new_name for s in self.snapshots()):
            raise SnapshotExists(f"volume {self.name} has a snapshot {new_name} already")
        self._begin()
        self._store.execute(
            "UPDATE snapshot SET name = ? WHERE epoch = ?", (new_name, snapshot.epoch)
        )
        self._store.load_snapshots()

    def destroy_snapshot(self, name: str) -> None:
        """No longer offered from now on, durably; `reclaim_step` gives its space back."""
        self.destroy_snapshots_nowait([name])
        self.commit()

    def destroy_snapshots_nowait(self, names: Sequence[str]) -> list[Snapshot]:
        """Within the open transaction: all of them or, if one is not there or held, none."""
        snapshots = [self.snapshot(name) for name in dict.fromkeys(names)]
        for snapshot in snapshots:
            if holds := self.holds(snapshot.name):
                raise SnapshotHeld(snapshot.name, [hold.owner for hold in holds])
        for snapshot in snapshots:
            try:
                self._doomed.append(Lease(self.path / "lock", snapshot.epoch, against_all=True))
            except BlockingIOError:
                raise SnapshotHeld(snapshot.name, [READER]) from None
        self._set_state(snapshots, SnapshotState.DESTROYING)
        return snapshots

    def hold(self, name: str, owner: str, reason: str) -> None:
        """The snapshot can't be destroyed until this owner releases it; durable on return."""
        self.hold_nowait(name, owner, reason)
        self.commit()

    def hold_nowait(self, name: str, owner: str, reason: str) -> None:
        """Within the open transaction."""
        snapshot = self.snapshot(name)
        self._begin()
        self._store.execute(
            "INSERT OR REPLACE INTO hold VALUES (?, ?, ?)", (snapshot.epoch, owner, reason)
        )

    def release_hold(self, name: str, owner: str) -> None:
        """Releasing what is not held changes nothing; durable on return."""
        self.release_hold_nowait(name, owner)
        self.commit()

    def release_hold_nowait(self, name: str, owner: str) -> None:
        """Within the open transaction."""
        snapshot = self.snapshot(name)
        self._begin()
        self._store.execute(
            "DELETE FROM hold WHERE epoch = ? AND owner = ?", (snapshot.epoch, owner)
        )

    def holds(self, name: str) -> list[Hold]:
        snapshot = self.snapshot(name)
        rows = self._store.db.execute(
            "SELECT owner, reason FROM hold WHERE epoch = ? ORDER BY owner", (snapshot.epoch,)
        )
        return [*(Hold(*row) for row in rows), *([_LEASE] * (snapshot.epoch in self._leased()))]

    def _leased(self) -> set[int]:
        ours = {lease.epoch for lease in self._doomed}
        return set(leased(self.path / "lock")) - ours

    def all_holds(self) -> dict[str, list[Hold]]:
        """Of every held snapshot, by its GUID."""
        rows = self._store.db.execute(
            "SELECT guid, owner, reason FROM hold JOIN snapshot USING (epoch) ORDER BY owner"
        )
        found: dict[str, list[Hold]] = {}
        for guid, owner, reason in rows:
            found.setdefault(guid, []).append(Hold(owner, reason))
        for epoch in self._leased():
            if epoch in self._store.sealed:
                found.setdefault(self._store.sealed[Epoch(epoch)].guid, []).append(_LEASE)
        return found

    def rollback(self, epoch: Epoch) -> None:
        """The live view becomes what it was at a sealed snapshot; durable on return.

        Later snapshots stay.  Costs what changed since, not what is there.
        """
        self._begin()
        self.view(epoch)
        self.commit()
        self._begin()
        roll_back(self._store, self._space, self, epoch)
        self._store.load_snapshots()
        for (ino,) in self._store.db.execute("SELECT ino FROM orphan").fetchall():
            if ino not in self._open:
                self._remove_orphan(self.getattr(ino))
        self.commit()

    def commits_seen(self) -> int:
        """Another number whenever somebody else has committed; for who has it open read-only."""
        return int(self._store.db.execute("PRAGMA data_version").fetchone()[0])

    def look_again(self) -> None:
        """What was read when it was opened is as of the last commit; for who has it read-only."""
        self._store.load_state()

    def inodes_changed_since(self, epoch: Epoch, upto: int = FOREVER) -> Iterator[list[int]]:
        """Inodes with any row but names that is another than at a sealed epoch, by the page.

        Also the removed ones, and perhaps more.  What changes while it is read may be missed.

        Args:
            upto: a later sealed epoch; the live view by default.
        """
        for table in (self._store.inodes, self._store.xattrs):
            for page in touched(table, epoch, upto):
                yield [row[0] for row in page]

    def entries_changed_since(
        self, epoch: Epoch, upto: int = FOREVER
    ) -> Iterator[list[tuple[int, bytes]]]:
        """The same of entries: (directory, name), be it added, removed or another inode's."""
        for page in touched(self._store.dirents, epoch, upto):
            yield [(row[0], row[1]) for row in page]


def check_snapshot_name(name: str) -> None:
    """A snapshot's name is one path component, without ``@``."""
    encoded = name.encode(errors="surrogateescape")
    if not encoded or len(encoded) > NAME_MAX or name in (".", "..") or set(name) & set("/@\0\n"):
        raise FsError(errno.EINVAL, f"{name!r} can't be the name of a snapshot")
