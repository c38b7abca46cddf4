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
from nasfs.volume.types import BLOCK, Layer, Run
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
        ranges = self.snapshot_ranges(ino, without)
        for layer, live in self._live_ranges(ino).items():
            ranges[layer] = union([*ranges.get(layer, []), *live])
        return ranges

    def _live_ranges(self, ino: int) -> LayerRanges:
        inode = self._live._inode(ino)
        return {} if inode is None else by_layer(mapped_runs(self._live, inode))

    def give_back(self, ino: int, layer: int) -> None:
        """Punch or remove what nothing reaches in one layer, if `may_give_back`."""
        is_sealed = layer <= self._store.epochs.newest
        ranges = (self.reachable(ino) if is_sealed else self._live_ranges(ino)).get(layer)
        if not ranges:
            self._layers.remove(ino, layer)
            return
        kept = [(start * BLOCK, stop * BLOCK) for start, stop in ranges]
        for start, stop in subtract(self._layers.data_ranges(ino, layer), kept):
            # Up to the end of the block: a part of one would be zeroed, and not freed.
            self._layers.punch(ino, layer, start, -(-stop // BLOCK) * BLOCK)


def only_in(some: LayerRanges, other: LayerRanges) -> list[Run]:
    """The blocks of *some* that are not in *other*; a block is its number and its layer."""
    return [
        Run(start, stop, Layer(layer))
        for layer, ranges in some.items()
        for start, stop in subtract(ranges, other.get(layer, []))
    ]
