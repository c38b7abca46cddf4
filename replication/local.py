"""The endpoints on top of a real volume: reading its deltas, taking deltas in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, assert_never

import msgspec

from nasfs.errors import Refused
from nasfs.volume import (
    Access,
    Applier,
    ChangedExtent,
    Delta,
    Epoch,
    ExtentPosition,
    Ino,
    Inode,
    Layer,
    Pool,
    RowPosition,
    Snapshot,
    Volume,
    create_volume,
    open_volume,
)
from nasfs.volume.apply import Piece
from nasfs.volume.delta import Change
from nasfs.volume.sync_ahead import SyncAhead

from .endpoint import (
    Amount,
    Batch,
    DataBatch,
    DirentGone,
    DirentRow,
    Extent,
    InodeGone,
    InodeRow,
    Progress,
    Row,
    RowBatch,
    SnapshotRef,
    VolumeSpec,
    XattrGone,
    XattrRow,
)
from .errors import RemoteProtocolError

ROWS_A_BATCH = 1000
BYTES_A_BATCH = 2 << 20
EXTENTS_A_BATCH = 4096

RECLAIM_A_COMMIT = 1000
"""Layers that a receiver gives back after each commit, at most."""


class _RowCursor(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    position: RowPosition


class _ExtentCursor(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    position: ExtentPosition | None


_CURSOR = msgspec.msgpack.Decoder(_RowCursor | _ExtentCursor)


def _ref(snapshot: Snapshot) -> SnapshotRef:
    return SnapshotRef(snapshot.guid, snapshot.name, snapshot.time_ns, snapshot.snap_group)


class VolumeSource:
    """A volume of the active site, opened read-only beside its mount process."""

    def __init__(self, path: Path) -> None:
        self._volume = open_volume(path, Access.READ_ONLY)
        self._latest: tuple[tuple[str | None, str], Delta] | None = None
        """The delta that was asked for last: it may know what it consists of."""

    @property
    def volume_uuid(self) -> str:
        return self._volume.uuid

    @property
    def size(self) -> int:
        return self._volume.size

    def snapshots(self) -> list[SnapshotRef]:
        return [_ref(snapshot) for snapshot in self._volume.snapshots()]

    def total(self, base: str | None, target: str) -> Amount:
        return Amount(*self._delta(base, target).count())

    def read_delta(self, base: str | None, target: str, cursor: bytes) -> Iterator[Batch]:
        with ExitStack() as leases:  # else what is destroyed meanwhile would just be missing
            for guid in filter(None, (base, target)):
                leases.callback(self._volume.lease(guid)[1].release)
            delta = self._delta(base, target)
            after = _decode_cursor(cursor)
            if after is None or isinstance(after, _RowCursor):
                yield from _row_batches(delta, None if after is None else after.position)
                after = _ExtentCursor(None)
            yield from _data_batches(delta, after.position)

    def _delta(self, base: str | None, target: str) -> Delta:
        if self._latest is None or self._latest[0] != (base, target):
            first = Epoch(0) if base is None else self._volume.snapshot(base).epoch
            delta = self._volume.delta(first, self._volume.snapshot(target).epoch)
            self._latest = (base, target), delta
        return self._latest[1]

    def close(self) -> None:
        self._volume.close()


def _decode_cursor(cursor: bytes) -> _RowCursor | _ExtentCursor | None:
    if not cursor:
        return None
    try:
        decoded: _RowCursor | _ExtentCursor = _CURSOR.decode(cursor)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise RemoteProtocolError("the position to resume from is not one of ours") from exc
    return decoded


def _row_batches(delta: Delta, after: RowPosition | None) -> Iterator[RowBatch]:
    rows: list[Row] = []
    room = BYTES_A_BATCH
    for change in delta.rows(after):
        rows.append(_row(change))
        if change.sort == "xattr" and not change.gone:  # all else is small
            room -= len(change.row[3])
        if len(rows) == ROWS_A_BATCH or room <= 0:
            yield RowBatch(tuple(rows), msgspec.msgpack.encode(_RowCursor(change.position)))
            rows, room = [], BYTES_A_BATCH
    if rows:
        yield RowBatch(tuple(rows), msgspec.msgpack.encode(_ExtentCursor(None)))


def _row(change: Change) -> Row:
    """What the peer is told of one changed row: no epochs, no layers."""
    row = change.row
    if change.sort == "dirent":
        if change.gone:
            return DirentGone(row[0], row[1])
        return DirentRow(row[0], row[1], row[3], row[4], row[5])
    if change.sort == "xattr":
        return XattrGone(row[0], row[1]) if change.gone else XattrRow(row[0], row[1], row[3])
    if change.gone:
        return InodeGone(row[0])
    inode = Inode(*row)
    return InodeRow(
        inode.ino, inode.generation, inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev,
        inode.size, inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.btime_ns, inode.parent,
        inode.target,
    )  # fmt: skip


def _data_batches(delta: Delta, after: ExtentPosition | None) -> Iterator[DataBatch]:
    extents: list[Extent] = []
    parts: list[bytes] = []
    room = BYTES_A_BATCH
    for piece in _pieces(delta, after):
        length = piece.stop - piece.start
        extents.append(Extent(piece.ino, piece.start, length, not piece.layer))
        if piece.layer:
            parts.append(delta.read(piece))
            room -= length
        if room <= 0 or len(extents) == EXTENTS_A_BATCH:
            yield _data_batch(extents, parts, piece)
            extents, parts, room = [], [], BYTES_A_BATCH
    if extents:
        yield _data_batch(extents, parts, piece)


def _data_batch(extents: list[Extent], parts: list[bytes], last: ChangedExtent) -> DataBatch:
    position = ExtentPosition(last.born, last.ino, last.stop)
    cursor = msgspec.msgpack.encode(_ExtentCursor(position))
    return DataBatch(tuple(extents), b"".join(parts), cursor)


def _pieces(delta: Delta, after: ExtentPosition | None) -> Iterator[ChangedExtent]:
    """The extents, none with more data than a batch."""
    for extent in delta.extents(after):
        start = extent.start
        while extent.layer and extent.stop - start > BYTES_A_BATCH:
            yield msgspec.structs.replace(extent, start=start, stop=start + BYTES_A_BATCH)
            start += BYTES_A_BATCH
        yield msgspec.structs.replace(extent, start=start)


def _inode(row: InodeRow) -> Inode:
    """As the engine wants it; where its blocks lie is not the row's to say."""
    return Inode(
        Ino(row.ino), Epoch(0), row.generation, row.mode, row.uid, row.gid, row.nlink, row.rdev,
        row.size, row.atime_ns, row.mtime_ns, row.ctime_ns, row.btime_ns, row.parent, row.target,
        layer=Layer(0), layer_end=0, leaves=0, blocks=0,
    )  # fmt: skip


class VolumeSink:
    """A volume of the passive site; this process is its owner until `close`."""

    def __init__(self, path: Path) -> None:
        self._volume = open_volume(path)
        self._applier = Applier(self._volume)
        self._ahead = SyncAhead(self._volume)

    @property
    def volume(self) -> Volume:
        """Between two deltas its holds and snapshots may be changed."""
        return self._volume

    @property
    def volume_uuid(self) -> str:
        return self._volume.uuid

    def snapshots(self) -> list[SnapshotRef]:
        """Those that a rollback left aside are this site's own affair: no delta begins there."""
        return [_ref(snapshot) for snapshot in self._volume.ancestors()]

    def resize(self, size: int) -> None:
        size = max(size, self._volume.statfs().used)
        if size != self._volume.size:
            self._volume.resize(size)

    def progress(self) -> Progress | None:
        stored = self._applier.progress()
        return None if stored is None else msgspec.msgpack.decode(stored, type=Progress)

    def begin(self, progress: Progress) -> None:
        self._ahead.finish()
        base = None if progress.base is None else self._volume.snapshot(progress.base).epoch
        if base is None and self._volume.snapshots():
            raise Refused(
                f"volume {self._volume.name} is not empty, so it can't take an initial copy"
            )
        if base is not None and self._applier.is_at(base):
            self._applier.reset(base)  # nothing to wait for: it is durable with what comes
            self._applier.set_progress(msgspec.msgpack.encode(progress))
            return
        self._applier.reset(base)
        self.commit(progress)

    def apply(self, batch: Batch) -> None:
        if isinstance(batch, RowBatch):
            for kind, rows in groupby(batch.rows, type):
                self._apply_rows(kind, list(rows))
            return
        body = memoryview(batch.body)
        position = 0
        pieces: list[Piece] = []
        for extent in batch.extents:
            if extent.hole:
                self._applier.write_many(pieces)
                pieces = []
                self._applier.punch(extent.ino, extent.offset, extent.length)
                continue
            data = body[position : position + extent.length]
            if len(data) != extent.length:
                raise RemoteProtocolError("a data batch is shorter than its extents")
            pieces.append((extent.ino, extent.offset, data))
            position += extent.length
        self._applier.write_many(pieces)
        if position != len(body):
            raise RemoteProtocolError("a data batch is longer than its extents")
        self._ahead.wrote(len(body))

    def _apply_rows(self, kind: type, rows: list[Any]) -> None:
        """Rows of one kind."""
        applier = self._applier
        if kind is InodeRow:
            applier.put_inodes([_inode(row) for row in rows])
        elif kind is DirentRow:
            applier.put_dirents([(r.parent, r.name, r.cookie, r.ino, r.kind) for r in rows])
        else:
            for row in rows:
                self._apply_row(row)

    def _apply_row(self, row: XattrRow | InodeGone | DirentGone | XattrGone) -> None:
        match row:
            case XattrRow():
                self._applier.put_xattr(row.ino, row.name, row.value)
            case InodeGone():
                self._applier.drop_inode(row.ino)
            case DirentGone():
                self._applier.drop_dirent(row.parent, row.name)
            case XattrGone():
                self._applier.drop_xattr(row.ino, row.name)
            case _:
                assert_never(row)

    def commit(self, progress: Progress) -> None:
        self._applier.set_progress(msgspec.msgpack.encode(progress))
        self._ahead.finish()
        self._volume.commit()
        self._ahead.committed()
        self._volume.reclaim_step(RECLAIM_A_COMMIT)

    def seal(self, target: SnapshotRef, along: Callable[[Snapshot], None] | None = None) -> None:
        """*along*: see `Volume.seal`."""
        self._ahead.finish()
        self._applier.seal(
            target.name,
            guid=target.guid,
            time_ns=target.time_ns,
            snap_group=target.snap_group,
            along=along,
        )
        self._ahead.committed()

    def close(self) -> None:
        self._ahead.close()
        self._applier.close()
        if self._volume.changed:
            self._volume.abandon()
        else:
            self._volume.close()


def create_passive(pool: Pool, spec: VolumeSpec) -> None:
    """The empty volume that will receive: same UUID, size and provision as the active one."""
    create_volume(pool, spec.name, size=spec.size, provision=spec.provision, uuid=spec.uuid)
