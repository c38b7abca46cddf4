"""Writing a file's blocks: redirect-on-write on the three-level block map.

Where does block b live?  (1) A leaf row for its region says so; (2) otherwise blocks below
`layer_end` are in the inode's own `layer`; (3) otherwise it is a hole.

A block whose layer is the current epoch is overwritten in place.  Any other block is redirected:
the whole block, its unwritten parts taken from where it was, goes to the layer of the current
epoch, and then the map changes.  So what a committed map names is never touched, and a block
that no map names may hold anything: a first write always covers it up to the end of the file.
Bytes beyond the size are undefined; whoever moves the size over them writes zeros first.

Methods take an inode (`born` already the current epoch) and return the changed one, which the
caller stores; leaf rows and the account of space are stored here.
"""

from __future__ import annotations

import errno

import msgspec

from nasfs.volume.blockmap import HOLE, base_value, common_layer, leaf_runs, with_range
from nasfs.volume.errors import FsError
from nasfs.volume.layers import Layers
from nasfs.volume.live import Live
from nasfs.volume.space import Space
from nasfs.volume.store import Leaf, Store
from nasfs.volume.types import BLOCK, REGION_BLOCKS, SIZE_MAX, Inode, Layer, Run

_replace = msgspec.structs.replace

Buffer = bytes | memoryview


def _layer_in(leaf: Leaf, first: int, stop: int) -> int | None:
    """The layer of all blocks [first, stop), which this leaf row maps; None: several."""
    start = leaf.region * REGION_BLOCKS
    return common_layer(leaf.map, first - start, stop - start)


class FileData:
    """The blocks of the live view's files."""

    def __init__(self, store: Store, layers: Layers, live: Live, space: Space) -> None:
        self._store = store
        self._layers = layers
        self._live = live
        self._space = space

    def write(self, inode: Inode, offset: int, data: Buffer) -> Inode:
        """Put *data* at *offset*; the size grows with it."""
        end = offset + len(data)
        if end > SIZE_MAX:
            raise FsError(errno.EFBIG)
        if not data:
            return inode
        if offset > inode.size:
            inode = self._zero_tail(inode, offset)
            # Stored now: if the disk refuses what follows, these zeros remain, and are counted.
            self._store.inode.put(inode.ino, inode)
        first, stop = offset // BLOCK, -(-end // BLOCK)
        epoch = self._store.epochs.current
        leaf = self._leaf_of(inode, first, stop)
        was = None if leaf is None else _layer_in(leaf, first, stop)
        if was == epoch or (leaf is None and self._is_in(inode, first, stop, epoch)):
            self._layers.write(inode.ino, epoch, (data,), offset)
        elif leaf is not None and was and offset % BLOCK == end % BLOCK == 0:
            self._redirect_whole(leaf, first, stop, was, data)
        else:
            if leaf is not None:
                old = list(leaf_runs(leaf.region, leaf.map, first, stop))
            else:
                old = list(self._live.runs(inode, first, stop))
            self._check_room(old)
            parts, start = self._whole_blocks(inode, offset, data, old)
            self._layers.write(inode.ino, epoch, parts, start, fresh=True)
            if leaf is not None:
                self._set_in_leaf(leaf, first, stop, epoch)
            else:
                inode = self._map(inode, first, stop)
            inode = self._account(inode, old)
        return inode if end <= inode.size else _replace(inode, size=end)

    def _leaf_of(self, inode: Inode, first: int, stop: int) -> Leaf | None:
        """The leaf row that maps all of blocks [first, stop), if one does: mostly, if any is."""
        region = first // REGION_BLOCKS
        if not inode.leaves or stop > (region + 1) * REGION_BLOCKS:
            return None
        return self._live.leaf(inode.ino, region)

    def _redirect_whole(self, leaf: Leaf, first: int, stop: int, was: int, data: Buffer) -> None:
        """Whole blocks [first, stop), which all are in layer *was*: the usual overwrite, as the
        general way would do it."""
        count, epoch = stop - first, self._store.epochs.current
        self.check_room(count)
        self._layers.write(leaf.ino, epoch, (data,), first * BLOCK, fresh=True)
        self._set_in_leaf(leaf, first, stop, epoch)
        self._space.dropped(leaf.ino, (Run(first, stop, Layer(was)),))
        self._space.wrote(count)

    def _is_in(self, inode: Inode, first: int, stop: int, layer: int) -> bool:
        """Whether all of blocks [first, stop) are in a layer.  Asked before every write."""
        if not inode.leaves:
            return inode.layer == layer and stop <= inode.layer_end
        return all(run.layer == layer for run in self._live.runs(inode, first, stop))

    def truncate(self, inode: Inode, size: int) -> Inode:
        """Cut or extend; extending makes a hole."""
        if size > SIZE_MAX:
            raise FsError(errno.EFBIG)
        if size > inode.size:
            inode = self._zero_tail(inode, size)
        elif inode.blocks:
            old_stop, new_stop = -(-inode.size // BLOCK), -(-size // BLOCK)
            if new_stop < old_stop:
                inode = self._cut(inode, new_stop, old_stop)
        return _replace(inode, size=size)

    def unmap(self, inode: Inode, start: int, stop: int) -> Inode:
        """Make blocks [start, stop) a hole."""
        dropped = [run for run in self._live.runs(inode, start, stop) if run.layer]
        for run in dropped:
            for region in range(run.start // REGION_BLOCKS, (run.stop - 1) // REGION_BLOCKS + 1):
                low = max(run.start, region * REGION_BLOCKS)
                high = min(run.stop, (region + 1) * REGION_BLOCKS)
                inode = self._set_leaf(inode, region, low, high, HOLE)
        return _replace(inode, blocks=inode.blocks - self._space.dropped(inode.ino, dropped))

    def _whole_blocks(
        self, inode: Inode, offset: int, data: Buffer, old: list[Run]
    ) -> tuple[tuple[Buffer, ...], int]:
        """*data* with what a redirected block needs around it, and the offset of it all.

        Args:
            old: where the blocks of *data* are now.
        """
        epoch = self._store.epochs.current
        end = offset + len(data)
        lead: bytes = b""
        tail: bytes = b""
        if offset % BLOCK and old[0].layer != epoch:
            start = offset - offset % BLOCK
            lead = self._old(inode, start, offset)
        if end % BLOCK and end < inode.size and old[-1].layer != epoch:
            tail = self._old(inode, end, min(end - end % BLOCK + BLOCK, inode.size))
        return (lead, data, tail), offset - len(lead)

    def _old(self, inode: Inode, start: int, stop: int) -> bytes:
        """Bytes as they are now; zeros from the size on."""
        return self._live.read(inode.ino, start, stop - start).ljust(stop - start, b"\0")

    def _layer_of(self, inode: Inode, block: int) -> int:
        if not inode.leaves:
            return inode.layer if block < inode.layer_end else 0
        return next(iter(self._live.runs(inode, block, block + 1))).layer

    def _zero_tail(self, inode: Inode, upto: int) -> Inode:
        """Before the size moves to *upto*: zeros from the old size to the end of its block."""
        size = inode.size
        if size % BLOCK == 0 or self._layer_of(inode, size // BLOCK) == 0:
            return inode
        stop = min(upto, size - size % BLOCK + BLOCK)
        return _replace(self.write(inode, size, bytes(stop - size)), size=size)

    def _check_room(self, old: list[Run]) -> None:
        epoch = self._store.epochs.current
        self.check_room(sum([run.stop - run.start for run in old if run.layer != epoch]))

    def check_room(self, new: int) -> None:
        """ENOSPC before anything is written, if the volume's size does not allow *new* blocks."""
        counters = self._store.counters
        used = counters.live_blocks + counters.snapshot_blocks
        if new and (used + new) * BLOCK > self._store.size:
            raise FsError(errno.ENOSPC, "the volume is full")

    def _map(self, inode: Inode, first: int, stop: int) -> Inode:
        """Blocks [first, stop) are in the layer of the current epoch from now on."""
        epoch = self._store.epochs.current
        whole = inode.leaves == 0 and first == 0 and stop >= inode.layer_end
        if whole or (inode.leaves == 0 and inode.layer == epoch and first <= inode.layer_end):
            end = max(stop, inode.layer_end)
            inode = _replace(inode, layer=Layer(epoch), layer_end=end)
        else:
            for region in range(first // REGION_BLOCKS, (stop - 1) // REGION_BLOCKS + 1):
                low = max(first, region * REGION_BLOCKS)
                high = min(stop, (region + 1) * REGION_BLOCKS)
                inode = self._map_region(inode, region, low, high, epoch)
        return inode

    def _account(self, inode: Inode, old: list[Run]) -> Inode:
        """Blocks that were in *old* are in the layer of the current epoch now."""
        epoch = self._store.epochs.current
        fresh = sum([run.stop - run.start for run in old if not run.layer])
        replaced = [run for run in old if run.layer not in (0, epoch)]
        count = self._space.dropped(inode.ino, replaced) if replaced else 0
        self._space.wrote(fresh + count)
        return _replace(inode, blocks=inode.blocks + fresh) if fresh else inode

    def _map_region(self, inode: Inode, region: int, low: int, high: int, epoch: int) -> Inode:
        level_two = inode.layer == epoch and low <= inode.layer_end
        if level_two and self._live.leaf(inode.ino, region) is None:
            return _replace(inode, layer_end=max(inode.layer_end, high))
        return self._set_leaf(inode, region, low, high, epoch)

    def _set_leaf(self, inode: Inode, region: int, low: int, high: int, layer: int) -> Inode:
        """Blocks [low, high) of one region to *layer*, by a leaf row."""
        first = region * REGION_BLOCKS
        leaf = self._live.leaf(inode.ino, region)
        value = base_value(region, inode.layer, inode.layer_end) if leaf is None else leaf.map
        value = with_range(value, low - first, high - first, layer)
        if value == HOLE and first >= inode.layer_end:  # what level 2 says anyway
            return inode if leaf is None else self._drop_leaf(inode, region)
        self._store.leaf.put(
            (inode.ino, region), Leaf(inode.ino, region, self._store.epochs.current, value)
        )
        return inode if leaf is not None else _replace(inode, leaves=inode.leaves + 1)

    def _set_in_leaf(self, leaf: Leaf, first: int, stop: int, layer: int) -> None:
        """Blocks [first, stop), which this leaf row maps, to *layer* (no hole)."""
        start = leaf.region * REGION_BLOCKS
        value = with_range(leaf.map, first - start, stop - start, layer)
        row = Leaf(leaf.ino, leaf.region, self._store.epochs.current, value)
        self._store.leaf.put((leaf.ino, leaf.region), row)

    def _drop_leaf(self, inode: Inode, region: int) -> Inode:
        self._store.leaf.delete((inode.ino, region))
        return _replace(inode, leaves=inode.leaves - 1)

    def _cut(self, inode: Inode, stop: int, old_stop: int) -> Inode:
        """No block from *stop* on is mapped any more."""
        if stop == 0:
            self._layers.drop_waiting(inode.ino, self._store.epochs.current)
        dropped = [run for run in self._live.runs(inode, stop, old_stop) if run.layer]
        if inode.leaves:
            for region in self._live.leaf_regions(inode.ino, stop // REGION_BLOCKS):
                first = region * REGION_BLOCKS
                leaf = self._live.leaf(inode.ino, region)
                assert leaf is not None
                kept = any(run.layer for run in leaf_runs(region, leaf.map, first, stop))
                if first >= stop or not (kept or first < inode.layer_end):
                    inode = self._drop_leaf(inode, region)
                else:
                    value = with_range(leaf.map, stop - first, REGION_BLOCKS, HOLE)
                    self._store.leaf.put(
                        (inode.ino, region),
                        Leaf(inode.ino, region, self._store.epochs.current, value),
                    )
        end = min(inode.layer_end, stop)
        inode = _replace(inode, layer=inode.layer if end else HOLE, layer_end=end)
        return _replace(inode, blocks=inode.blocks - self._space.dropped(inode.ino, dropped))
