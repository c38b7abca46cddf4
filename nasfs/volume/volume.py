"""A volume that is open: its lifetime, its capacity, its commits.

Everything here is synchronous and belongs to one thread, the owner's; only `DataSync.run`,
`sync_log` and `checkpoint` may run in another one meanwhile.  docs/durability.md has the order
of writes that the commits keep, and what a crash at each place leaves.
"""

from __future__ import annotations

import errno
from pathlib import Path
from types import TracebackType

import msgspec

from nasfs.volume.datasync import DataSync
from nasfs.volume.errors import (
    FormatError,
    FsError,
    MediaError,
    VolumeBusy,
)
from nasfs.volume.layers import Layers
from nasfs.volume.lock import VolumeLock
from nasfs.volume.media import Media
from nasfs.volume.provision import (
    Reservation,
    ReservedMedia,
    check_size,
    open_with_room,
    readable,
)
from nasfs.volume.reclaim import Reclaim
from nasfs.volume.room import Kind
from nasfs.volume.schema import OldFormatError, upgrade
from nasfs.volume.snapshots import Snapshots
from nasfs.volume.store import INO_RESERVE, Store
from nasfs.volume.types import (
    BLOCK,
    Access,
    VolumeStats,
)

from nasfs.errors import Refused  # isort: skip

_replace = msgspec.structs.replace

LIST_SNAPSHOTS = "list_snapshots"
"""The name of a setting: "on" or "off"."""


class Volume(Snapshots):
    """The live view of an open volume, and all that can be done to it.

    Made by `nasfs.volume.open_volume`; a context manager.  Methods raise `FsError` (the caller's
    business), `MediaError` (the disk refused) or `CorruptionError`.
    """

    def __init__(self, path: Path, access: Access, media: Media) -> None:
        self._lock = VolumeLock(path / "lock") if access is Access.READ_WRITE else None
        try:
            try:
                store = self._open_store(path, access, media)
            except OldFormatError:
                _upgrade(path, self._lock)
                store = self._open_store(path, access, media)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self._host = media
        self._reservation: Reservation | None = None
        if store.provision == "exact":
            self._reservation = Reservation(path, media, store.size, lambda: self._used)
            media = ReservedMedia(media, self._reservation, owner=access is Access.READ_WRITE)
        layers = Layers(path / "layers", media)
        super().__init__(path, store, layers, media)
        self._reclaim = Reclaim(store, layers, self._space)
        self._committed_bytes = self._durable_bytes = self._used
        self._gave_back = False
        if access is Access.READ_ONLY:
            self._read_only_reason = "opened read-only"
            return
        try:
            self._take_over()
        except BaseException:
            self.abandon()
            raise

    # opening and closing

    def _open_store(self, path: Path, access: Access, media: Media) -> Store:
        if access is Access.READ_ONLY:
            return Store(path / "meta.db", access, media)
        return open_with_room(path, media, lambda: Store(path / "meta.db", access, media))

    def _take_over(self) -> None:
        """Mark the volume as in use; after a crash put right what a crash leaves."""
        store = self._store
        if store.in_use:
            # A killed owner's data may be in the host's memory alone: what is shown from now on,
            # and sealed, has to be on the disk.
            self._media.sync_filesystem(self.path)
            store.rewrite_log()
            # Numbers that the last owner gave may have layer files, though no row names them.
            store.counters.next_ino = store.counters.reserved_ino
            store.execute("INSERT OR REPLACE INTO sweep VALUES (?, 0)", (store.epochs.current,))
        store.execute("UPDATE volume SET in_use = 1")
        store.reserve_inos()
        for (ino,) in store.db.execute("SELECT ino FROM orphan").fetchall():
            self._remove_orphan(self.getattr(ino))
        self.commit()

    def close(self) -> None:
        """Commit everything, durable, and let the volume go."""
        try:
            if self.writable:
                self.commit()
                self._store.execute("UPDATE volume SET in_use = 0")
                self._store.counters.reserved_ino = self._store.counters.next_ino
                self._store.commit()
                self._store.sync_log()
        finally:
            self._let_go()

    def abandon(self) -> None:
        """Let the volume go without committing: it is as of its last commit."""
        if self._store.db.in_transaction:
            self._store.db.execute("ROLLBACK")
        self._let_go()

    def _let_go(self) -> None:
        self._let_readers_go()
        self._layers.close_all()
        self._store.close()
        if self._lock is not None and self._reservation is not None:
            # Only now is it known what meta.db and its log take while nobody has them open.
            self._reservation.size = self.size
            self._reservation.used = lambda: self._durable_bytes
            self._reservation.settle(self._durable_bytes, exactly=True)
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, FsError):
            self.close()
        else:  # half an operation may be in the transaction
            self.abandon()

    @property
    def uuid(self) -> str:
        return str(self._store.uuid)

    @property
    def size(self) -> int:
        """Bytes that the volume may use; without owning it, as of its last commit."""
        if not self._store.writable:
            self._store.size = self._store.db.execute("SELECT size FROM volume").fetchone()[0]
        return int(self._store.size)

    @property
    def provision(self) -> str:
        return str(self._store.provision)

    @property
    def _used(self) -> int:
        """Bytes in blocks that the live view or a snapshot reaches."""
        counters = self._store.counters
        return (counters.live_blocks + counters.snapshot_blocks) * BLOCK

    def statfs(self) -> VolumeStats:
        """Like a view's, but never more available than the pool's disk has for this volume."""
        stats = super().statfs()
        free, _ = self._host.free_bytes(self.path)
        free += self.reserved
        return _replace(stats, available=min(stats.available, free))

    # capacity

    @property
    def reserved(self) -> int:
        """Bytes that an exact volume holds of the pool's disk, beyond what it uses."""
        return 0 if self._reservation is None else self._reservation.held

    @property
    def unreserved(self) -> int:
        """Bytes of its guarantee that it could not get back, because others took them."""
        return 0 if self._reservation is None else self._reservation.missing()

    def resize(self, size: int) -> None:
        """Another size; durable on return.

        Raises:
            ConfigError: no size for a volume.
            Refused: the live view and the snapshots hold more.
            MediaError: the disk can't guarantee it to an exact volume; nothing has changed.
        """
        self.prepare_resize(size)
        try:
            self.resize_nowait(size)
            self.commit()
        finally:
            self.end_resize()

    def prepare_resize(self, size: int) -> None:
        """Before `resize_nowait`: hold what an exact volume will need.  May be in a thread."""
        self._check_holds(size)
        if self._reservation is None or size <= self._reservation.size:
            return
        self._reservation.size = size
        try:
            self._reservation.fill()
        except MediaError:
            self.end_resize()
            raise

    def resize_nowait(self, size: int) -> None:
        """Within the open transaction; `prepare_resize` comes before, `end_resize` after."""
        self._begin()
        self._check_holds(size)
        self._store.execute("UPDATE volume SET size = ?", (size,))
        self._store.size = size

    def end_resize(self) -> None:
        """Hold what the size needs that the volume has now.  May be in a thread."""
        if self._reservation is not None:
            self._reservation.size = self.size
            self._settle(exactly=True)

    def _check_holds(self, size: int) -> None:
        check_size(size)
        stats = self.statfs()
        if size < stats.used:
            raise Refused(
                f"volume {self.name} holds {stats.used} bytes ({readable(stats.live)} live,"
                f" {readable(stats.used - stats.live)} in snapshots alone) and can't shrink to"
                f" {size} bytes",
                hint="destroy snapshots or remove files first",
            )

    def _settle(self, *, exactly: bool = False, wait: bool = True) -> None:
        """The reservation follows what is used."""
        if self._reservation is not None:
            self._reservation.settle(self._durable_bytes, exactly=exactly, wait=wait)
            self._reservation.keep_log_ahead()

    # settings

    @property
    def lists_snapshots(self) -> bool:
        """Whether `.snapshots` stands in the listing of a mount's root."""
        return self._store.setting(LIST_SNAPSHOTS) == "on"

    def list_snapshots_nowait(self, on: bool) -> None:
        """Durable after the next commit."""
        self._begin()
        self._store.execute(
            "INSERT OR REPLACE INTO setting VALUES (?, ?)", (LIST_SNAPSHOTS, "on" if on else "off")
        )

    # durability

    @property
    def changed(self) -> bool:
        """Something is not committed, or was dropped and nobody was told yet."""
        return self._store.changed or bool(self._store.failure)

    def dirty_data(self) -> DataSync:
        """What has been written and not synced; its `run` may be called in a thread."""
        return self._layers.take_dirty()

    def flush_rows(self) -> None:
        """Write changed rows into the open transaction, which `commit_nowait` would do else."""
        self._store.flush()

    def commit_nowait(self) -> None:
        """Commit metadata without waiting for the disk; all data must be synced before.

        Durable after `sync_log`.
        """
        assert not self._layers.is_dirty, "data is synced before the metadata that names it"
        self._commit_metadata()

    def _commit_metadata(self) -> None:
        self._check_not_lost()
        if self._store.db.in_transaction and self._store.inos_left() < INO_RESERVE // 2:
            self._store.reserve_inos()  # so that hardly ever a create has to wait for it
        for ino, layer in self._layers.take_spoiled():
            self._space.queue(ino, layer)
        if self._reservation is not None:
            self._reservation.keep_log_ahead()
        try:
            self._store.commit()
        except MediaError:
            if not self._store.db.in_transaction:  # SQLite has rolled it back by itself
                self.go_read_only("the pool's disk refused a commit")
            raise
        self._let_readers_go()
        self._committed = self._space.committed()
        self._reserved = self._store.counters.reserved_ino
        self._committed_bytes = self._used

    def sync_log(self) -> None:
        """What was committed is durable on return.  May be called in a thread."""
        generation, reserved, used = self._committed, self._reserved, self._committed_bytes
        self._store.sync_log()
        self._space.durable(generation)
        self._usable_ino = reserved
        self._durable_bytes = used
        self._settle()

    def checkpoint_needed(self) -> bool:
        return self._store.checkpoint_needed() or self._room.log_is_too_long()

    def checkpoint(self) -> None:
        """Move the log into the tables; while nothing changes the volume.  May be in a thread."""
        if self._reservation is not None:
            self._reservation.make_room_for_log()
        self._store.checkpoint()
        if self._reservation is not None:
            self._reservation.keep_log_ahead()

    def commit(self) -> None:
        """Everything that returned before is durable on return."""
        if self._lock is None:  # opened read-only: there is nothing of ours to commit
            return
        self._sync_data()
        self._commit_metadata()
        self._sync_log()
        if self.checkpoint_needed():
            try:
                self.checkpoint()
            except MediaError as exc:  # what was committed is durable; more would be too much
                self.go_read_only(f"the log could not be moved into the tables: {exc}")
                raise

    def _sync_data(self) -> None:
        self._check_not_lost()
        work = self._layers.take_unsynced()
        try:
            work.run()
        except MediaError as exc:
            self.data_refused(work, exc)
            raise

    def data_refused(self, work: DataSync, error: MediaError) -> None:
        """`DataSync.run` failed.  Of what is lost nothing may be acknowledged any more.

        The host has dropped pages that it could not write, and a second sync would not tell.  But
        what it did not even take, because the disk is full, is tried again with the next commit.
        """
        self._layers.take_back(work)
        if work.lost:
            self.go_read_only(f"file data could not be written: {error}")

    def _sync_log(self) -> None:
        try:
            self.sync_log()
        except MediaError as exc:
            self.go_read_only(f"the log could not be written: {exc}")
            raise

    def _check_not_lost(self) -> None:
        """Before anything is acknowledged: once changes were dropped, nothing is any more."""
        self._check_failure()
        if not self.writable:
            raise MediaError(
                errno.EIO, f"volume {self.name} is read-only ({self._read_only_reason})"
            )

    # inode numbers, and what is given back

    @property
    def next_inode(self) -> int:
        """No inode number from this one on was ever given, not even to what a crash has lost."""
        return int(self._store.db.execute("SELECT reserved_ino FROM volume").fetchone()[0])

    def advance_inode_numbers(self, number: int) -> None:
        """No number below this one is given from now on; durable on return."""
        self._begin()
        counters = self._store.counters
        if number > counters.next_ino:
            counters.next_ino = counters.reserved_ino = number
            self._store.reserve_inos()
        self.commit()

    def skip_inode_numbers(self, count: int = 1 << 32) -> None:
        """What a lost active site allocated can never alias a new file; durable on return."""
        self._begin()
        self._store.counters.next_ino = self._store.counters.reserved_ino + count
        self._store.reserve_inos()
        self.commit()

    def reclaim_step(self, limit: int = 1000) -> bool:
        """Give space back, in a bounded step; False when nothing can be done before a commit."""
        if not self.writable:
            return False
        self._room.take(0, Kind.RECLAIMS)
        done = self._reclaim.step(min(limit, 16) if self._room.is_short else limit)
        if done or self._gave_back:  # a last time when all is done: the host frees with a delay
            self._settle(exactly=True, wait=False)
        self._gave_back = done
        return done

    def reclaim_pending(self) -> dict[str, int]:
        """What reclaim has left to do: layers, snapshots, directories."""
        return self._reclaim.pending()


def _upgrade(path: Path, lock: VolumeLock | None) -> None:
    """Bring a volume of an older release up; whoever does it owns the volume meanwhile."""
    if lock is not None:
        upgrade(path / "meta.db")
        return
    try:
        lock = VolumeLock(path / "lock")
    except VolumeBusy as exc:
        raise FormatError(
            str(path / "meta.db"),
            "an older release serves this volume",
            hint="unmount it and mount it again: nasfs volume unmount, nasfs volume mount",
        ) from exc
    try:
        upgrade(path / "meta.db")
    finally:
        lock.release()
