"""Large directories: cookies that stay while entries come and go, at the engine's border."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from nasfs.volume import ROOT_INO, Volume, create_pool, create_volume, open_volume, volume_path


def check_listing_while_it_changes(volume: Volume, count: int, seed: int) -> None:
    """What is there from first to last is listed once; the rest not more than once a name."""
    rng = random.Random(seed)
    directory = volume.mkdir(ROOT_INO, b"large", 0o755, uid=0, gid=0).ino

    def make(name: bytes) -> None:
        volume.mknod(directory, name, stat.S_IFREG | 0o644, uid=0, gid=0)

    for number in range(count):
        make(b"stays-%d" % number if number % 2 else b"goes-%d" % number)
    going = [b"goes-%d" % number for number in range(0, count, 2)]
    rng.shuffle(going)
    end = volume.next_cookie
    seen: list[bytes] = []
    after, made = 0, 0
    while page := volume.readdir(directory, after, rng.choice([1, 7, 100, 512])):
        seen += [entry.name for entry, _ in page if entry.cookie < end]
        after = page[-1][0].cookie
        if after >= end:
            break
        for _ in range(rng.randrange(200)):
            match rng.randrange(3):
                case 0 if going:
                    volume.unlink(directory, going.pop())
                case 1:
                    make(b"new-%d" % made)
                    made += 1
                case _ if going:
                    volume.rename(directory, going.pop(), directory, b"moved-%d" % made)
                    made += 1
        if rng.randrange(20) == 0:
            volume.commit()
    assert len(seen) == len(set(seen))
    staying = {b"stays-%d" % number for number in range(1, count, 2)}
    assert staying <= set(seen)
    assert not any(name.startswith((b"new", b"moved")) for name in seen)


def test_100000_entries_are_listed_once_while_others_come_and_go(volume: Volume) -> None:
    check_listing_while_it_changes(volume, 100_000, 0)


@pytest.mark.soak
def test_a_million_entries_are_listed_once_while_others_come_and_go(tmp_path: Path) -> None:
    pool = create_pool(tmp_path / "pool")
    create_volume(pool, "large", size=1 << 40)
    with open_volume(volume_path(pool, "large")) as volume:
        check_listing_while_it_changes(volume, 1_000_000, 0)
        volume.commit()
        listed, after = 0, 0
        directory = volume.lookup(ROOT_INO, b"large").ino
        while page := volume.readdir(directory, after, 512):
            listed, after = listed + len(page), page[-1][0].cookie
        assert listed == volume.statfs().inodes - 2
