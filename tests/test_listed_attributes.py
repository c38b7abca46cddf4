"""What a listing tells the kernel of each file is what the file is at that moment."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from nasfs.fuse.tree import Entry, ViewTree, to_entry
from nasfs.volume import ROOT_INO, Volume, create_pool, create_volume, open_volume, volume_path

TOLD = [
    "st_ino",
    "generation",
    "st_mode",
    "st_nlink",
    "st_uid",
    "st_gid",
    "st_size",
    "st_blocks",
    "st_atime_ns",
    "st_mtime_ns",
    "st_ctime_ns",
]
NAMES = [b"%d" % number for number in range(12)]


def values(entries: list[Entry]) -> list[tuple[object, ...]]:
    return [(name, cookie, *(getattr(form, at) for at in TOLD)) for name, form, cookie in entries]


def expected(volume: Volume) -> list[Entry]:
    page = volume.readdir(ROOT_INO, 0, 1000)
    return [(entry.name, to_entry(inode), entry.cookie) for entry, inode in page]


def change(volume: Volume, chance: random.Random) -> None:
    name = chance.choice(NAMES)
    inode = volume.find(ROOT_INO, name)
    if inode is None:
        volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0)
        return
    match chance.randrange(5):
        case 0:
            volume.write(inode.ino, inode.size, b"more")
        case 1:
            volume.setattr(inode.ino, mode=chance.randrange(0o1000))
        case 2:
            volume.rename(ROOT_INO, name, ROOT_INO, chance.choice(NAMES))
        case 3:
            volume.unlink(ROOT_INO, name)
        case _:
            volume.commit()


@pytest.mark.parametrize("remembered", [4, 1000])
def test_a_listing_tells_what_is(remembered: int, tmp_path: Path) -> None:
    chance = random.Random(remembered)
    pool = create_pool(tmp_path / "pool")
    create_volume(pool, "v", size=1 << 30)
    with open_volume(volume_path(pool, "v")) as volume:
        tree = ViewTree(volume, remembered=remembered)
        for _ in range(400):
            for _ in range(chance.randrange(3)):
                change(volume, chance)
            page = chance.choice((3, 1000))
            found: list[Entry] = []
            while more := tree.readdir(ROOT_INO, found[-1][2] if found else 0, page):
                found += more
            assert values(found) == values(expected(volume))
            for name, form, _ in found:
                assert tree.lookup(ROOT_INO, name).st_size == form.st_size
