"""The algebra of block maps: leaf values, runs of blocks, sets of ranges.  Pure.

A *leaf value* tells the layers of the 1,024 blocks of one region: an integer if all blocks are
in that layer, else 4,096 bytes, one little-endian 32-bit layer number a block (0: a hole).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby

from nasfs.volume.errors import CorruptionError
from nasfs.volume.types import REGION_BLOCKS, Layer, Run

LeafValue = int | bytes

HOLE = Layer(0)

_WIDTH = 4
"""Bytes of a layer number."""

if array("I").itemsize != _WIDTH:  # pragma: no cover
    raise ImportError("nasfs needs a platform with 32-bit unsigned int")


def expand(value: LeafValue) -> array[int]:
    """The 1,024 layer numbers of a leaf value."""
    if isinstance(value, int):
        return array("I", [value]) * REGION_BLOCKS
    layers = array("I")
    layers.frombytes(_checked(value))
    if sys.byteorder == "big":  # pragma: no cover
        layers.byteswap()
    return layers


def base_value(region: int, layer: int, layer_end: int) -> LeafValue:
    """What level 2 of the map says of a region, as a leaf value."""
    covered = min(max(layer_end - region * REGION_BLOCKS, 0), REGION_BLOCKS)
    return with_range(HOLE, 0, covered, layer)


def with_range(value: LeafValue, start: int, stop: int, layer: int) -> LeafValue:
    """The leaf value with blocks [start, stop) of the region (0 to 1,024) in *layer*."""
    if start == stop or value == layer:
        return value
    if start == 0 and stop == REGION_BLOCKS:
        return layer
    if isinstance(value, int):
        value = _number(value) * REGION_BLOCKS
    number = _number(layer)
    value = _checked(value)[: start * _WIDTH] + number * (stop - start) + value[stop * _WIDTH :]
    if value[:_WIDTH] == number == value[-_WIDTH:] and value == number * REGION_BLOCKS:
        return layer
    return value


def common_layer(value: LeafValue, start: int, stop: int) -> int | None:
    """The layer of all blocks [start, stop) of the region; None if they are in several."""
    if isinstance(value, int):
        return value
    numbers = _checked(value)[start * _WIDTH : stop * _WIDTH]
    first = numbers[:_WIDTH]
    if stop - start > 1 and numbers != first * (stop - start):
        return None
    return int.from_bytes(first, "little")


def leaf_runs(region: int, value: LeafValue, start: int, stop: int) -> Iterator[Run]:
    """Runs of a region's blocks within [start, stop), in block numbers of the file."""
    first = region * REGION_BLOCKS
    start, stop = max(start, first), min(stop, first + REGION_BLOCKS)
    if start >= stop:
        return
    if isinstance(value, int):
        yield Run(start, stop, Layer(value))
        return
    numbers = _checked(value)[(start - first) * _WIDTH : (stop - first) * _WIDTH]
    layer = int.from_bytes(numbers[:_WIDTH], "little")
    if numbers == numbers[:_WIDTH] * (stop - start):  # mostly, where little is asked for
        yield Run(start, stop, Layer(layer))
        return
    position = start
    for layer, group in groupby(expand(value)[start - first : stop - first]):
        length = sum(1 for _ in group)
        yield Run(position, position + length, Layer(layer))
        position += length


def _number(layer: int) -> bytes:
    return layer.to_bytes(_WIDTH, "little")


def _checked(value: bytes) -> bytes:
    if len(value) != _WIDTH * REGION_BLOCKS:
        raise CorruptionError("a leaf row", f"its map has {len(value)} bytes")
    return value


def map_runs(
    layer: int,
    layer_end: int,
    leaves: Iterable[tuple[int, LeafValue]],
    start: int,
    stop: int,
) -> Iterator[Run]:
    """Where blocks [start, stop) are: adjoining runs, holes included, neighbours differ.

    Args:
        layer, layer_end: level 2 of the map.
        leaves: (region, leaf value) of at least the regions touched, in order of the region.
    """
    return _merged(_map_runs(layer, layer_end, leaves, start, stop))


def _map_runs(
    layer: int, layer_end: int, leaves: Iterable[tuple[int, LeafValue]], start: int, stop: int
) -> Iterator[Run]:
    position = start
    for region, value in leaves:
        first = region * REGION_BLOCKS
        if first >= stop:
            break
        if first > position:
            yield from base_runs(layer, layer_end, position, first)
        yield from leaf_runs(region, value, position, stop)
        position = max(position, min(first + REGION_BLOCKS, stop))
    yield from base_runs(layer, layer_end, position, stop)


def base_runs(layer: int, layer_end: int, start: int, stop: int) -> Iterator[Run]:
    """What level 2 of the map says of blocks [start, stop)."""
    edge = min(max(layer_end, start), stop) if layer else start
    if start < edge:
        yield Run(start, edge, Layer(layer))
    if edge < stop:
        yield Run(edge, stop, HOLE)


def _merged(runs: Iterable[Run]) -> Iterator[Run]:
    pending: Run | None = None
    for run in runs:
        if pending is not None and run.layer == pending.layer:
            pending = Run(pending.start, run.stop, run.layer)
            continue
        if pending is not None:
            yield pending
        pending = run
    if pending is not None:
        yield pending


def unmatched(region: int, value: LeafValue, wanted: Iterable[Run]) -> list[Run]:
    """What of *wanted* (runs of one region) this leaf value maps to another layer."""
    return [
        Run(part.start, part.stop, run.layer)
        for run in wanted
        for part in leaf_runs(region, value, run.start, run.stop)
        if part.layer != run.layer
    ]


def by_region(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """The runs, cut where regions end."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        start = run.start
        while start < run.stop:
            region = start // REGION_BLOCKS
            stop = min(run.stop, (region + 1) * REGION_BLOCKS)
            found.setdefault(region, []).append(Run(start, stop, run.layer))
            start = stop
    return found


def diff_runs(old: Iterable[Run], new: Iterable[Run]) -> Iterator[tuple[Run, Layer]]:
    """Where two maps over the same blocks differ: (run of the new map, the old layer)."""
    olds = iter(old)
    was = next(olds, None)
    for run in new:
        position = run.start
        while position < run.stop:
            assert was is not None, "the maps cover the same blocks"
            stop = min(run.stop, was.stop)
            if was.layer != run.layer:
                yield Run(position, stop, run.layer), was.layer
            position = stop
            if stop == was.stop:
                was = next(olds, None)


Ranges = list[tuple[int, int]]
"""Half-open ranges in ascending order that neither touch nor overlap."""


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Any ranges, as `Ranges`."""
    result: Ranges = []
    for start, stop in sorted(ranges):
        if result and start <= result[-1][1]:
            if stop > result[-1][1]:
                result[-1] = (result[-1][0], stop)
        else:
            result.append((start, stop))
    return result


def subtract(ranges: Iterable[tuple[int, int]], holes: Ranges) -> Ranges:
    """What of *ranges* is not in *holes*; both ascending."""
    result: Ranges = []
    index = 0
    for start, stop in ranges:
        position = start
        while index < len(holes) and holes[index][1] <= position:
            index += 1
        scan = index
        while scan < len(holes) and holes[scan][0] < stop:
            if holes[scan][0] > position:
                result.append((position, holes[scan][0]))
            position = holes[scan][1]
            scan += 1
        if position < stop:
            result.append((position, stop))
    return result


def length(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)
