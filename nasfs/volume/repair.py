"""Repairing what follows from the rest: counts, links, types, what lost its place in the tree.

Nothing is guessed and no data is destroyed.  A file or directory that no name leads to any more
is given one in ``/lost+found``.  Where two things contradict each other and nothing decides
(versions of rows, maps and layers, a name whose inode is gone) all stays as it is, and is told.

Everything happens in one transaction: after it the volume is looked at again, and if anything
got worse nothing was done.  A change of the live view is a change like any other: its row is born
in the current epoch, so that it travels with the next delta.  Rows that snapshots see are put
right in place, and only where the snapshot itself tells what is right.
"""

from __future__ import annotations

import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nasfs.volume.check import (
    Finding,
    Progress,
    Subject,
    highest_given,
    look,
    no_progress,
    own_blocks,
    unreachable_directories,
)
from nasfs.volume.errors import CorruptionError
from nasfs.volume.history import FOREVER, LIVE, History, InodeVersion, Moment, histories, moments
from nasfs.volume.layers import DIRECTORIES, Layers
from nasfs.volume.lock import VolumeLock
from nasfs.volume.mapping import Maps
from nasfs.volume.media import HostMedia, Media
from nasfs.volume.schema import INODE
from nasfs.volume.store import Store
from nasfs.volume.types import NAME_MAX, ROOT_INO, Access

LOST_AND_FOUND = b"lost+found"


@dataclass(frozen=True, slots=True)
class Repair:
    """What was put right, and which invariant that was about."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


@dataclass(frozen=True, slots=True)
class RepairOutcome:
    repairs: tuple[Repair, ...]
    left: tuple[Finding, ...]
    """What is broken after that."""


def repair_volume(
    path: Path,
    progress: Progress = no_progress,
    *,
    dry_run: bool = False,
    media: Media | None = None,
) -> RepairOutcome:
    """Put right what can be, durably; with *dry_run* only tell it.

    Raises:
        VolumeBusy: somebody owns the volume.
        CorruptionError, FormatError: meta.db can't be read at all.
        MediaError: the disk refused; nothing has changed.
    """
    media = HostMedia() if media is None else media
    lock = VolumeLock(path / "lock")
    try:
        with _store(path, media) as store:
            layers = Layers(path / "layers", media)
            store.begin()
            before = look(Subject.of(store, layers), progress)
            repairer = _Repairer(store, layers, progress)
            repairer.run(before)
            left = before
            if repairer.done:
                progress("looking again", 0, 0)
                left = look(Subject.of(store, layers), progress)
            if _is_worse(before, left):
                return RepairOutcome((), tuple(before))
            if not left:
                repairer.queue_sweep()
            if repairer.done and not dry_run:
                store.commit()
                store.sync_log()
            return RepairOutcome(tuple(repairer.done), tuple(left))
    finally:
        lock.release()


@contextmanager
def _store(path: Path, media: Media) -> Iterator[Store]:
    """What is not committed in the body is dropped."""
    store = Store(path / "meta.db", Access.READ_WRITE, media)
    try:
        store.db.execute("PRAGMA temp_store = FILE")  # for a sort of millions of rows
        yield store
    except sqlite3.DatabaseError as exc:
        raise CorruptionError(str(path / "meta.db"), str(exc)) from exc
    finally:
        if store.db.in_transaction:
            store.db.execute("ROLLBACK")
        store.close()


def _is_worse(before: list[Finding], after: list[Finding]) -> bool:
    def count(findings: list[Finding], number: str) -> int:
        return sum(finding.invariant == number for finding in findings)

    return any(count(after, f.invariant) > count(before, f.invariant) for f in after)


class _Repairer:
    """One volume, in one transaction.  Finds by itself what is to be repaired."""

    def __init__(self, store: Store, layers: Layers, progress: Progress) -> None:
        self._store = store
        self._db = store.db
        self._layers = layers
        self._progress = progress
        self._lost_and_found = 0
        self._strays = 0
        self.done: list[Repair] = []

    def _note(self, invariant: str, detail: str) -> None:
        self.done.append(Repair(invariant, detail))

    def run(self, findings: list[Finding]) -> None:
        broken = {finding.invariant for finding in findings}
        if "I1" in broken and not self._rebuild_indexes(findings):
            return
        current = self._store.epochs.current
        strange = any(not 0 < s.epoch < current for s in self._store.all_snapshots)
        root = self._store.inodes.get((ROOT_INO,))
        rooted = root is not None and stat.S_ISDIR(root[INODE.columns.index("mode")])
        if "I2" in broken or strange or not rooted:  # who sees what, and from where, decides all
            return
        self._raise_numbers()
        self._shape()
        self._loops()
        self._counts()
        self._lists()

    def _rebuild_indexes(self, findings: list[Finding]) -> bool:
        """Indexes follow from their tables; anything else that SQLite finds does not."""
        details = "\n".join(finding.detail for finding in findings if finding.invariant == "I1")
        lines = [line for line in details.splitlines() if not line.startswith("***")]
        try:
            if not all(" index " in line or self._is_of_index(line) for line in lines):
                return False
        except sqlite3.DatabaseError:  # no dbstat, or it can't be read
            return False
        self._store.execute("REINDEX")
        self._note("I1", "the indexes were built again from their tables")
        return True

    def _is_of_index(self, line: str) -> bool:
        """Whether the pages that a line of SQLite's check names are those of an index."""
        pages = re.findall(r"\bpage (\d+)", line)
        found = self._db.execute(
            "SELECT count(*) FROM dbstat JOIN sqlite_schema USING (name)"
            " WHERE type = 'index' AND sql IS NOT NULL"
            f" AND pageno IN ({', '.join(pages)})"
        ).fetchone()[0]
        return bool(pages) and found == len(set(pages))

    def _raise_numbers(self) -> None:
        counters = self._store.counters
        ino, cookie = highest_given(self._db)
        if counters.next_ino <= ino or counters.reserved_ino < counters.next_ino:
            counters.next_ino = max(counters.next_ino, ino + 1)
            counters.reserved_ino = max(counters.reserved_ino, counters.next_ino)
            self._note("I8", f"the next inode number is {counters.next_ino}")
        if counters.next_cookie <= cookie:
            counters.next_cookie = cookie + 1
            self._note("I8", f"the next cookie is {counters.next_cookie}")

    # the tree

    def _shape(self) -> None:
        """Types that entries tell; entries and inodes that are nowhere."""
        orphans = {ino for (ino,) in self._db.execute("SELECT ino FROM orphan")}
        types: list[tuple[int, int, int]] = []
        nowhere: list[int] = []
        several: list[tuple[int, int]] = []
        nameless: list[int] = []
        for history in self._histories():
            live, ino = history.live, history.ino
            kinds = {stat.S_IFMT(inode.mode) for inode in history.inodes}
            if len(kinds) == 1:
                kind = kinds.pop()
                types += {(n.parent, ino, kind) for n in history.names if n.kind != kind}
            names = [name for name in history.names if name.died == FOREVER]
            entries = any(died == FOREVER for _, died, _ in history.entries)
            if entries and (live is None or not live.is_dir):
                nowhere.append(ino)
            if live is None or ino == ROOT_INO:
                continue
            others = [name.parent for name in names if name.parent != live.parent]
            if live.is_dir and len(names) == len(others) + 1:  # one is where its ``..`` leads
                several += [(ino, parent) for parent in others]
            if not names and not (live.nlink == 0 and ino in orphans):
                nameless.append(ino)
        for parent, ino, kind in types:
            self._set_kind(parent, ino, kind)
        for ino, parent in several:
            self._drop_names(ino, parent)
        for parent in nowhere:
            self._move_entries(parent)
        for ino in nameless:
            self._adopt(ino, b"#%d" % ino)
            self._note("I10", f"inode {ino} had no name: it is lost+found/#{ino}")

    def _set_kind(self, parent: int, ino: int, kind: int) -> None:
        where = "WHERE parent = ? AND ino = ? AND kind <> ?"
        rows = self._db.execute(
            f"SELECT name, born, cookie FROM dirent {where}", (parent, ino, kind)
        ).fetchall()
        for name, born, cookie in rows:
            row = (parent, name, self._store.epochs.current, cookie, ino, kind)
            self._store.dirents.put(row, born)
        past = self._store.execute(
            f"UPDATE dirent_past SET kind = ? {where}", (kind, parent, ino, kind)
        )
        if rows or past.rowcount:
            self._note("I3", f"the entry of inode {ino} in inode {parent} tells its type")

    def _drop_names(self, ino: int, parent: int) -> None:
        """Of a directory, which has one name: another one than its own ``..`` leads to."""
        for name, born in self._entries(parent, ino):
            self._store.dirents.delete((parent, name), born)
            self._note("I4", f"directory {ino} is no longer called {name!r} in inode {parent}")

    def _entries(self, parent: int, ino: int) -> list[tuple[bytes, int]]:
        return self._db.execute(
            "SELECT name, born FROM dirent WHERE parent = ? AND ino = ?", (parent, ino)
        ).fetchall()

    def _move_entries(self, parent: int) -> None:
        """Out of what is no directory; those of inodes that are gone stay, and are told."""
        rows = self._db.execute(
            "SELECT name, ino, born FROM dirent WHERE parent = ?", (parent,)
        ).fetchall()
        for name, ino, born in rows:
            if self._store.inodes.get((ino,)) is not None:
                self._move(parent, name, ino, born)
                self._note(
                    "I3", f"entry {name!r} was in inode {parent}, which is no directory:"
                    f" it is in lost+found as #{ino}"
                )  # fmt: skip

    def _move(self, parent: int, name: bytes, ino: int, born: int) -> None:
        self._store.dirents.delete((parent, name), born)
        self._adopt(ino, b"#%d-%s" % (ino, name))

    def _adopt(self, ino: int, name: bytes) -> None:
        """A name in ``lost+found``."""
        directory = self._find_lost_and_found()
        row = self._inode(ino)
        kind = stat.S_IFMT(row["mode"])
        name = name[:NAME_MAX]
        while self._store.dirents.get((directory, name)) is not None:
            name = b"+" + name[: NAME_MAX - 1]
        self._add_entry(directory, name, ino, kind)
        if kind == stat.S_IFDIR:
            self._change(ino, parent=directory)
            self._change(directory, nlink=self._inode(directory)["nlink"] + 1)

    def _find_lost_and_found(self) -> int:
        if self._lost_and_found:
            return self._lost_and_found
        name = LOST_AND_FOUND
        while (entry := self._store.dirents.get((ROOT_INO, name))) is not None:
            row = self._store.inodes.get((entry[4],))
            if row is not None and stat.S_ISDIR(row[INODE.columns.index("mode")]):
                self._lost_and_found = entry[4]
                return self._lost_and_found
            name = b"+" + name
        store, now = self._store, time.time_ns()
        store.reserve_inos()
        ino = store.allocate_ino()
        mode = stat.S_IFDIR | 0o700
        row = (ino, store.epochs.current, 1, mode, 0, 0, 2, 0, 4096, *[now] * 4, ROOT_INO,
               None, 0, 0, 0, 0)  # fmt: skip
        store.inodes.put(row, None)
        store.counters.inodes += 1
        self._add_entry(ROOT_INO, name, ino, stat.S_IFDIR)
        self._change(ROOT_INO, nlink=self._inode(ROOT_INO)["nlink"] + 1)
        self._lost_and_found = ino
        return ino

    def _add_entry(self, parent: int, name: bytes, ino: int, kind: int) -> None:
        store = self._store
        row = (parent, name, store.epochs.current, store.next_cookie(), ino, kind)
        store.dirents.put(row, None)
        self._change(parent, mtime_ns=time.time_ns())

    def _loops(self) -> None:
        """Directories that are, by several steps, inside themselves."""
        while lost := set(unreachable_directories(self._db)):
            entries = {
                ino: (parent, name, born)
                for ino, parent, name, born in self._db.execute(
                    "SELECT ino, parent, name, born FROM dirent WHERE kind = ?", (stat.S_IFDIR,)
                )
                if ino in lost
            }
            looping = _loop_members({ino: entry[0] for ino, entry in entries.items()})
            if not looping:
                return
            for ino in looping:
                parent, name, born = entries[ino]
                self._move(parent, name, ino, born)
                self._note("I5", f"directory {ino} was inside itself: it is in lost+found")

    # what is counted

    def _counts(self) -> None:
        """Links, parents, columns of the block maps, rows of no inode; then the counters."""
        subject = Subject.of(self._store, self._layers)
        links: list[tuple[History, list[Moment]]] = []
        maps: list[tuple[int, InodeVersion, tuple[int, int]]] = []
        ownerless: list[History] = []
        countable = True
        named = live = reached = 0
        for history in self._histories():
            seen = moments(history, subject.views)
            rows = ((moment, moment.inode) for moment in seen if moment.inode is not None)
            if any(_links(history, moment, row) != _stored(row) for moment, row in rows):
                links.append((history, seen))
            if any(moment.inode is None and moment.xattrs + moment.leaves for moment in seen):
                ownerless.append(history)
            if not (history.leaves or any(i.layer or i.blocks or i.leaves for i in history.inodes)):
                continue
            try:
                found = Maps(history)
            except CorruptionError:
                countable = False
                continue
            live += found.count(history.live, LIVE)[1] if history.live else 0
            reached += found.reached(subject.reaching)
            named += len(found.layers(subject.reaching))
            for inode in history.inodes:
                counts = {found.count(inode, v) for v in found.stretches(inode, subject.views)}
                if len(counts) != 1:  # nobody sees it, or its views contradict each other
                    continue
                count = counts.pop()
                # Fewer leaf rows than are counted: some are lost, and the count is what tells.
                if count != (inode.leaves, inode.blocks) and count[0] >= inode.leaves:
                    maps.append((history.ino, inode, count))
        for ino, inode, count in maps:
            self._set_counts(ino, inode, count)
        for history, seen in links:
            self._set_links(history, seen)
        for history in ownerless:
            self._drop_rows(history)
        self._set_counters(live, reached - live, countable=countable)
        self._strays = self._layer_files() - named if countable else 0

    def _set_counts(self, ino: int, inode: InodeVersion, count: tuple[int, int]) -> None:
        table = "inode" if inode.died == FOREVER else "inode_past"
        self._store.execute(
            f"UPDATE {table} SET leaves = ?, blocks = ? WHERE ino = ? AND born = ?",
            (*count, ino, inode.born),
        )
        self._note("I7", f"inode {ino} counts {count[0]} leaves and {count[1]} blocks")

    def _set_links(self, history: History, seen: list[Moment]) -> None:
        ino = history.ino
        for row in history.inodes:
            expected = {m.view: _links(history, m, row) for m in seen if m.inode == row}
            changed = expected.get(LIVE, _stored(row)) != _stored(row)
            if changed:
                nlink, parent = expected[LIVE]
                self._change(ino, nlink=nlink, parent=parent)
            values = set(expected.values())
            if len(values) == 1 and values != {_stored(row)}:  # all views of the row agree
                nlink, parent = values.pop()
                past = self._store.execute(
                    "UPDATE inode_past SET nlink = ?, parent = ? WHERE ino = ? AND born = ?",
                    (nlink, parent, ino, row.born),
                )
                changed = changed or past.rowcount > 0
            if changed:
                tells = f" and tells parent {parent}" if row.is_dir else ""
                self._note("I4", f"inode {ino} counts {nlink} links{tells}")

    def _drop_rows(self, history: History) -> None:
        """Attributes, and leaf rows without blocks, of an inode that is gone for good."""
        ino = history.ino
        if history.names or self._has_layers(history):
            return  # a name, or blocks: that inode was lost, and this is what is left of it
        died = max((inode.died for inode in history.inodes), default=0)
        if died == FOREVER:
            return
        for table, names in (("xattr", "ino, name"), ("leaf", "ino, region")):
            value = "value" if table == "xattr" else "map"
            self._store.execute(
                f"INSERT OR IGNORE INTO {table}_past ({names}, born, {value}, died)"
                f" SELECT {names}, born, {value}, ? FROM {table} WHERE ino = ? AND born < ?",
                (died, ino, died),
            )
            self._store.execute(f"DELETE FROM {table} WHERE ino = ?", (ino,))
            self._store.execute(
                f"DELETE FROM {table}_past WHERE ino = ? AND born >= ?", (ino, died)
            )
            self._store.execute(
                f"UPDATE {table}_past SET died = ? WHERE ino = ? AND died > ?", (died, ino, died)
            )
        self._note("I6", f"attributes of inode {ino}, which is gone, are gone as well")

    def _has_layers(self, history: History) -> bool:
        return bool(history.leaves) and any(
            ino == history.ino for ino, _ in self._layers.listing(history.ino % DIRECTORIES)
        )

    def _set_counters(self, live: int, held: int, *, countable: bool) -> None:
        counters = self._store.counters
        found = {"inodes": self._db.execute("SELECT count(*) FROM inode").fetchone()[0]}
        if countable:
            found |= {"live_blocks": live, "snapshot_blocks": held}
        for name, value in found.items():
            if getattr(counters, name) != value:
                setattr(counters, name, value)
                self._note("I8", f"{name} is {value}")
        if countable and self._store.kept.is_known:
            (kept,) = self._db.execute("SELECT ifnull(sum(blocks), 0) FROM kept").fetchone()
            subject = Subject.of(self._store, self._layers)
            if kept != held or any(own_blocks(subject)):
                self._store.kept.lose()  # so they are taken from the rows from now on
                self._note("I8", "what each snapshot alone sees is no longer counted beforehand")

    def _lists(self) -> None:
        gone = self._store.execute(
            "DELETE FROM hold WHERE epoch NOT IN (SELECT epoch FROM snapshot)"
        )
        if gone.rowcount:
            self._note("I9", f"{gone.rowcount} holds were of no snapshot")
        gone = self._store.execute(
            "DELETE FROM orphan WHERE ino NOT IN (SELECT ino FROM inode WHERE nlink = 0)"
        )
        if gone.rowcount:
            self._note(
                "I10", f"{gone.rowcount} inodes in the table orphan have a name, or are gone"
            )

    # space

    def _layer_files(self) -> int:
        return sum(len(self._layers.listing(index)) for index in range(DIRECTORIES))

    def queue_sweep(self) -> None:
        """Have reclaim look for layers that nothing names; only of a volume that is sound."""
        waiting = self._db.execute("SELECT count(*) FROM reclaim").fetchone()[0]
        if self._strays > waiting and not self._db.execute("SELECT 1 FROM sweep").fetchone():
            self._store.execute("INSERT INTO sweep VALUES (1, 0)")
            self._note("space", "layer files that nothing names will be given back")

    # helpers

    def _histories(self) -> Iterator[History]:
        total = self._store.counters.inodes
        for count, history in enumerate(histories(self._db)):
            if count % 4096 == 0:
                self._progress("repairing", count, total)
            yield history

    def _inode(self, ino: int) -> dict[str, int]:
        row = self._store.inodes.get((ino,))
        assert row is not None, f"inode {ino} is there"
        return dict(zip(INODE.columns, row, strict=True))

    def _change(self, ino: int, **changes: int) -> None:
        """Columns of a live inode, from the current epoch on."""
        row = self._inode(ino)
        stored = row["born"]
        row |= {"born": self._store.epochs.current, **changes}
        self._store.inodes.put(tuple(row.values()), stored)


def _stored(row: InodeVersion) -> tuple[int, int]:
    return row.nlink, row.parent


def _links(history: History, moment: Moment, row: InodeVersion) -> tuple[int, int]:
    """What `nlink` and `parent` of the row follow from the entries."""
    if history.ino == ROOT_INO:
        return 2 + moment.directories, ROOT_INO
    if moment.view != LIVE and not moment.names:
        return _stored(row)  # what has lost its name in a snapshot: there it can't be given one
    if not row.is_dir:
        return moment.names, row.parent
    parent = moment.parent if moment.names == 1 else row.parent
    return 2 + moment.directories if moment.names else 0, parent


def _loop_members(parents: dict[int, int]) -> list[int]:
    """One of each loop, the lowest, that following the parents leads into."""
    found: set[int] = set()
    for start in parents:
        path: list[int] = []
        ino = start
        while ino in parents and ino not in path:
            path.append(ino)
            ino = parents[ino]
        if ino in path:
            found.add(min(path[path.index(ino) :]))
    return sorted(found)
