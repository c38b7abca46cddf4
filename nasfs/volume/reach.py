"""Which blocks a view still reaches: asked of the rows of one inode, and of parts of its map.

A big file with many snapshots has many leaf rows, in many versions: `window_from` and `window_to`
cut its map into parts that are looked at in a bounded time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from nasfs.volume.blockmap import LeafValue, base_value, expand, unmatched
from nasfs.volume.store import Store
from nasfs.volume.types import REGION_BLOCKS, Run

_NEVER = 1 << 62
"""`died` of live rows."""

FEW = 4
"""Maps that are read one by one before SQLite is asked which of the others are worth it."""

NARROW = 32
"""Blocks, likewise: in a longer piece of a map SQLite's search takes longer than ours."""

ALL_REGIONS = 1 << 40
"""Behind the last region of any file."""


class Reach:
    """The maps of all views of one volume."""

    def __init__(self, store: Store) -> None:
        self._store = store

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
        views = self._views(without, live=live)
        views = views[bisect_left(views, oldest) :]
        near = without or max(run.layer for run in left)
        inodes = self._inode_versions(ino)
        leaves = self._leaf_versions(ino, *_regions_of(left))
        plain, mapped = _by_leaf(left, sorted(leaves))
        left = self._unreached_by_level_2(plain, inodes, views)
        for region, parts in mapped.items():
            rows = leaves[region]
            left += self._unreached_in_region(ino, region, parts, inodes, rows, views, near)
        return left

    def _views(self, without: int | None, *, live: bool) -> list[int]:
        """The epochs that views see; that of the live view, whose rows are written now, is last."""
        self._store.flush()
        found: list[int] = [*self._store.snapshot_epochs]
        if without is not None:
            found.remove(without)
        if live:
            found.append(self._store.epochs.current)
        return found

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
        naming: set[tuple[int, ...]] | None = None
        for epoch in _unlike(views, near, inodes, leaves):
            if not left:
                break
            inode = inodes.at(epoch)
            if inode is None:
                continue
            row = leaves.at(epoch)
            if row is not None and naming is None and len(looked) >= FEW:
                naming = self._rows_naming(ino, region, left) if _are_few(left) else {*leaves}
            if row is not None and naming is not None and row not in naming:
                continue
            identity = inode[1:3] if row is None else row[:1]
            if identity in looked:
                continue
            looked.add(identity)
            value = base_value(region, *inode[1:3]) if row is None else self._leaf(ino, region, row)
            left = unmatched(region, value, left)
        return left

    def _rows_naming(self, ino: int, region: int, wanted: Sequence[Run]) -> set[tuple[int, ...]]:
        """Versions of a leaf row that may map some of these runs as wanted: told by SQLite."""
        first = min(run.start for run in wanted) - region * REGION_BLOCKS
        stop = max(run.stop for run in wanted) - region * REGION_BLOCKS
        return {
            row
            for layer in {run.layer for run in wanted}
            for rows in self._leaf_versions(
                ino, region, region + 1, naming=layer, blocks=(first, stop)
            ).values()
            for row in rows
        }

    def _leaf(self, ino: int, region: int, row: tuple[int, ...]) -> LeafValue:
        """The map of a version of a leaf row, by its `born`."""
        key = (ino, region, row[0])
        table = "leaf" if row[-1] == _NEVER else "leaf_past"
        found = self._store.db.execute(
            f"SELECT map FROM {table} WHERE ino = ? AND region = ? AND born = ?", key
        ).fetchone()
        value: LeafValue = found[0]
        return value

    def named_at(self, ino: int, layer: int, first: int, stop: int) -> bool:
        """Whether the map of any view names a layer in regions [first, stop), data or not."""
        views = self._views(None, live=True)
        views = views[bisect_left(views, layer) :]
        base = [row for row in self._inode_versions(ino).seen_by(views) if row[1] == layer]
        leaves = self._leaf_versions(ino, first, stop) if base else {}
        for row in base:
            end = min(stop, -(-row[2] // REGION_BLOCKS))
            for view in views[bisect_left(views, row[0]) : bisect_left(views, row[-1])]:
                if sum(r < end and leaves[r].at(view) is not None for r in leaves) < end - first:
                    return True
                if not leaves:  # then every view of this row says the same
                    break
        naming = self._leaf_versions(ino, first, stop, naming=layer)
        return any(
            layer in expand(self._leaf(ino, region, row))
            for region, rows in naming.items()
            for row in rows.seen_by(views)
        )

    def seen_leaves(self, ino: int, first: int, stop: int, epoch: int) -> list[int]:
        """Regions in [first, stop) of which an epoch sees a leaf row, ascending."""
        leaves = self._leaf_versions(ino, first, stop)
        return sorted(region for region, rows in leaves.items() if rows.at(epoch) is not None)

    def sees(self, ino: int, *, without: int) -> Callable[[int, int], bool]:
        """Whether any view but one sees a leaf row of an inode, by its `born` and `died`."""
        views = self._views(without, live=True)
        inodes = self._inode_versions(ino)

        def found(born: int, died: int) -> bool:
            some = views[bisect_left(views, born) : bisect_left(views, died)]
            return any(inodes.at(view) is not None for view in some)

        return found

    def window_from(self, ino: int, first: int, limit: int) -> int:
        """The region behind those from *first* on that have about *limit* leaf rows in all."""
        found = self._nth_region("region >= ?", ino, first, "ASC", limit)
        return ALL_REGIONS if found is None else max(found, first + 1)

    def window_to(self, ino: int, last: int, limit: int) -> int:
        """The first of the regions up to *last* that have about *limit* leaf rows in all."""
        found = self._nth_region("region <= ?", ino, last, "DESC", limit)
        return 0 if found is None else min(found + 1, last)

    def _nth_region(self, where: str, ino: int, region: int, order: str, number: int) -> int | None:
        """Of the leaf row, of any version, that comes so many rows behind the first one."""
        self._store.flush()
        row = self._store.db.execute(
            f"SELECT region FROM leaf WHERE ino = ? AND {where}"
            f" UNION ALL SELECT region FROM leaf_past WHERE ino = ? AND {where}"
            f" ORDER BY region {order} LIMIT 1 OFFSET ?",
            (ino, region, ino, region, number),
        ).fetchone()
        return None if row is None else int(row[0])

    def _inode_versions(self, ino: int) -> _Versions:
        columns = "born, layer, layer_end"
        return _Versions(
            self._store.db.execute(
                f"SELECT {columns}, {_NEVER} FROM inode WHERE ino = ?"
                f" UNION ALL SELECT {columns}, died FROM inode_past WHERE ino = ?",
                (ino, ino),
            ).fetchall()
        )

    def _leaf_versions(
        self,
        ino: int,
        first: int,
        stop: int,
        *,
        naming: int | None = None,
        blocks: tuple[int, int] = (0, REGION_BLOCKS),
    ) -> dict[int, _Versions]:
        """By region in [first, stop), without the maps: those are long.

        Args:
            naming: only those whose map is this layer, or holds the bytes of its number
            blocks: within these blocks [start, stop) of the region.
        """
        values: tuple[int | bytes, ...]
        where, values = "ino = ? AND region >= ? AND region < ?", (ino, first, stop)
        if naming is not None:
            where += (
                " AND born >= ? AND"
                " (map = ? OR typeof(map) = 'blob' AND instr(substr(map, ?, ?), ?))"
            )
            start, length = 1 + 4 * blocks[0], 4 * (blocks[1] - blocks[0])
            values = (*values, naming, naming, start, length, naming.to_bytes(4, "little"))
        rows = self._store.db.execute(
            f"SELECT born, region, {_NEVER} FROM leaf WHERE {where}"
            f" UNION ALL SELECT born, region, died FROM leaf_past WHERE {where}",
            (*values, *values),
        )
        found: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
        for row in rows:
            found[row[1]].append(row)
        return {region: _Versions(rows) for region, rows in found.items()}


class _Versions:
    """Rows of one key: (born, ..., died); which one a view sees."""

    def __init__(self, rows: list[tuple[int, ...]]) -> None:
        self._rows = sorted(rows)
        self._born = [row[0] for row in self._rows]

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter(self._rows)

    def at(self, epoch: int) -> tuple[int, ...] | None:
        index = bisect_right(self._born, epoch) - 1
        if index < 0 or self._rows[index][-1] <= epoch:
            return None
        return self._rows[index]

    def edges(self) -> Iterator[int]:
        """Where another row, or none, begins to be seen."""
        for row in self._rows:
            yield row[0]
            yield row[-1]

    def seen_by(self, views: Sequence[int]) -> list[tuple[int, ...]]:
        """Rows that any of these epochs (ascending) sees; costs the rows, not the views."""
        return [
            row for row in self._rows if bisect_left(views, row[0]) < bisect_left(views, row[-1])
        ]


def _unlike(views: Sequence[int], near: int, *versions: _Versions) -> list[int]:
    """Of all views (ascending) that see the same rows one, the nearest first.

    Costs the rows, not the views.
    """
    edges = sorted({edge for one in versions for edge in one.edges()})
    cuts = [bisect_left(views, edge) for edge in edges]
    middle = bisect_left(views, near)
    found = []
    for first, stop in zip([0, *cuts], [*cuts, len(views)], strict=True):
        if first < stop:
            below = views[max(first, min(middle, stop) - 1)]
            above = views[max(first, min(middle, stop - 1))]
            found.append(min(below, above, key=lambda view: abs(view - near)))
    return sorted(found, key=lambda view: abs(view - near))


def _are_few(runs: Sequence[Run]) -> bool:
    """Whether so little is asked for that SQLite finds it faster than we do: it reads each byte."""
    length = max(run.stop for run in runs) - min(run.start for run in runs)
    return length <= NARROW and len({run.layer for run in runs}) == 1


def _regions_of(runs: Iterable[Run]) -> tuple[int, int]:
    """The regions [first, stop) that any runs, at least one, lie in."""
    edges = [(run.start // REGION_BLOCKS, -(-run.stop // REGION_BLOCKS)) for run in runs]
    return min(start for start, _ in edges), max(stop for _, stop in edges)


def _by_leaf(runs: Iterable[Run], regions: Sequence[int]) -> tuple[list[Run], dict[int, list[Run]]]:
    """The runs outside of these regions (ascending), and, cut, those within them.

    Outside no view has a leaf row: all that counts there is level 2.
    """
    plain: list[Run] = []
    within: defaultdict[int, list[Run]] = defaultdict(list)
    for run in runs:
        position = run.start
        index = bisect_left(regions, run.start // REGION_BLOCKS)
        while index < len(regions) and regions[index] * REGION_BLOCKS < run.stop:
            first = max(regions[index] * REGION_BLOCKS, position)
            stop = min((regions[index] + 1) * REGION_BLOCKS, run.stop)
            if position < first:
                plain.append(Run(position, first, run.layer))
            within[regions[index]].append(Run(first, stop, run.layer))
            position = stop
            index += 1
        if position < run.stop:
            plain.append(Run(position, run.stop, run.layer))
    return plain, within
