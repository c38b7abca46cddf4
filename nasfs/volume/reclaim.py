"""Giving space back: what destroyed snapshots, truncates and unlinks left behind.

Three kinds of work, each in bounded steps that may be cut anywhere and done again:

1. the queue ``reclaim``: layers in which something became free; punch or remove it
2. snapshots in state DESTROYING, oldest first: remove the rows that only they could see, and
   queue the layers in which blocks became free with that
3. ``sweep``: after a crash, layers of the epoch of the crash may hold blocks that no committed
   row names; queue every layer of that epoch, one directory of layers/ after the other

A snapshot that is being destroyed counts as a view of every inode whose row at its epoch is
still there, and of as much of its map as is there: a part of it goes in one transaction with the
account of its blocks, first leaf rows, then level 2 from its end, and at last the row itself.  So
the counters are exact at every commit in between, and a huge file keeps nobody waiting.
"""

from __future__ import annotations

from collections.abc import Iterable

from nasfs.volume.blockmap import leaf_runs
from nasfs.volume.layers import DIRECTORIES, Layers
from nasfs.volume.reach import ALL_REGIONS
from nasfs.volume.space import LEAVES_A_PART, Space
from nasfs.volume.store import Store
from nasfs.volume.types import REGION_BLOCKS, Inode, Run

ROWS_A_PART = 1024
"""Leaf rows of an inode that are passed over before others have a turn; their maps are not read."""

_FOREVER = 1 << 62
_ABOVE_ALL = (ALL_REGIONS, 0)


class Reclaim:
    """The background work of one volume, a step at a time."""

    def __init__(self, store: Store, layers: Layers, space: Space) -> None:
        self._store = store
        self._layers = layers
        self._space = space
        self._under_way: int | None = None
        """The inode that is given back in parts."""
        self._left_off: tuple[object, tuple[int, int]] | None = None
        """The last of its leaf rows that was looked at, and what for."""
        self._empty_at: int | None = None
        """The queue was empty when so many keys had been added to it."""
        self._is_swept = False

    def step(self, limit: int) -> bool:
        """Do about *limit* items of work.  Returns False when nothing can be done for now.

        Queued layers wait for the commit that freed them to be durable, so call it again after
        each commit.
        """
        return self._drain_queue(limit) or self._destroy_step(limit) or self._sweep_step()

    def pending(self) -> dict[str, int]:
        """What is left: layers queued, snapshots being destroyed, directories to sweep."""
        self._store.flush(self._store.reclaim)
        count = self._store.db.execute("SELECT count(*) FROM reclaim").fetchone()[0]
        swept = self._store.db.execute("SELECT next_dir FROM sweep").fetchall()
        return {
            "layers": count,
            "snapshots": len(self._store.destroying),
            "directories": sum(DIRECTORIES - row[0] for row in swept),
        }

    def _drain_queue(self, limit: int) -> bool:
        ready = self._queued(limit)
        for ino, layer in ready:
            while not self._space.give_back(ino, layer):
                limit -= 1
                if limit <= 0:
                    return True
            self._store.reclaim.remove((ino, layer))
        return bool(ready)

    def _queued(self, limit: int) -> list[tuple[int, int]]:
        """Layers (inode, epoch) out of the queue that may be given back now."""
        queue = self._store.reclaim
        if queue.additions == self._empty_at:
            return []
        self._store.flush(queue)
        rows = self._store.db.execute("SELECT ino, layer FROM reclaim LIMIT ?", (limit,)).fetchall()
        self._empty_at = None if rows else queue.additions
        # Of the file that goes in parts each part queues the same layers: once at the end.
        return [
            row for row in rows if row[0] != self._under_way and self._space.may_give_back(row[0])
        ]

    # destroyed snapshots

    def _destroy_step(self, limit: int) -> bool:
        jobs = self._store.destroying
        if not jobs:
            return False
        self._store.flush()
        epoch = jobs[0].epoch
        others = [s.epoch for s in self._store.all_snapshots if s.epoch != epoch]
        before = max((other for other in others if other < epoch), default=0)
        after = min((other for other in others if other > epoch), default=_FOREVER)
        # Rows that no other view sees: born after the neighbour before, dead by the one after.
        window = (epoch, after, before, epoch)
        where = "died > ? AND died <= ? AND born > ? AND born <= ?"
        inos = self._store.db.execute(
            f"SELECT DISTINCT ino FROM inode_past INDEXED BY inode_past_died WHERE {where} LIMIT ?",
            (*window, limit),
        ).fetchall()
        if inos:
            for (ino,) in inos:
                self._under_way = ino
                while not self._remove_part(ino, epoch, window, where):
                    limit -= 1
                    if limit <= 0:
                        return True
                self._under_way = None
            return True
        # Of leaf rows those are left that moved to the past when the inode's row was gone already.
        for table in ("dirent", "xattr", "leaf"):
            if self._remove_rows(table, window, where, limit):
                return True
        self._store.execute("DELETE FROM snapshot WHERE epoch = ?", (epoch,))
        with self._store.sql_errors():
            self._store.kept.gone(epoch, before)
            if not others:
                self._store.kept.begin_anew()
        self._store.load_snapshots()
        return True

    def _remove_part(
        self, ino: int, epoch: int, window: tuple[int, int, int, int], where: str
    ) -> bool:
        """A part of an inode that only this snapshot sees, and the account of its blocks.

        True: that was the last one, and the row of the inode is gone.
        """
        inode = self._inode_at(ino, epoch)
        if inode.is_file and inode.leaves and not self._drop_leaves(ino, epoch, window):
            return False
        if inode.is_file and inode.layer_end:
            first = self._drop_level_2(inode, epoch)
            if first:
                self._store.execute(
                    f"UPDATE inode_past SET layer_end = ? WHERE ino = ? AND {where}",
                    (first * REGION_BLOCKS, ino, *window),
                )
                return False
        self._store.execute(f"DELETE FROM inode_past WHERE ino = ? AND {where}", (ino, *window))
        self._left_off = None
        return True

    def _inode_at(self, ino: int, epoch: int) -> Inode:
        row = self._store.inodes.get_at((ino,), epoch)
        assert row is not None, "its number comes from that row"
        return Inode(*row)

    def _drop_leaves(self, ino: int, epoch: int, window: tuple[int, int, int, int]) -> bool:
        """Some leaf rows that no other view sees become holes; True if there are no more.

        They are not removed before the inode is, or level 2 would count in their regions.
        """
        space = self._space
        key = (ino, window)
        region, born = _ABOVE_ALL
        if self._left_off is not None and self._left_off[0] == key:
            region, born = self._left_off[1]
        rows = self._store.db.execute(
            "SELECT region, born, died FROM leaf_past WHERE ino = ? AND (region, born) < (?, ?)"
            " ORDER BY region DESC, born DESC LIMIT ?",
            (ino, region, born, ROWS_A_PART),
        ).fetchall()
        is_seen = space.reach.sees(ino, without=epoch)
        left = LEAVES_A_PART
        for region, born, died in rows:
            self._left_off = (key, (region, born))
            if not born <= epoch < died or is_seen(born, died):
                continue
            row = (ino, region, born)
            where = "WHERE ino = ? AND region = ? AND born = ?"
            (value,) = self._store.db.execute(f"SELECT map FROM leaf_past {where}", row).fetchone()
            if value == 0:  # before a crash, for instance
                continue
            first = region * REGION_BLOCKS
            self._account(ino, epoch, leaf_runs(region, value, first, first + REGION_BLOCKS))
            self._store.execute(f"UPDATE leaf_past SET map = 0 {where}", row)
            left -= 1
            if not left:
                return False
        return len(rows) < ROWS_A_PART

    def _drop_level_2(self, inode: Inode, epoch: int) -> int:
        """The account of the end of level 2; the region where what is left of it ends."""
        reach = self._space.reach
        stop = -(-inode.layer_end // REGION_BLOCKS)
        first = reach.window_to(inode.ino, stop - 1, LEAVES_A_PART)
        position = first * REGION_BLOCKS
        runs = []
        for region in (*reach.seen_leaves(inode.ino, first, stop, epoch), stop):
            end = min(region * REGION_BLOCKS, inode.layer_end)
            if position < end:
                runs.append(Run(position, end, inode.layer))
            position = (region + 1) * REGION_BLOCKS
        self._account(inode.ino, epoch, runs)
        return first

    def _account(self, ino: int, epoch: int, runs: Iterable[Run]) -> None:
        """No longer are these runs seen by a snapshot."""
        for run in self._space.reach.unreached(ino, runs, without=epoch):
            self._space.queue(ino, run.layer)
            self._store.counters.snapshot_blocks -= run.stop - run.start
            self._store.kept.add(epoch, run.layer, run.start - run.stop)

    def _remove_rows(
        self, table: str, window: tuple[int, int, int, int], where: str, limit: int
    ) -> bool:
        spec = next(t.spec for t in self._store.tables if t.spec.name == table)
        key = ", ".join((*spec.key_names, "born"))
        gone = self._store.execute(
            f"DELETE FROM {table}_past WHERE ({key}) IN (SELECT {key} FROM {table}_past"
            f" INDEXED BY {table}_past_died WHERE {where} LIMIT ?)",
            (*window, limit),
        )
        return gone.rowcount > 0

    # after a crash

    def _sweep_step(self) -> bool:
        if self._is_swept:
            return False
        row = self._store.db.execute("SELECT epoch, next_dir FROM sweep").fetchone()
        if row is None:  # only opening sets it up
            self._is_swept = True
            return False
        epoch, index = row
        for ino, layer in self._layers.listing(index):
            if layer >= epoch:
                self._space.queue(ino, layer)
        if index + 1 < DIRECTORIES:
            self._store.execute("UPDATE sweep SET next_dir = ? WHERE epoch = ?", (index + 1, epoch))
        else:
            self._store.execute("DELETE FROM sweep WHERE epoch = ?", (epoch,))
        return True
