"""Proving the invariants of docs/FORMAT.md.  Reads only; one function per invariant.

Works on a volume that nobody owns, and on a mounted one: one read transaction sees one committed
state of the tables.  Its owner may meanwhile give back a layer that this state still names, so
what is found is looked for once more, in the state of then, before it is told.

What has to hold for an inode in every view is proven by one pass over the histories of all
inodes, which costs what the tables hold, however many snapshots there are.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nasfs.volume.errors import CorruptionError
from nasfs.volume.history import LIVE, History, Moment, Views, histories, moments
from nasfs.volume.kept import own_by_rows
from nasfs.volume.layers import Layers
from nasfs.volume.mapping import Maps
from nasfs.volume.media import HostMedia, Media
from nasfs.volume.schema import VERSIONED
from nasfs.volume.store import Store
from nasfs.volume.types import ROOT_INO, Access, SnapshotState

LIMIT = 1000
"""Findings that are told of one invariant; whoever has more has enough."""

STRIDE = 4096
"""After so many inodes the progress is told."""

Progress = Callable[[str, int, int], None]
"""Told the name of the step, what is done of it and how much it is (0: not known)."""


def no_progress(step: str, done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken invariant, by its number in docs/FORMAT.md."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


@dataclass(slots=True)
class Totals:
    """What the histories hold, counted."""

    live_blocks: int = 0
    reached_blocks: int = 0
    """Blocks of layers that the live view or a snapshot reaches."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A volume that is looked at, in the transaction that is open."""

    store: Store
    layers: Layers
    views: Views
    """The live view and the sealed snapshots."""
    reaching: Views
    """And the snapshots that are being destroyed: what they reach is not free yet."""
    totals: Totals = field(default_factory=Totals)

    @classmethod
    def of(cls, store: Store, layers: Layers) -> Subject:
        snapshots = store.all_snapshots
        sealed = [s for s in snapshots if s.state is not SnapshotState.DESTROYING]
        return cls(store, layers, Views(sealed), Views(snapshots))


def check_volume(
    path: Path, progress: Progress = no_progress, *, media: Media | None = None
) -> list[Finding]:
    """All broken invariants of a volume; [] means that it is sound.

    Raises:
        CorruptionError, FormatError: meta.db can't be read at all.
    """
    found = {finding.invariant for finding in _look_once(path, progress, media)}
    if not found:
        return []
    progress("what was found, once more", 0, 0)
    return [f for f in _look_once(path, progress, media) if f.invariant in found]


def _look_once(path: Path, progress: Progress, media: Media | None) -> list[Finding]:
    store = Store(path / "meta.db", Access.READ_ONLY)
    layers = Layers(path / "layers", HostMedia() if media is None else media)
    try:
        store.db.execute("PRAGMA temp_store = FILE")  # for a sort of millions of rows
        store.db.execute("BEGIN")
        store.load_state()
        return look(Subject.of(store, layers), progress)
    except sqlite3.DatabaseError as exc:
        raise CorruptionError(str(path / "meta.db"), str(exc)) from exc
    finally:
        layers.close_all()
        store.close()


def look(subject: Subject, progress: Progress = no_progress) -> list[Finding]:
    """What is broken, in the order of the invariants."""
    found: dict[str, list[Finding]] = {check.number: [] for check in CHECKS}

    def note(number: str, details: Iterable[str]) -> None:
        try:
            for detail in details:
                if len(found[number]) < LIMIT:
                    found[number].append(Finding(number, detail))
        except CorruptionError as exc:  # so broken that this check can't go on; others still may
            found[number].append(Finding(number, str(exc)))

    passed = False
    for check in CHECKS:
        if check.whole is not None:
            progress(check.title, 0, 0)
            note(check.number, check.whole(subject))
        elif not passed:  # one pass for all of them
            passed = True
            for count, history in enumerate(histories(subject.store.db)):
                if count % STRIDE == 0:
                    progress("files and directories", count, subject.store.counters.inodes)
                seen = moments(history, subject.views)
                for other in CHECKS:
                    if other.each is not None:
                        note(other.number, other.each(subject, history, seen))
    return [finding for findings in found.values() for finding in findings]


def _database(subject: Subject) -> Iterator[str]:
    for (line,) in subject.store.db.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield str(line)


def _versions(subject: Subject) -> Iterator[str]:
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
                f"SELECT {key} FROM {name}_past WHERE died <= born OR died > ? OR born < 1",
                (epoch,)
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


def _told_once(subject: Subject, problems: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Each problem with the view, the newest that has it, in which it was found."""
    told: set[str] = set()
    for view, problem in problems:
        if problem not in told:
            told.add(problem)
            yield f"{subject.views.label(view)}: {problem}"


def _names(subject: Subject, history: History, seen: list[Moment]) -> Iterator[str]:
    return _told_once(subject, _name_problems(subject, history, seen))


def _name_problems(
    subject: Subject, history: History, seen: list[Moment]
) -> Iterator[tuple[int, str]]:
    ino = history.ino
    for moment in seen:
        if moment.inode is None:
            for name in history.names:
                if name.born <= moment.view < name.died:
                    entry = f"entry {_entry(subject, name.parent, ino)} of inode {name.parent}"
                    yield moment.view, f"{entry} names inode {ino}, which is not"
        if moment.entries and (moment.inode is None or not moment.inode.is_dir):
            yield moment.view, f"{moment.entries} entries are in inode {ino}, which is no directory"
    for row in reversed(history.inodes):
        for name in history.names:
            view = subject.views.newest(max(row.born, name.born), min(row.died, name.died))
            if name.kind != stat.S_IFMT(row.mode) and view is not None:
                entry = f"entry {_entry(subject, name.parent, ino)} of inode {name.parent}"
                yield view, f"{entry} tells another file type"


def _entry(subject: Subject, parent: int, ino: int) -> str:
    """The name that an inode has, or had, in a directory; for a sentence."""
    for table in ("dirent", "dirent_past"):
        row = subject.store.db.execute(
            f"SELECT name FROM {table} WHERE parent = ? AND ino = ? LIMIT 1", (parent, ino)
        ).fetchone()
        if row is not None:
            return repr(row[0])
    return "?"


def _links(subject: Subject, history: History, seen: list[Moment]) -> Iterator[str]:
    return _told_once(subject, _link_problems(history, seen))


def _link_problems(history: History, seen: list[Moment]) -> Iterator[tuple[int, str]]:
    ino = history.ino
    for view, inode, names, parent, _, directories, _, _ in seen:
        if inode is None:
            continue
        if not inode.is_dir:
            if inode.nlink != names:
                yield view, f"inode {ino} counts {inode.nlink} links, has {names}"
            continue
        root = ino == ROOT_INO
        if inode.nlink and names != (0 if root else 1):
            yield view, f"directory {ino} has {names} names"
        links = 2 + directories if names or root or inode.nlink else 0
        if inode.nlink != links:
            yield view, f"directory {ino} counts {inode.nlink} links, has {links}"
        expected = ROOT_INO if root else parent
        if inode.nlink and names < 2 and inode.parent != expected:
            yield view, f"directory {ino} tells parent {inode.parent}, is in {expected}"


def _tree(subject: Subject) -> Iterator[str]:
    """By the entries: that `parent` agrees with them is for another check."""
    for ino in unreachable_directories(subject.store.db):
        yield f"directory {ino} is not below the root"


def unreachable_directories(db: sqlite3.Connection) -> list[int]:
    rows = db.execute(
        "WITH RECURSIVE below (ino) AS (SELECT ? UNION"
        " SELECT d.ino FROM below JOIN dirent d ON d.parent = below.ino AND d.kind = ?)"
        " SELECT ino FROM inode WHERE mode & ? = ? AND nlink > 0"
        " AND ino NOT IN (SELECT ino FROM below)",
        (ROOT_INO, stat.S_IFDIR, 0o170000, stat.S_IFDIR),
    )
    return [ino for (ino,) in rows]


def _belongs(subject: Subject, history: History, seen: list[Moment]) -> Iterator[str]:
    return _told_once(
        subject,
        (
            (moment.view, f"{table} rows of inode {history.ino}, which is not")
            for moment in seen
            if moment.inode is None
            for table, rows in (("xattr", moment.xattrs), ("leaf", moment.leaves))
            if rows
        ),
    )


def _maps(subject: Subject, history: History, seen: list[Moment]) -> Iterator[str]:
    """And counts what the maps reach, for the counters."""
    if not history.leaves and not any(
        row.layer or row.layer_end or row.blocks or row.leaves for row in history.inodes
    ):
        return
    maps = Maps(history)
    if history.live is not None:
        subject.totals.live_blocks += maps.count(history.live, LIVE)[1]
    subject.totals.reached_blocks += maps.reached(subject.reaching)
    yield from _told_once(
        subject,
        (
            (view, problem)
            for inode in reversed(history.inodes)
            for view in maps.stretches(inode, subject.views)
            for problem in maps.problems(inode, view, subject.layers)
        ),
    )


def _counters(subject: Subject) -> Iterator[str]:
    db, counters, totals = subject.store.db, subject.store.counters, subject.totals
    inodes = db.execute("SELECT count(*) FROM inode").fetchone()[0]
    if inodes != counters.inodes:
        yield f"{counters.inodes} inodes are counted, {inodes} are there"
    live, held = totals.live_blocks, totals.reached_blocks - totals.live_blocks
    if live != counters.live_blocks:
        yield f"{counters.live_blocks} live blocks are counted, {live} are mapped"
    if held != counters.snapshot_blocks:
        yield f"{counters.snapshot_blocks} snapshot-only blocks are counted, {held} are mapped"
    if subject.store.kept.is_known:
        (kept,) = db.execute("SELECT ifnull(sum(blocks), 0) FROM kept").fetchone()
        if kept != counters.snapshot_blocks:
            yield f"{kept} blocks are kept, {counters.snapshot_blocks} are snapshot-only"
        yield from own_blocks(subject)
    ino, cookie = highest_given(db)
    if not ino < counters.next_ino <= counters.reserved_ino:
        yield f"inode {ino} is there, {counters.next_ino} of {counters.reserved_ino} comes next"
    if cookie >= counters.next_cookie:
        yield f"cookie {cookie} is there, {counters.next_cookie} comes next"


def own_blocks(subject: Subject) -> Iterator[str]:
    """What each snapshot alone sees, by count and by rows.

    Not while a snapshot is half destroyed: the counts follow when the whole of it is gone.
    """
    snapshots = subject.store.all_snapshots
    if any(snapshot.state is SnapshotState.DESTROYING for snapshot in snapshots):
        return
    epochs = [snapshot.epoch for snapshot in snapshots]
    seen = own_by_rows(subject.store.db, epochs)
    for epoch, blocks in subject.store.kept.own(epochs).items():
        if blocks != seen[epoch]:
            yield f"epoch {epoch} alone has {blocks} blocks by count, {seen[epoch]} by rows"


def highest_given(db: sqlite3.Connection) -> tuple[int, int]:
    """The highest inode number and cookie in any row."""
    highest = [
        db.execute(
            f"SELECT max(ifnull((SELECT max({column}) FROM {table}), 0),"
            f" ifnull((SELECT max({column}) FROM {table}_past), 0))"
        ).fetchone()[0]
        for table, column in (("inode", "ino"), ("dirent", "cookie"))
    ]
    return highest[0], highest[1]


def _snapshots(subject: Subject) -> Iterator[str]:
    current = subject.store.epochs.current
    for snapshot in subject.store.all_snapshots:
        if not 0 < snapshot.epoch < current:
            yield f"snapshot {snapshot.name} has epoch {snapshot.epoch}, the current is {current}"
    rows = subject.store.db.execute("SELECT epoch FROM hold EXCEPT SELECT epoch FROM snapshot")
    for (epoch,) in rows:
        yield f"epoch {epoch} is held and is no snapshot"


def _orphans(subject: Subject) -> Iterator[str]:
    db = subject.store.db
    for (ino,) in db.execute("SELECT ino FROM inode WHERE nlink = 0 EXCEPT SELECT ino FROM orphan"):
        yield f"inode {ino} has no name and is not in the table orphan"
    for (ino,) in db.execute("SELECT ino FROM orphan EXCEPT SELECT ino FROM inode WHERE nlink = 0"):
        yield f"inode {ino} is in the table orphan and has a name, or is not there"


Whole = Callable[[Subject], Iterator[str]]
Each = Callable[[Subject, History, list[Moment]], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Check:
    """An invariant: of the volume as a whole, or of each inode in every view."""

    number: str
    title: str
    whole: Whole | None = None
    each: Each | None = None


CHECKS = (
    Check("I1", "the database", whole=_database),
    Check("I2", "versions of rows", whole=_versions),
    Check("I3", "directory entries", each=_names),
    Check("I4", "links", each=_links),
    Check("I5", "the tree", whole=_tree),
    Check("I6", "owners of rows", each=_belongs),
    Check("I7", "block maps and layers", each=_maps),
    Check("I8", "counters", whole=_counters),
    Check("I9", "snapshots", whole=_snapshots),
    Check("I10", "unlinked files", whole=_orphans),
)
