"""Who can still reach a block: the account of space, and what may be given back.

A block of a layer is *live* if the live view maps it, *snapshot-only* if only snapshots do, and
else free.  The two counters move with every change; blocks that became free are queued (table
``reclaim``) and given back to the host after the commit that made them free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from nasfs.volume.blockmap import (
    LeafValue,
    Ranges,
    base_value,
    by_region,
    expand,
    subtract,
    union,
    unmatched,
)
from nasfs.volume.layers import Layers
from nasfs.volume.store import Store
from nasfs.volume.types import BLOCK, REGION_BLOCKS, Layer, Run

LayerRanges = dict[int, Ranges]
"""Block ranges by layer."""

_NEVER = 1 << 62
"""`died` of live rows."""


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
                free = self.unreached(ino, [run], live=False)
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
        self._store.reclaim.add((ino, layer))

    def unreached(
        self, ino: int, wanted: Iterable[Run], *, without: int | None = None, live: bool = True
    ) -> list[Run]:
        """The blocks of *wanted*, mapped runs of an inode, that no view reaches.

        Costs what is wanted, and for each version of the map a look at what is still in question:
        of a big file with many snapshots neighbours know nearly all.  A leaf row is read only if
        it is looked at.

        Args:
            without: the epoch of a snapshot that does not count.
            live: whether the live view counts.
        """
        left = [run for run in wanted if run.layer]
        if not left:
            return []
        oldest = min(run.layer for run in left)
        views = [view for view in self._views(without, live=live) if view >= oldest]
        near = without or max(run.layer for run in left)
        inodes = _Versions(self._versions("inode", "born, layer, layer_end", ino))
        leaves = self._leaf_versions(ino)
        plain: list[Run] = []
        """In regions that never had a leaf row: all that counts is level 2."""
        mapped: defaultdict[int, list[Run]] = defaultdict(list)
        for run in left:
            if not leaves:
                plain.append(run)
                continue
            for region, parts in by_region([run]).items():
                (mapped[region] if region in leaves else plain).extend(parts)
        left = self._unreached_by_level_2(plain, inodes, views)
        for region, parts in mapped.items():
            rows = leaves[region]
            left += self._unreached_in_region(ino, region, parts, inodes, rows, views, near)
        return left

    def _views(self, without: int | None, *, live: bool) -> list[int]:
        """The epochs that views see; that of the live view, whose rows are written now, is last."""
        self._store.flush()
        found: list[int] = [s.epoch for s in self._store.all_snapshots if s.epoch != without]
        return [*found, self._store.epochs.current] if live else found

    def _unreached_by_level_2(
        self, left: list[Run], inodes: _Versions, views: Sequence[int]
    ) -> list[Run]:
        for _, layer, layer_end, _ in inodes.seen_by(views):
            if not left:
                break
            left = [
                Run(max(run.start, layer_end), run.stop, run.layer) if run.layer == layer else run
                for run in left
                if run.layer != layer or run.stop > layer_end
            ]
        return left

    def _unreached_in_region(
        self,
        ino: int,
        region: int,
        left: list[Run],
        inodes: _Versions,
        leaves: _Versions,
        views: Sequence[int],
        near: int,
    ) -> list[Run]:
        """The nearest views first, because they have most in common."""
        looked: set[tuple[int, ...]] = set()
        for epoch in sorted(views, key=lambda view: abs(view - near)):
            if not left:
                break
            inode = inodes.at(epoch)
            if inode is None:
                continue
            row = leaves.at(epoch)
            identity = inode[1:3] if row is None else row[:1]
            if identity in looked:
                continue
            looked.add(identity)
            value = base_value(region, *inode[1:3]) if row is None else self._leaf(ino, region, row)
            left = unmatched(region, value, left)
        return left

    def _leaf(self, ino: int, region: int, row: tuple[int, ...]) -> LeafValue:
        """The map of a version of a leaf row, by its `born`."""
        key = (ino, region, row[0])
        table = "leaf" if row[-1] == _NEVER else "leaf_past"
        found = self._store.db.execute(
            f"SELECT map FROM {table} WHERE ino = ? AND region = ? AND born = ?", key
        ).fetchone()
        value: LeafValue = found[0]
        return value

    def _versions(
        self, table: str, columns: str, ino: int, *, naming: tuple[int, bytes] | None = None
    ) -> list[tuple[int, ...]]:
        """All versions of an inode's rows, `died` last; live rows die after every view.

        Args:
            naming: of leaf rows those whose map is this number, or holds these bytes.
        """
        where, values = "ino = ?", (ino, *(naming or ()))
        if naming:
            where += " AND (map = ? OR typeof(map) = 'blob' AND instr(map, ?))"
        return self._store.db.execute(
            f"SELECT {columns}, {_NEVER} FROM {table} WHERE {where}"
            f" UNION ALL SELECT {columns}, died FROM {table}_past WHERE {where}",
            (*values, *values),
        ).fetchall()

    def give_back(self, ino: int, layer: int) -> None:
        """Punch or remove what nothing reaches in one layer, if `may_give_back`."""
        data = self._layers.data_ranges(ino, layer)
        blocks = union((start // BLOCK, -(-stop // BLOCK)) for start, stop in data)
        there = [Run(start, stop, Layer(layer)) for start, stop in blocks]
        free = union((run.start, run.stop) for run in self.unreached(ino, there))
        if free == blocks and not self._is_named(ino, layer):
            self._layers.remove(ino, layer)
            return
        for start, stop in free:
            self._layers.punch(ino, layer, start * BLOCK, stop * BLOCK)

    def _is_named(self, ino: int, layer: int) -> bool:
        """Whether the map of any view names a layer, be there data or not."""
        views = [view for view in self._views(None, live=True) if view >= layer]
        inodes = _Versions(self._versions("inode", "born, layer, layer_end", ino))
        leaves = self._leaf_versions(ino)
        for view in views:
            inode = inodes.at(view)
            if inode is None or inode[1] != layer:
                continue
            for region in range(-(-inode[2] // REGION_BLOCKS)):
                if region not in leaves or leaves[region].at(view) is None:
                    return True
        naming = self._leaf_versions(ino, naming=(layer, layer.to_bytes(4, "little")))
        return any(
            layer in expand(self._leaf(ino, region, row))
            for region, rows in naming.items()
            for row in rows.seen_by(views)
        )

    def _leaf_versions(
        self, ino: int, *, naming: tuple[int, bytes] | None = None
    ) -> dict[int, _Versions]:
        """By region, without the maps: those are long."""
        found: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
        for row in self._versions("leaf", "born, region", ino, naming=naming):
            found[row[1]].append(row)
        return {region: _Versions(rows) for region, rows in found.items()}


class _Versions:
    """Rows of one key: (born, ..., died); which one a view sees."""

    def __init__(self, rows: list[tuple[int, ...]]) -> None:
        self._rows = sorted(rows)
        self._born = [row[0] for row in self._rows]

    def at(self, epoch: int) -> tuple[int, ...] | None:
        index = bisect_right(self._born, epoch) - 1
        if index < 0 or self._rows[index][-1] <= epoch:
            return None
        return self._rows[index]

    def seen_by(self, views: Sequence[int]) -> list[tuple[int, ...]]:
        """Rows that any of these epochs sees."""
        return [row for row in dict.fromkeys(map(self.at, views)) if row is not None]
