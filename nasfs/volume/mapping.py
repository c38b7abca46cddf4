"""The block maps in the history of an inode: what they name, whether it can be, how much it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from nasfs.volume.blockmap import base_value, expand
from nasfs.volume.history import History, InodeVersion, LeafVersion, Views
from nasfs.volume.layers import Layers
from nasfs.volume.types import BLOCK, REGION_BLOCKS


@dataclass(frozen=True, slots=True)
class _Leaf:
    """What one leaf row says."""

    row: LeafVersion
    mapped: int
    """Blocks of the region that are in a layer."""
    ends: dict[int, int]
    """For each layer the block of the file behind the last one that is in it."""


def _read(row: LeafVersion) -> _Leaf:
    """Raises CorruptionError if its map makes no sense."""
    first = row.region * REGION_BLOCKS
    if isinstance(row.map, int):
        if not row.map:
            return _Leaf(row, 0, {})
        return _Leaf(row, REGION_BLOCKS, {row.map: first + REGION_BLOCKS})
    layers = expand(row.map)
    ends: dict[int, int] = {}
    position = first
    for layer, group in groupby(layers):
        position += sum(1 for _ in group)
        if layer:
            ends[layer] = position
    return _Leaf(row, REGION_BLOCKS - layers.count(0), ends)


class Maps:
    """The maps of one inode, in all views.

    Raises:
        CorruptionError: a leaf row makes no sense.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._leaves = [_read(row) for row in history.leaves]

    def _at(self, view: int) -> list[_Leaf]:
        return [leaf for leaf in self._leaves if leaf.row.born <= view < leaf.row.died]

    def stretches(self, inode: InodeVersion, views: Views) -> Iterator[int]:
        """A view for each map that this version of the inode has; newest first."""
        edges = {inode.born, inode.died}
        for leaf in self._leaves:
            edges |= {e for e in (leaf.row.born, leaf.row.died) if inode.born < e < inode.died}
        for start, stop in reversed(list(pairwise(sorted(edges)))):
            view = views.newest(start, stop)
            if view is not None:
                yield view

    def count(self, inode: InodeVersion, view: int) -> tuple[int, int]:
        """What the columns `leaves` and `blocks` have to say."""
        leaves = self._at(view)
        regions = {leaf.row.region for leaf in leaves}
        base = _outside(inode.layer_end, regions) if inode.layer else 0
        return len(leaves), base + sum(leaf.mapped for leaf in leaves)

    def problems(self, inode: InodeVersion, view: int, layers: Layers) -> Iterator[str]:
        """What is wrong with the map that a view sees."""
        ino, size = self._history.ino, inode.size
        found, mapped = self.count(inode, view)
        if found != inode.leaves:
            yield f"inode {ino} counts {inode.leaves} leaves, has {found}"
        if mapped != inode.blocks:
            yield f"inode {ino} counts {inode.blocks} blocks, maps {mapped}"
        if bool(inode.layer) != bool(inode.layer_end) or inode.layer > inode.born:
            yield f"inode {ino} has layer {inode.layer} up to {inode.layer_end}"
        for leaf in self._at(view):
            if any(layer > leaf.row.born for layer in leaf.ends):
                yield f"leaf {leaf.row.region} of inode {ino} names a layer of the future"
        for layer, end in sorted(self._ends(inode, view).items()):
            if end > -(-size // BLOCK):
                yield f"inode {ino} maps block {end - 1} past its size"
            held, _ = layers.media.usage(layers.path(ino, layer))
            needed = min(end * BLOCK, size)
            if held < needed:
                yield f"layer {ino}.{layer} has {held} bytes, {needed} are named"

    def _ends(self, inode: InodeVersion, view: int) -> dict[int, int]:
        """For each layer that a view reaches, the block behind the last one that is in it."""
        leaves = self._at(view)
        ends: dict[int, int] = {}
        last = _base_end(inode, {leaf.row.region for leaf in leaves})
        if last:
            ends[inode.layer] = last
        for leaf in leaves:
            for layer, end in leaf.ends.items():
                ends[layer] = max(end, ends.get(layer, 0))
        return ends

    def layers(self, views: Views) -> set[int]:
        """The layers that some view reaches."""
        return {
            layer
            for inode in self._history.inodes
            for view in self.stretches(inode, views)
            for layer in self._ends(inode, view)
        }

    def reached(self, views: Views) -> int:
        """How many blocks of layers the views reach in all."""
        seen = [row for row in self._history.inodes if views.newest(row.born, row.died) is not None]
        regions = {leaf.row.region for leaf in self._leaves}
        if len(seen) == 1 and len(regions) == len(self._leaves):
            view = views.newest(seen[0].born, seen[0].died)
            assert view is not None, "somebody sees it"
            return self.count(seen[0], view)[1]
        base: dict[int, int] = {}
        for row in seen:
            if row.layer:
                base[row.layer] = max(row.layer_end, base.get(row.layer, 0))
        total = sum(_outside(end, regions) for end in base.values())
        return total + sum(self._reached_in(region, seen, views) for region in regions)

    def _reached_in(self, region: int, seen: list[InodeVersion], views: Views) -> int:
        """In a region that has, or had, a leaf row."""
        rows = [leaf.row for leaf in self._leaves if leaf.row.region == region]
        pairs: set[tuple[int, int]] = set()
        for row in rows:
            if any(
                views.newest(max(row.born, i.born), min(row.died, i.died)) is not None for i in seen
            ):
                pairs.update(enumerate(expand(row.map)))
        for inode in seen:
            without = (
                view
                for view in views.all(inode.born, inode.died)
                if not any(row.born <= view < row.died for row in rows)
            )
            if inode.layer and next(without, None) is not None:
                pairs.update(enumerate(expand(base_value(region, inode.layer, inode.layer_end))))
        return sum(1 for _, layer in pairs if layer)


def _outside(end: int, regions: set[int]) -> int:
    """How many of the blocks [0, end) are in none of the regions."""
    inside = (min(max(end - region * REGION_BLOCKS, 0), REGION_BLOCKS) for region in regions)
    return end - sum(inside)


def _base_end(inode: InodeVersion, regions: set[int]) -> int:
    """The block behind the last one of level 2 of the map; 0 if there is none."""
    end = inode.layer_end if inode.layer else 0
    while end and (end - 1) // REGION_BLOCKS in regions:
        end = (end - 1) // REGION_BLOCKS * REGION_BLOCKS
    return end
