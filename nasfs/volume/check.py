"""Proving the invariants of docs/FORMAT.md.  Reads only; one function per invariant.

Works on a volume that nobody owns, and on a mounted one: one read transaction sees one committed
state of the tables.  Its owner may meanwhile give back a layer that this state still names, so
what is found is looked for once more, in the state of then, before it is told.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nasfs.volume.blockmap import expand, map_runs
from nasfs.volume.errors import CorruptionError
from nasfs.volume.layers import Layers
from nasfs.volume.live import Live
from nasfs.volume.media import HostMedia
from nasfs.volume.schema import VERSIONED
from nasfs.volume.space import Space
from nasfs.volume.store import Store
from nasfs.volume.types import BLOCK, REGION_BLOCKS, Access, Inode


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken invariant, by its number in docs/FORMAT.md."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


@dataclass(frozen=True, slots=True)
class _Subject:
    store: Store
    layers: Layers
    live: Live
    space: Space


def check_volume(path: Path, progress: Callable[[str], None] = lambda step: None) -> list[Finding]:
    """All broken invariants of a volume; [] means that it is sound.

    Args:
        progress: told the name of each step as it begins.

    Raises:
        CorruptionError, FormatError: meta.db can't be read at all.
    """
    found = {finding.invariant for finding in _look_once(path, progress)}
    if not found:
        return []
    progress("what was found, once more")
    return [f for f in _look_once(path, lambda step: None) if f.invariant in found]


def _look_once(path: Path, progress: Callable[[str], None]) -> list[Finding]:
    store = Store(path / "meta.db", Access.READ_ONLY)
    layers = Layers(path / "layers", HostMedia())
    try:
        store.db.execute("BEGIN")
        store.load_state()
        live = Live(store, layers)
        subject = _Subject(store, layers, live, Space(store, layers, live))
        findings: list[Finding] = []
        for number, title, check in CHECKS:
            progress(title)
            findings += _findings(number, check, subject)
        return findings
    except sqlite3.DatabaseError as exc:
        raise CorruptionError(str(path / "meta.db"), str(exc)) from exc
    finally:
        layers.close_all()
        store.close()


def _findings(
    number: str, check: Callable[[_Subject], Iterator[str]], subject: _Subject
) -> Iterator[Finding]:
    try:
        for detail in check(subject):
            yield Finding(number, detail)
    except CorruptionError as exc:  # so broken that this check can't go on; others still may
        yield Finding(number, str(exc))


def _database(subject: _Subject) -> Iterator[str]:
    for (line,) in subject.store.db.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield str(line)


def _versions(subject: _Subject) -> Iterator[str]:
    db, epoch = subject.store.db, subject.store.epochs.current
    for spec in VERSIONED:
        name, key = spec.name, ", ".join(spec.key_names)
        same = " AND ".join(f"a.{column} = b.{column}" for column in spec.key_names)
        qualified = ", ".join(f"a.{column}" for column in spec.key_names)
        queries = {
            "born after the current epoch": (
                f"SELECT {key} FROM {name} WHERE born > ? OR born < 1", (epoch,)
            ),
            "past row does not live from born to died": (
                f"SELECT {key} FROM {name}_past WHERE died <= born OR died > ?", (epoch,)
            ),
            "past row overlaps the live row": (
                f"SELECT {qualified} FROM {name}_past a JOIN {name} b ON {same}"
                " WHERE a.died > b.born", ()
            ),
            "two past rows overlap": (
                f"SELECT {qualified} FROM {name}_past a JOIN {name}_past b ON {same}"
                " AND a.born < b.born WHERE a.died > b.born", ()
            ),
        }  # fmt: skip
        for problem, (sql, values) in queries.items():
            for row in db.execute(f"{sql} LIMIT 20", values):
                yield f"{name} {row}: {problem}"


def _names(subject: _Subject) -> Iterator[str]:
    for label, views in _each_view(subject):
        sql = (
            f"SELECT d.parent, d.name, d.ino, d.kind, i.mode, p.mode FROM ({views['dirent']}) d"
            f" LEFT JOIN ({views['inode']}) i ON i.ino = d.ino"
            f" LEFT JOIN ({views['inode']}) p ON p.ino = d.parent"
        )
        for parent, name, ino, kind, mode, parent_mode in subject.store.db.execute(sql):
            if mode is None:
                yield f"{label}: entry {name!r} of inode {parent} names inode {ino}, which is not"
            elif stat.S_IFMT(mode) != kind:
                yield f"{label}: entry {name!r} of inode {parent} tells another file type"
            if parent_mode is None or not stat.S_ISDIR(parent_mode):
                yield f"{label}: entry {name!r} is in inode {parent}, which is no directory"


def _links(subject: _Subject) -> Iterator[str]:
    for label, views in _each_view(subject):
        sql = (
            "SELECT i.ino, i.mode, i.nlink, i.parent, ifnull(n.names, 0), ifnull(s.dirs, 0),"
            " n.parent"
            f" FROM ({views['inode']}) i"
            " LEFT JOIN (SELECT ino, count(*) names, max(parent) parent"
            f" FROM ({views['dirent']}) GROUP BY ino) n ON n.ino = i.ino"
            f" LEFT JOIN (SELECT parent, count(*) dirs FROM ({views['dirent']})"
            f" WHERE kind = {stat.S_IFDIR} GROUP BY parent) s ON s.parent = i.ino"
        )
        for ino, mode, nlink, parent, names, dirs, named_in in subject.store.db.execute(sql):
            if stat.S_ISDIR(mode):
                root = ino == 1
                if nlink != 0 and names != (0 if root else 1):
                    yield f"{label}: directory {ino} has {names} names"
                if nlink not in (0, 2 + dirs):
                    yield f"{label}: directory {ino} counts {nlink} links, has {2 + dirs}"
                if not root and nlink and parent != named_in:
                    yield f"{label}: directory {ino} tells parent {parent}, is in {named_in}"
            elif nlink != names:
                yield f"{label}: inode {ino} counts {nlink} links, has {names}"


def _tree(subject: _Subject) -> Iterator[str]:
    parents = dict(
        subject.store.db.execute(
            f"SELECT ino, parent FROM inode WHERE mode & {0o170000} = {stat.S_IFDIR} AND nlink > 0"
        ).fetchall()
    )
    rooted = {1}
    for start in parents:
        path: list[int] = []
        ino = start
        while ino not in rooted and ino in parents and len(path) <= len(parents):
            path.append(ino)
            ino = parents[ino]
        if ino in rooted:
            rooted.update(path)
        else:
            yield f"directory {start} is not below the root"


def _belongs(subject: _Subject) -> Iterator[str]:
    for label, views in _each_view(subject):
        for table in ("xattr", "leaf"):
            sql = (
                f"SELECT DISTINCT ino FROM ({views[table]})"
                f" WHERE ino NOT IN (SELECT ino FROM ({views['inode']}))"
            )
            for (ino,) in subject.store.db.execute(sql):
                yield f"{label}: {table} rows of inode {ino}, which is not"


def _maps(subject: _Subject) -> Iterator[str]:
    db, epoch = subject.store.db, subject.store.epochs.current
    for label, views in _each_view(subject):
        leaves: dict[int, list[tuple[int, int | bytes]]] = {}
        for ino, region, value in db.execute(
            f"SELECT ino, region, map FROM ({views['leaf']}) ORDER BY ino, region"
        ):
            if isinstance(value, bytes) and len(value) != 4 * REGION_BLOCKS:
                yield f"{label}: leaf {region} of inode {ino} has {len(value)} bytes"
                continue
            if max(expand(value)) > epoch:
                yield f"{label}: leaf {region} of inode {ino} names a layer of the future"
            leaves.setdefault(ino, []).append((region, value))
        for row in db.execute(f"SELECT * FROM ({views['inode']})"):
            inode = Inode(*row)
            yield from _map_of(subject, label, inode, leaves.get(inode.ino, []))


def _map_of(
    subject: _Subject, label: str, inode: Inode, leaves: list[tuple[int, int | bytes]]
) -> Iterator[str]:
    if len(leaves) != inode.leaves:
        yield f"{label}: inode {inode.ino} counts {inode.leaves} leaves, has {len(leaves)}"
    if bool(inode.layer) != bool(inode.layer_end) or inode.layer > inode.born:
        yield f"{label}: inode {inode.ino} has layer {inode.layer} up to {inode.layer_end}"
    if not (inode.blocks or leaves or inode.layer):
        return
    end = max([inode.layer_end, *((region + 1) * REGION_BLOCKS for region, _ in leaves)])
    size_blocks = -(-inode.size // BLOCK)
    mapped = 0
    for run in map_runs(inode.layer, inode.layer_end, leaves, 0, end):
        if not run.layer:
            continue
        mapped += run.stop - run.start
        if run.stop > size_blocks:
            yield f"{label}: inode {inode.ino} maps block {run.stop - 1} past its size"
        held = subject.layers.size(inode.ino, run.layer)
        needed = min(run.stop * BLOCK, inode.size)
        if held is None:
            yield f"{label}: layer {inode.ino}.{run.layer} is missing"
        elif held < needed:
            yield f"{label}: layer {inode.ino}.{run.layer} has {held} bytes, {needed} are named"
    if mapped != inode.blocks:
        yield f"{label}: inode {inode.ino} counts {inode.blocks} blocks, maps {mapped}"


def _counters(subject: _Subject) -> Iterator[str]:
    store = subject.store
    db, counters = store.db, store.counters
    inodes, live = db.execute("SELECT count(*), ifnull(sum(blocks), 0) FROM inode").fetchone()
    if inodes != counters.inodes:
        yield f"{counters.inodes} inodes are counted, {inodes} are there"
    if live != counters.live_blocks:
        yield f"{counters.live_blocks} live blocks are counted, {live} are mapped"
    held = 0
    for (ino,) in db.execute("SELECT DISTINCT ino FROM inode_past").fetchall():
        reachable = subject.space.reachable(ino)
        inode = subject.live._inode(ino)
        total = sum(stop - start for ranges in reachable.values() for start, stop in ranges)
        held += total - (0 if inode is None else inode.blocks)
    if held != counters.snapshot_blocks:
        yield f"{counters.snapshot_blocks} snapshot-only blocks are counted, {held} are mapped"
    highest = db.execute("SELECT max(ino) FROM inode").fetchone()[0]
    if not highest < counters.next_ino <= counters.reserved_ino:
        yield f"inode {highest} is there, {counters.next_ino} of {counters.reserved_ino} comes next"
    cookie = db.execute("SELECT ifnull(max(cookie), 0) FROM dirent").fetchone()[0]
    if cookie >= counters.next_cookie:
        yield f"cookie {cookie} is there, {counters.next_cookie} comes next"


def _snapshots(subject: _Subject) -> Iterator[str]:
    current = subject.store.epochs.current
    for snapshot in subject.store.all_snapshots:
        if not 0 < snapshot.epoch < current:
            yield f"snapshot {snapshot.name} has epoch {snapshot.epoch}, the current is {current}"
    rows = subject.store.db.execute("SELECT epoch FROM hold EXCEPT SELECT epoch FROM snapshot")
    for (epoch,) in rows:
        yield f"epoch {epoch} is held and is no snapshot"


def _orphans(subject: _Subject) -> Iterator[str]:
    db = subject.store.db
    for (ino,) in db.execute("SELECT ino FROM inode WHERE nlink = 0 EXCEPT SELECT ino FROM orphan"):
        yield f"inode {ino} has no name and is not in the table orphan"
    for (ino,) in db.execute("SELECT ino FROM orphan EXCEPT SELECT ino FROM inode WHERE nlink = 0"):
        yield f"inode {ino} is in the table orphan and has a name, or is not there"


def _each_view(subject: _Subject) -> Iterator[tuple[str, dict[str, str]]]:
    """A label and, by table, the SQL of its visible rows: the live view, then each snapshot."""
    columns = {spec.name: ", ".join(spec.columns) for spec in VERSIONED}
    yield "live", {name: f"SELECT {names} FROM {name}" for name, names in columns.items()}
    for snapshot in subject.store.all_snapshots:
        if snapshot.state.value:  # its rows are going, inode by inode
            continue
        at = int(snapshot.epoch)
        yield (
            f"snapshot {snapshot.name}",
            {
                name: f"SELECT {names} FROM {name} WHERE born <= {at} UNION ALL"
                f" SELECT {names} FROM {name}_past WHERE born <= {at} AND died > {at}"
                for name, names in columns.items()
            },
        )


CHECKS: tuple[tuple[str, str, Callable[[_Subject], Iterator[str]]], ...] = (
    ("I1", "the database", _database),
    ("I2", "versions of rows", _versions),
    ("I3", "directory entries", _names),
    ("I4", "links", _links),
    ("I5", "the tree", _tree),
    ("I6", "owners of rows", _belongs),
    ("I7", "block maps and layers", _maps),
    ("I8", "counters", _counters),
    ("I9", "snapshots", _snapshots),
    ("I10", "unlinked files", _orphans),
)
