"""The numbers that a snapshot's files use: counted from an older snapshot as if counted anew."""

from __future__ import annotations

import random
import stat
from collections import Counter

import msgspec
import pytest

from nasfs.volume import (
    ROOT_INO,
    Access,
    IdentityCounts,
    Pool,
    View,
    Volume,
    acl,
    count_identities,
    create_volume,
    newest_counts,
    open_volume,
    volume_path,
)
from nasfs.volume.acl import Entry, Tag


def walk(view: View) -> IdentityCounts:
    """The naive way: every inode by its names."""
    counts = IdentityCounts(Counter(), Counter(), Counter(), Counter())
    seen: set[int] = set()

    def look(ino: int) -> None:
        if ino in seen:
            return
        seen.add(ino)
        inode = view.getattr(ino)
        counts.owners[inode.uid] += 1
        counts.groups[inode.gid] += 1
        for name in (acl.ACCESS, acl.DEFAULT):
            if name in view.listxattr(ino):
                for entry in acl.decode(view.getxattr(ino, name)):
                    if entry.tag is Tag.USER:
                        counts.acl_users[entry.id] += 1
                    elif entry.tag is Tag.GROUP:
                        counts.acl_groups[entry.id] += 1
        if inode.is_dir:
            for _, below in view.readdir(ino, 0, 10_000):
                look(below.ino)

    look(ROOT_INO)
    return counts


def change(volume: Volume, chance: random.Random) -> None:
    names = [entry.name for entry, _ in volume.readdir(ROOT_INO, 0, 1000)]
    for _ in range(12):
        name = str(chance.randrange(8)).encode()
        if name not in names:
            made = volume.mknod(
                ROOT_INO, name, stat.S_IFREG | 0o640, uid=chance.randrange(4), gid=7
            )
            names.append(name)
            if chance.randrange(2):
                listed = acl.encode(
                    (
                        Entry(Tag.USER_OBJ, 6), Entry(Tag.USER, 4, 100 + chance.randrange(3)),
                        Entry(Tag.GROUP_OBJ, 4), Entry(Tag.GROUP, 4, 200), Entry(Tag.MASK, 6),
                        Entry(Tag.OTHER, 0),
                    )
                )  # fmt: skip
                volume.setxattr(made.ino, acl.ACCESS, listed)
        elif chance.randrange(2):
            volume.unlink(ROOT_INO, name)
            names.remove(name)
        else:
            volume.setattr(volume.lookup(ROOT_INO, name).ino, uid=chance.randrange(4))


@pytest.mark.parametrize("seed", range(4))
def test_counting_on_from_an_older_snapshot_is_counting_anew(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    create_volume(pool, "v", size=1 << 30)
    path = volume_path(pool, "v")
    known: dict[str, IdentityCounts] = {}
    with open_volume(path) as volume:
        for number in range(8):
            change(volume, chance)
            volume.seal(f"s{number}")
            if number % 3 == 2:
                gone = chance.choice(volume.snapshots()[:-1])
                volume.destroy_snapshot(gone.name)
                while volume.reclaim_step():
                    pass
            if number == 5:
                volume.rollback(volume.snapshots()[0].epoch)
            volume.commit()
            with open_volume(path, Access.READ_ONLY) as reader:
                guid, counts = newest_counts(reader, known)
                assert counts == count_identities(reader, guid)
                view = reader.view(reader.snapshot(guid).epoch)
                assert msgspec.to_builtins(counts) == msgspec.to_builtins(walk(view))
                known = {guid: counts}


def test_a_volume_without_a_snapshot_is_counted_as_it_is(pool: Pool, volume: Volume) -> None:
    volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o600, uid=1234, gid=5678)
    volume.commit()
    with open_volume(volume_path(pool, "home"), Access.READ_ONLY) as reader:
        guid, counts = newest_counts(reader, {})
    assert guid == ""
    assert counts.owners == {0: 1, 1234: 1}
    assert counts.groups == {0: 1, 5678: 1}
