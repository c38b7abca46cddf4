"""Whose the blocks are that only snapshots see: so that each snapshot's own ones can be told.

Theory of operation.  A block of a layer is seen by all snapshots from the epoch in which it was
written up to the one in which the live view lost it, without gaps.  So when it is lost it is
counted under two numbers: its layer, and the newest snapshot, which is the last one that sees it.
A block is a snapshot's own (nobody else sees it) if it was lost after that snapshot and written
after the one before.  When a snapshot is gone, what it saw last was last seen by the one before.
The table `kept` holds these counts; their sum is `snapshot_blocks`.  (ZFS's deadlists are the same
idea; there they hold the blocks themselves.)

A rollback that leaves snapshots aside breaks "without gaps": a block that comes back is seen by
snapshots on both sides of the ones that were left aside.  From then on the counts are not known,
and `own_by_rows` looks into the rows instead, at the cost of everything that ever changed, until
there is no snapshot any more.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from nasfs.volume.blockmap import map_runs
from nasfs.volume.types import BLOCK

_FOREVER = 1 << 62


class Kept:
    """The table `kept`, with changes that are not flushed; needs an open transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._changes: Counter[tuple[int, int]] = Counter()
        self.is_known = True
        """The counts are right."""

    def load(self) -> None:
        (self.is_known,) = map(bool, self._db.execute("SELECT kept_known FROM volume").fetchone())

    def add(self, seen: int, layer: int, blocks: int) -> None:
        """Of *layer* so many blocks more are last seen by snapshot *seen*; fewer, if negative."""
        self._changes[seen, layer] += blocks

    def gone(self, epoch: int, before: int) -> None:
        """That snapshot is gone; *before* (0: none) is the one that came before it."""
        self.flush()
        self._db.execute(
            "INSERT INTO kept SELECT ?, layer, blocks FROM kept WHERE seen = ? AND layer <= ?"
            " ON CONFLICT DO UPDATE SET blocks = blocks + excluded.blocks",
            (before, epoch, before),
        )
        self._db.execute("DELETE FROM kept WHERE seen = ?", (epoch,))

    def lose(self) -> None:
        """The counts are not known from now on."""
        self.is_known = False
        self._changes.clear()
        self._db.execute("DELETE FROM kept")
        self._db.execute("UPDATE volume SET kept_known = 0")

    def begin_anew(self) -> None:
        """There is no snapshot any more, so there is nothing to count."""
        self._changes.clear()
        self._db.execute("DELETE FROM kept")
        self._db.execute("UPDATE volume SET kept_known = 1")
        self.is_known = True

    def own(self, epochs: Sequence[int]) -> dict[int, int]:
        """How many blocks each snapshot alone sees.

        Args:
            epochs: of all snapshots, ascending, those that are being destroyed included.
        """
        before = dict(zip(epochs, (0, *epochs), strict=False))
        found = dict.fromkeys(epochs, 0)
        for seen, layer, blocks in self._db.execute("SELECT seen, layer, blocks FROM kept"):
            if seen in found and layer > before[seen]:
                found[seen] += blocks
        return found

    # as a buffer of the store

    @property
    def dirty_count(self) -> int:
        return len(self._changes)

    def flush(self) -> None:
        """Write all changes; the caller has begun a transaction."""
        if self.is_known:
            rows = [(*key, count) for key, count in self._changes.items() if count]
            self._db.executemany(
                "INSERT INTO kept VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET blocks = blocks + excluded.blocks",
                rows,
            )
        self._changes.clear()

    def forget(self) -> None:
        """Changes that were not flushed are lost."""
        self._changes.clear()


def own_by_rows(connection: sqlite3.Connection, epochs: Sequence[int]) -> dict[int, int]:
    """Like `Kept.own`, whatever the history; looks at every inode that has a past."""
    found = dict.fromkeys(epochs, 0)
    for (ino,) in connection.execute("SELECT DISTINCT ino FROM inode_past").fetchall():
        inodes = _versions(connection, "inode", "born, layer, layer_end, size", ino)
        leaves = _versions(connection, "leaf", "born, region, map", ino)
        seen = defaultdict[int, list[tuple[int, int, int]]](list)
        changes = sorted({epoch for row in (*inodes, *leaves) for epoch in (row[0], row[-1])})
        for start, stop in pairwise(changes):
            first, last = bisect_left(epochs, start), bisect_left(epochs, stop)
            is_live = stop == _FOREVER
            visible = [row for row in inodes if row[0] <= start < row[-1]]
            if (first == last and not is_live) or not visible:
                continue
            _, layer, layer_end, size, _ = visible[0]
            parts = sorted((row[1], row[2]) for row in leaves if row[0] <= start < row[-1])
            viewer = epochs[first] if last - first == 1 and not is_live else 0
            for run in map_runs(layer, layer_end, parts, 0, -(-size // BLOCK)):
                if run.layer:
                    seen[run.layer].append((run.start, run.stop, viewer))
        for stretches in seen.values():
            for epoch, blocks in _seen_once(stretches):
                found[epoch] += blocks
    return found


def _versions(
    connection: sqlite3.Connection, table: str, columns: str, ino: int
) -> list[tuple[int, ...]]:
    return connection.execute(
        f"SELECT {columns}, {_FOREVER} FROM {table} WHERE ino = ?"
        f" UNION ALL SELECT {columns}, died FROM {table}_past WHERE ino = ?",
        (ino, ino),
    ).fetchall()


def _seen_once(stretches: Iterable[tuple[int, int, int]]) -> Iterable[tuple[int, int]]:
    """(viewer, blocks) of what is in one stretch (start, stop, viewer) only; viewer 0: several."""
    edges = defaultdict[int, list[tuple[int, int]]](list)
    for start, stop, viewer in stretches:
        edges[start].append((1, viewer))
        edges[stop].append((-1, viewer))
    depth = total = position = 0
    for edge in sorted(edges):
        if depth == 1 and total:
            yield total, edge - position
        for step, viewer in edges[edge]:
            depth += step
            total += step * viewer
        position = edge
