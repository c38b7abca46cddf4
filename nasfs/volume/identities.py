"""Which users and groups a snapshot's files belong to and its POSIX ACLs name: numbers, counted.

Counting a snapshot anew reads its inode table and its ACLs.  From the counts of an older snapshot
that is still there it costs what changed between the two, by the same indexes as a delta: rows
that came are added, rows that went are taken off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from nasfs.volume import acl
from nasfs.volume.errors import NoSuchSnapshot
from nasfs.volume.types import Epoch
from nasfs.volume.volume import Volume


class IdentityCounts(msgspec.Struct, frozen=True):
    """How often each number stands in a snapshot."""

    owners: dict[int, int] = {}
    """UID, and how many inodes it owns."""
    groups: dict[int, int] = {}
    """GID, and how many inodes have it."""
    acl_users: dict[int, int] = {}
    """UID, and how many entries of access and default ACLs name it."""
    acl_groups: dict[int, int] = {}

    def uids(self) -> frozenset[int]:
        return frozenset(self.owners) | frozenset(self.acl_users)

    def gids(self) -> frozenset[int]:
        return frozenset(self.groups) | frozenset(self.acl_groups)


def count_identities(
    volume: Volume, snapshot: str, known: Mapping[str, IdentityCounts] | None = None
) -> IdentityCounts:
    """The counts of a sealed snapshot (name or GUID), of a volume opened in any way.

    Args:
        known: counts of other snapshots, by GUID.  Those that are still there are built upon.

    Raises:
        NoSuchSnapshot: it is not there (any more).
    """
    db = volume._store.db
    db.execute("BEGIN")  # one moment: the snapshots that are there, and the rows that they see
    try:
        target = volume.snapshot(snapshot)
        base = Epoch(0)
        counts = IdentityCounts()
        for older in volume.snapshots():
            if known and older.guid in known and older.epoch <= target.epoch:
                base, counts = older.epoch, known[older.guid]
        if base == target.epoch:
            return counts
        return _Counting(volume, base, target.epoch, counts).run()
    finally:
        db.execute("COMMIT")


def count_live(volume: Volume) -> IdentityCounts:
    """Of a volume without a snapshot, opened read-only: as of its last commit, all of it."""
    with volume.as_of_last_commit() as epoch:
        return _Counting(volume, Epoch(0), epoch, IdentityCounts()).run()


def newest_counts(
    volume: Volume, known: Mapping[str, IdentityCounts]
) -> tuple[str, IdentityCounts]:
    """The GUID of the newest snapshot and its counts; an empty GUID: there is none, it is live."""
    while snapshots := volume.snapshots():
        guid = snapshots[-1].guid
        try:
            return guid, count_identities(volume, guid, known)
        except NoSuchSnapshot:  # destroyed meanwhile
            continue
    return "", count_live(volume)


_CAME = (
    "SELECT {columns} FROM {live} WHERE born > :base AND born <= :target{where}"
    " UNION ALL SELECT {columns} FROM {live}_past"
    " WHERE born > :base AND born <= :target AND died > :target{where}"
)
_WENT = (
    "SELECT {columns} FROM {live}_past"
    " WHERE died > :base AND died <= :target AND born <= :base{where}"
)
_ACLS = " AND name IN (:access, :default)"
_NAMED = " AND nlink > 0"  # not those that are only open: they are on no other site


class _Counting:
    def __init__(self, volume: Volume, base: Epoch, target: Epoch, counts: IdentityCounts) -> None:
        self._db = volume._store.db
        self._values = {
            "base": base, "target": target, "access": acl.ACCESS, "default": acl.DEFAULT,
        }  # fmt: skip
        self._first = base == 0
        self._counts = {name: Counter(getattr(counts, name)) for name in counts.__struct_fields__}

    def run(self) -> IdentityCounts:
        self._inodes(_CAME, 1)
        self._acls(_CAME, 1)
        if not self._first:
            self._inodes(_WENT, -1)
            self._acls(_WENT, -1)
        return IdentityCounts(
            **{name: {k: n for k, n in sorted(c.items()) if n} for name, c in self._counts.items()}
        )

    def _inodes(self, form: str, sign: int) -> None:
        rows = form.format(columns="uid, gid", live="inode", where=_NAMED)
        counted = f"SELECT uid, gid, count(*) FROM ({rows}) GROUP BY uid, gid"
        for uid, gid, count in self._db.execute(counted, self._values):
            self._counts["owners"][uid] += sign * count
            self._counts["groups"][gid] += sign * count

    def _acls(self, form: str, sign: int) -> None:
        rows = form.format(columns="value", live="xattr", where=_ACLS)
        for (value,) in self._db.execute(rows, self._values):
            for name, number in _named(value):
                self._counts[name][number] += sign


def _named(value: object) -> Iterator[tuple[str, int]]:
    assert isinstance(value, bytes)
    try:
        entries = acl.decode(value)
    except ValueError:  # such as an old release took in
        return
    for entry in entries:
        if entry.tag is acl.Tag.USER:
            yield "acl_users", entry.id
        elif entry.tag is acl.Tag.GROUP:
            yield "acl_groups", entry.id
