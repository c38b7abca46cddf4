"""Who can still reach a block: the account of space, and what may be given back.

A block of a layer is *live* if the live view maps it, *snapshot-only* if only snapshots do, and
else free.  The two counters move with every change; blocks that became free are queued (table
``reclaim``) and given back to the host after the commit that made them free.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from nasfs.volume.blockmap import Ranges, length, map_runs, subtract, union
from nasfs.volume.layers import Layers
from nasfs.volume.live import Live
from nasfs.volume.store import Store
from nasfs.volume.types import BLOCK, Inode, Layer, Run, Snapshot, SnapshotState
from nasfs.volume.view import mapped_runs

LayerRanges = dict[int, Ranges]
"""Block ranges by layer."""


def by_layer(runs: Iterable[Run]) -> LayerRanges:
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for run in runs:
        if run.layer:
            found[run.layer].append((run.start, run.stop))
    return {layer: union(ranges) for layer, ranges in found.items()}


class Space:
    """The account of one volume."""

    def __init__(self, store: Store, layers: Layers, live: Live) -> None:
        self._store = store
        self._layers = layers
        self._live = live
        self._generation = 0
        self._synced = -1
        self._queued_in: dict[int, int] = {}

    def committed(self) -> int:
        """The open transaction was committed; returns its generation, for `durable`."""
        self._generation += 1
        for ino in [i for i, queued in self._queued_in.items() if queued <= self._synced]:
            del self._queued_in[ino]
        return self._generation - 1

    def durable(self, generation: int) -> None:
        """What was committed up to *generation* survives a power cut from now on.

        Called in the thread that synced the log: it sets one number and touches nothing else.
        """
        self._synced = max(self._synced, generation)

    def may_give_back(self, ino: int) -> bool:
        """False while the state on stable storage may reach what was queued of this inode."""
        return self._queued_in.get(ino, -1) <= self._synced

    def wrote(self, blocks: int) -> None:
        """The live view maps so many blocks more."""
        self._store.counters.live_blocks += blocks

    def dropped(self, ino: int, runs: Iterable[Run]) -> int:
        """The live view no longer maps these runs.  Returns how many blocks that were."""
        counters = self._store.counters
        total = 0
        for run in runs:
            if not run.layer:
                continue
            count = run.stop - run.start
            total += count
            held = self._store.held_by_ancestor(run.layer)
            if held is None:
                seen = self.snapshot_ranges(ino).get(run.layer, [])
                kept = count - length(subtract([(run.start, run.stop)], seen))
            else:
                kept = count if held else 0
            counters.snapshot_blocks += kept
            if kept:
                self._store.kept.add(self._store.epochs.newest, run.layer, kept)
            if kept < count:
                self.queue(ino, run.layer)
        counters.live_blocks -= total
        return total

    def regained(self, runs: Sequence[Run]) -> None:
        """The live view maps blocks again that only snapshots saw (a rollback)."""
        for run in runs:  # the newest snapshot saw them last, or the counts are not known
            self._store.kept.add(self._store.epochs.newest, run.layer, run.start - run.stop)
        count = sum(run.stop - run.start for run in runs if run.layer)
        self._store.counters.live_blocks += count
        self._store.counters.snapshot_blocks -= count

    def queue(self, ino: int, layer: int) -> None:
        """Something in this layer became free, as of the transaction that is open."""
        self._queued_in[ino] = self._generation
        self._store.reclaim.add((ino, layer))

    def snapshot_ranges(self, ino: int, without: int | None = None) -> LayerRanges:
        """What the snapshots reach of an inode, *without* one of them (an epoch)."""
        self._store.flush()
        inodes = self._versions("inode", "born, layer, layer_end, size", ino)
        leaves = self._versions("leaf", "born, region, map", ino)
        changes = sorted({epoch for row in (*inodes, *leaves) for epoch in (row[0], row[-1])})
        epochs = [s.epoch for s in self._store.all_snapshots if s.epoch != without]
        runs: list[Run] = []
        for start, stop in pairwise(changes):  # nothing of the inode changes within a stretch
            index = bisect_left(epochs, start)
            if index == len(epochs) or epochs[index] >= stop:
                continue  # no snapshot saw this stretch
            visible = [row for row in inodes if row[0] <= start < row[-1]]
            if not visible:
                continue
            _, layer, layer_end, size, _ = visible[0]
            parts = sorted((row[1], row[2]) for row in leaves if row[0] <= start < row[-1])
            runs += map_runs(layer, layer_end, parts, 0, -(-size // BLOCK))
        return by_layer(runs)

    def _versions(self, table: str, columns: str, ino: int) -> list[tuple[int, ...]]:
        """All versions of an inode's rows, `died` last; live rows die after every snapshot."""
        return self._store.db.execute(
            f"SELECT {columns}, 1 << 62 FROM {table} WHERE ino = ?"
            f" UNION ALL SELECT {columns}, died FROM {table}_past WHERE ino = ?",
            (ino, ino),
        ).fetchall()

    def reachable(self, ino: int, without: int | None = None) -> LayerRanges:
        """What the live view and the snapshots reach of an inode."""
        return merged(self.snapshot_ranges(ino, without), self._live_ranges(ino))

    def _live_ranges(self, ino: int) -> LayerRanges:
        inode = self._live._inode(ino)
        return {} if inode is None else by_layer(mapped_runs(self._live, inode))

    def seen_beside(self, ino: int, epoch: int) -> LayerRanges:
        """Of what snapshot *epoch* sees of an inode, at least what others see, too.

        Where the history has no branches a block is seen without gaps, so the neighbours know:
        the nearest that stays on either side, and those before it whose rows are going already.
        """
        if not self._store.kept.is_known:
            return self.reachable(ino, without=epoch)
        snapshots = self._store.all_snapshots
        index = next(i for i, snapshot in enumerate(snapshots) if snapshot.epoch == epoch)
        before, _ = _nearest(reversed(snapshots[:index]))
        after, ends = _nearest(snapshots[index + 1 :])
        runs = [run for other in (*before, *after) for run in self.runs_at(ino, other)]
        found = by_layer(runs)
        return found if ends else merged(found, self._live_ranges(ino))

    def _still_seen(self, ino: int, layer: int) -> Ranges:
        """The blocks of a layer that somebody sees."""
        if layer > self._store.epochs.newest:
            return self._live_ranges(ino).get(layer, [])
        if not self._store.kept.is_known:
            return self.reachable(ino).get(layer, [])
        # Blocks of a layer are only ever lost, so the oldest who sees it sees most of it.
        snapshots = [s for s in self._store.all_snapshots if s.epoch >= layer]
        oldest, ends = _nearest(snapshots)
        found = by_layer([run for epoch in oldest for run in self.runs_at(ino, epoch)])
        return (found if ends else merged(found, self._live_ranges(ino))).get(layer, [])

    def runs_at(self, ino: int, epoch: int) -> list[Run]:
        """The runs of an inode that are in a layer, as of a sealed epoch; [] if it is not there."""
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

    def give_back(self, ino: int, layer: int) -> None:
        """Punch or remove what nothing reaches in one layer, if `may_give_back`."""
        ranges = self._still_seen(ino, layer)
        if not ranges:
            self._layers.remove(ino, layer)
            return
        kept = [(start * BLOCK, stop * BLOCK) for start, stop in ranges]
        for start, stop in subtract(self._layers.data_ranges(ino, layer), kept):
            # Up to the end of the block: a part of one would be zeroed, and not freed.
            self._layers.punch(ino, layer, start, -(-stop // BLOCK) * BLOCK)


def _nearest(snapshots: Iterable[Snapshot]) -> tuple[list[int], bool]:
    """The epochs up to the first snapshot that stays; whether there is one."""
    epochs: list[int] = []
    for snapshot in snapshots:
        epochs.append(snapshot.epoch)
        if snapshot.state is not SnapshotState.DESTROYING:
            return epochs, True
    return epochs, False


def merged(some: LayerRanges, other: LayerRanges) -> LayerRanges:
    """Both."""
    found = dict(some)
    for layer, ranges in other.items():
        found[layer] = union([*found.get(layer, []), *ranges])
    return found


def only_in(some: LayerRanges, other: LayerRanges) -> list[Run]:
    """The blocks of *some* that are not in *other*; a block is its number and its layer."""
    return [
        Run(start, stop, Layer(layer))
        for layer, ranges in some.items()
        for start, stop in subtract(ranges, other.get(layer, []))
    ]
