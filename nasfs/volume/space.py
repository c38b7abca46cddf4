"""Who can still reach a block: the account of space, and what may be given back.

A block of a layer is *live* if the live view maps it, *snapshot-only* if only snapshots do, and
else free.  The two counters move with every change; blocks that became free are queued (table
``reclaim``) and given back to the host after the commit that made them free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nasfs.volume.blockmap import Ranges, subtract, union
from nasfs.volume.layers import Layers
from nasfs.volume.reach import ALL_REGIONS, Reach
from nasfs.volume.store import Store
from nasfs.volume.types import BLOCK, REGION_BLOCKS, Layer, Run

LEAVES_A_PART = 4
"""Leaf rows in the part of a map that is looked at before others have a turn."""

RANGES_A_PART = 4096
"""Pieces of data in a layer, likewise."""

LayerRanges = dict[int, Ranges]
"""Block ranges by layer."""


def by_layer(runs: Iterable[Run]) -> LayerRanges:
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for run in runs:
        if run.layer:
            found[run.layer].append((run.start, run.stop))
    return {layer: union(ranges) for layer, ranges in found.items()}


def only_in(some: LayerRanges, other: LayerRanges) -> list[Run]:
    """The blocks of *some* that are not in *other*; a block is its number and its layer."""
    return [
        Run(start, stop, Layer(layer))
        for layer, ranges in some.items()
        for start, stop in subtract(ranges, other.get(layer, []))
    ]


class Space:
    """The account of one volume."""

    def __init__(self, store: Store, layers: Layers) -> None:
        self._store = store
        self._layers = layers
        self.reach = Reach(store)
        self._passes: dict[tuple[int, int], _Pass] = {}
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
                free = self.reach.unreached(ino, [run], live=False)
                kept = count - sum(part.stop - part.start for part in free)
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
        self._passes.pop((ino, layer), None)
        self._store.reclaim.add((ino, layer))

    def give_back(self, ino: int, layer: int) -> bool:
        """Punch what nothing reaches in a bounded part of a layer, if `may_give_back`.

        The next call goes on behind that part; call it until it is True: then all was looked at,
        and the layer was removed if no view names it.  After a crash it begins again, with less.
        """
        sealed = layer < self._store.epochs.current
        work = self._passes.pop((ino, layer), None)
        if work is None or work.sealed != sealed:
            work = _Pass(sealed)
        first = work.block // REGION_BLOCKS
        behind = self.reach.window_from(ino, first, LEAVES_A_PART)
        there, stop, is_all = self._data(ino, layer, work.block, behind * REGION_BLOCKS)
        free = union((run.start, run.stop) for run in self.reach.unreached(ino, there))
        if free != [(run.start, run.stop) for run in there]:
            work.named = True
        regions = first, -(-stop // REGION_BLOCKS)
        work.named = work.named or self.reach.named_at(ino, layer, *regions)
        ends = is_all and (work.named or regions[1] >= ALL_REGIONS)
        if ends and not work.named and self._stays_unnamed(ino, layer, work):
            self._layers.remove(ino, layer)
            return True
        for start, end in free:
            self._layers.punch(ino, layer, start * BLOCK, end * BLOCK)
        if not ends:
            work.block = stop
            self._passes[ino, layer] = work
        return ends

    def _data(self, ino: int, layer: int, block: int, stop: int) -> tuple[list[Run], int, bool]:
        """Data of a layer from *block* on: runs, where they end, whether there is none behind.

        They end at *stop*, or before if there are too many.
        """
        ranges: list[tuple[int, int]] = []
        is_all = True
        for start, end in self._layers.data_ranges(ino, layer, block * BLOCK):
            if start >= stop * BLOCK or len(ranges) == RANGES_A_PART:
                is_all = False
                break
            ranges.append((start // BLOCK, min(-(-end // BLOCK), stop)))
            if end > stop * BLOCK:
                is_all = False
                break
        found = union(ranges)
        if len(ranges) == RANGES_A_PART and not is_all:
            stop = min(stop, found[-1][1])
        return [Run(start, end, Layer(layer)) for start, end in found], stop, is_all

    def _stays_unnamed(self, ino: int, layer: int, work: _Pass) -> bool:
        """No view named the layer where it was looked at; and since then?"""
        # A sealed layer that no view names is named by none later.  Into the one of the current
        # epoch writes go: where that was looked at in an earlier step, one may have come since.
        return work.sealed or not work.block or not self.reach.named_at(ino, layer, 0, ALL_REGIONS)


@dataclass(slots=True)
class _Pass:
    """How far a layer was looked through."""

    sealed: bool
    """It was of an older epoch than the current one."""
    block: int = 0
    named: bool = False
    """A view names it before that block."""
