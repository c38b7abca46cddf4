"""A delta that no pair of this site's snapshots has: what the peer's copy differs in.

When no snapshot is common, or the copy of a common one is damaged, contents are compared
(`verify`), and what differs is sent as the delta from the peer's newest snapshot to one of ours.
For the peer it is a delta like any other: it begins at its own newest snapshot, which stays.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from nasfs.volume import BLOCK, ChangedExtent, CorruptionError, Epoch, Inode, Run

from .digests import MODE, InodeFact
from .endpoint import (
    Amount,
    Batch,
    DataBatch,
    DirentGone,
    DirentRow,
    Extent,
    InodeGone,
    InodeRow,
    Row,
    RowBatch,
    SnapshotRef,
    XattrGone,
    XattrRow,
)
from .errors import RemoteProtocolError
from .local import BYTES_A_BATCH, EXTENTS_A_BATCH, ROWS_A_BATCH
from .verify import (
    DataDiffers,
    Difference,
    EntryDiffers,
    InodeDiffers,
    Witness,
    XattrDiffers,
    compare,
)
from .witness import LocalWitness


class _Cursor(msgspec.Struct, frozen=True, array_like=True, tag="rebase"):
    """Behind so many rows and so many extents."""

    rows: int
    extents: int = 0


_ROW = msgspec.msgpack.Decoder(Row)


class RebaseSource:
    """A `Source` of one delta: from the peer's newest snapshot to one of this site.

    Args:
        ours: the target; closed with this.
        base: the peer's newest snapshot, which this site need not have.
        theirs: what the peer has in it.
    """

    def __init__(self, ours: LocalWitness, base: SnapshotRef, theirs: Witness) -> None:
        self._ours = ours
        self._base = base
        self._volume = ours.volume
        self._view = ours.volume.view(ours.snapshot.epoch)
        # An empty name: a file without a name, made only when memory does not hold it.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA cache_size = -16384")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE row (number INTEGER PRIMARY KEY, row BLOB)")
        self._db.execute(
            "CREATE TABLE extent (number INTEGER PRIMARY KEY, ino INTEGER, start INTEGER,"
            " stop INTEGER, layer INTEGER)"
        )
        try:
            self._db.execute("BEGIN")
            for difference in compare(ours, theirs):
                self._add(difference)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.close()
            raise

    # the source

    @property
    def volume_uuid(self) -> str:
        return self._volume.uuid

    @property
    def size(self) -> int:
        return self._volume.size

    def snapshots(self) -> list[SnapshotRef]:
        """The two between which this delta is."""
        mine = self._ours.snapshot
        target = SnapshotRef(mine.guid, mine.name, mine.time_ns, mine.snap_group)
        return [self._base, target]

    def total(self, base: str | None, target: str) -> Amount:
        (rows,) = self._db.execute("SELECT count(*) FROM row").fetchone()
        (size,) = self._db.execute(
            "SELECT COALESCE(SUM(stop - start), 0) FROM extent WHERE layer"
        ).fetchone()
        return Amount(rows, size)

    def read_delta(self, base: str | None, target: str, cursor: bytes) -> Iterator[Batch]:
        try:
            at = msgspec.msgpack.decode(cursor, type=_Cursor) if cursor else _Cursor(0)
        except msgspec.MsgspecError as exc:
            raise RemoteProtocolError("the position to resume from is not one of ours") from exc
        yield from self._row_batches(at.rows)
        rows = self._db.execute("SELECT count(*) FROM row").fetchone()[0]
        yield from self._data_batches(replace(at, rows=rows))

    def close(self) -> None:
        self._db.close()
        self._ours.close()

    # what differs

    def _add(self, difference: Difference) -> None:
        match difference:
            case InodeDiffers(ino, ours, theirs):
                if theirs is not None and difference.is_other:
                    self._add_row(InodeGone(ino))
                if ours is not None:
                    self._add_row(_row(ino, ours))
                    if difference.is_other and stat.S_ISREG(ours.numbers[MODE]):
                        self._add_runs(self._view.getattr(ino), self._ours.mapped(ino))
            case XattrDiffers(ino, name, None):
                self._add_row(XattrGone(ino, name))
            case XattrDiffers(ino, name):
                self._add_row(XattrRow(ino, name, self._view.getxattr(ino, name)))
            case EntryDiffers(parent, None):
                self._add_row(DirentGone(parent, difference.name))
            case EntryDiffers(parent, entry) if entry is not None:
                self._add_row(DirentRow(parent, entry.name, entry.cookie, entry.ino, entry.kind))
            case DataDiffers(ino, ranges):
                inode = self._view.getattr(ino)
                for first, stop in ranges:
                    self._add_runs(inode, self._view.runs(inode, first, stop))

    def _add_row(self, row: Row) -> None:
        self._db.execute("INSERT INTO row (row) VALUES (?)", (msgspec.msgpack.encode(row),))

    def _add_runs(self, inode: Inode, runs: Iterator[Run]) -> None:
        self._db.executemany(
            "INSERT INTO extent (ino, start, stop, layer) VALUES (?, ?, ?, ?)",
            (
                (inode.ino, start, stop, run.layer)
                for run in runs
                for start, stop in _pieces(run, inode.size)
            ),
        )

    # batches

    def _row_batches(self, done: int) -> Iterator[RowBatch]:
        rows: list[Row] = []
        room = BYTES_A_BATCH
        for number, encoded in self._db.execute(
            "SELECT number, row FROM row WHERE number > ? ORDER BY number", (done,)
        ):
            rows.append(_ROW.decode(encoded))
            room -= len(encoded)
            if len(rows) == ROWS_A_BATCH or room <= 0:
                yield RowBatch(tuple(rows), msgspec.msgpack.encode(_Cursor(number)))
                rows, room = [], BYTES_A_BATCH
        if rows:
            yield RowBatch(tuple(rows), msgspec.msgpack.encode(_Cursor(number)))

    def _data_batches(self, at: _Cursor) -> Iterator[DataBatch]:
        reader = self._volume.delta(Epoch(0), self._ours.snapshot.epoch)
        extents: list[Extent] = []
        parts: list[bytes] = []
        room = BYTES_A_BATCH
        cursor = b""
        for number, *place in self._db.execute(
            "SELECT number, ino, start, stop, layer FROM extent WHERE number > ? ORDER BY number",
            (at.extents,),
        ):
            piece = ChangedExtent(0, *place)
            length = piece.stop - piece.start
            extents.append(Extent(piece.ino, piece.start, length, not piece.layer))
            if piece.layer:
                parts.append(reader.read(piece))
                room -= length
            cursor = msgspec.msgpack.encode(_Cursor(at.rows, number))
            if room <= 0 or len(extents) == EXTENTS_A_BATCH:
                yield DataBatch(tuple(extents), b"".join(parts), cursor)
                extents, parts, room = [], [], BYTES_A_BATCH
        if extents:
            yield DataBatch(tuple(extents), b"".join(parts), cursor)


def _row(ino: int, inode: InodeFact) -> InodeRow:
    try:
        return msgspec.convert(["i", ino, *inode.numbers, inode.target], InodeRow)
    except msgspec.ValidationError as exc:
        raise CorruptionError(f"inode {ino}", str(exc)) from exc


def _pieces(run: Run, size: int) -> Iterator[tuple[int, int]]:
    """Bytes of a run within a file of that size, none with more data than a batch."""
    start, stop = run.start * BLOCK, min(run.stop * BLOCK, size)
    while run.layer and stop - start > BYTES_A_BATCH:
        yield start, start + BYTES_A_BATCH
        start += BYTES_A_BATCH
    if start < stop:
        yield start, stop
