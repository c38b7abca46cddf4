"""Giving space back: what destroyed snapshots, truncates and unlinks left behind.

Three kinds of work, each in bounded steps that may be cut anywhere and done again:

1. the queue ``reclaim``: layers in which something became free; punch or remove it
2. snapshots in state DESTROYING, oldest first: remove the rows that only they could see, and
   queue the layers in which blocks became free with that
3. ``sweep``: after a crash, layers of the epoch of the crash may hold blocks that no committed
   row names; queue every layer of that epoch, one directory of layers/ after the other

A snapshot that is being destroyed counts as a view of every inode whose rows at its epoch are
still there; `remove_inode` takes all of an inode's rows away in one transaction together with the
account of their blocks.  So the counters are exact at every commit in between.
"""

from __future__ import annotations

from nasfs.volume.blockmap import map_runs
from nasfs.volume.layers import DIRECTORIES, Layers
from nasfs.volume.space import Space
from nasfs.volume.store import Store
from nasfs.volume.types import BLOCK, Inode, Run, Snapshot, SnapshotState

_FOREVER = 1 << 62


class Reclaim:
    """The background work of one volume, a step at a time."""

    def __init__(self, store: Store, layers: Layers, space: Space) -> None:
        self._store = store
        self._layers = layers
        self._space = space

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
            "snapshots": len(self._destroying()),
            "directories": sum(DIRECTORIES - row[0] for row in swept),
        }

    def _drain_queue(self, limit: int) -> bool:
        ready = self._queued(limit)
        for ino, layer in ready:
            self._space.give_back(ino, layer)
            self._store.reclaim.remove((ino, layer))
        return bool(ready)

    def _queued(self, limit: int) -> list[tuple[int, int]]:
        """Layers (inode, epoch) out of the queue that may be given back now."""
        self._store.flush(self._store.reclaim)
        rows = self._store.db.execute("SELECT ino, layer FROM reclaim LIMIT ?", (limit,)).fetchall()
        return [row for row in rows if self._space.may_give_back(row[0])]

    # destroyed snapshots

    def _destroying(self) -> list[Snapshot]:
        return [s for s in self._store.all_snapshots if s.state is SnapshotState.DESTROYING]

    def _destroy_step(self, limit: int) -> bool:
        jobs = self._destroying()
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
                self._remove_inode(ino, epoch, window, where)
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

    def _remove_inode(
        self, ino: int, epoch: int, window: tuple[int, int, int, int], where: str
    ) -> None:
        """All rows of an inode that only this snapshot sees, and the account of their blocks."""
        for run in self._space.unreached(ino, self._runs_at(ino, epoch), without=epoch):
            self._space.queue(ino, run.layer)
            self._store.counters.snapshot_blocks -= run.stop - run.start
            self._store.kept.add(epoch, run.layer, run.start - run.stop)
        for table in ("inode", "leaf"):
            self._store.execute(
                f"DELETE FROM {table}_past WHERE ino = ? AND {where}", (ino, *window)
            )

    def _runs_at(self, ino: int, epoch: int) -> list[Run]:
        row = self._store.inodes.get_at((ino,), epoch)
        if row is None:
            return []
        inode = Inode(*row)
        if not inode.is_file or not inode.blocks:
            return []
        leaves = self._store.leaves.scan_at("ino = ?", (ino,), epoch, "ORDER BY region")
        parts = [(leaf[1], leaf[3]) for leaf in leaves]
        stop = -(-inode.size // BLOCK)
        return [run for run in map_runs(inode.layer, inode.layer_end, parts, 0, stop) if run.layer]

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
        row = self._store.db.execute("SELECT epoch, next_dir FROM sweep").fetchone()
        if row is None:
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
