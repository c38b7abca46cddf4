"""Space: every block is accounted for, and comes back when nothing reaches it any more.

Random histories on a few files: overwrites, truncates, unlinks, snapshots made and destroyed,
rollbacks to any snapshot, reclaim in small steps, reopening.  At the end the counters are exact,
every snapshot reads as the copy taken when it was made, and the bytes in the layers are what the
views need, to the block.
"""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    FsError,
    Ino,
    Pool,
    View,
    Volume,
    check_volume,
    create_volume,
    layers,
    open_volume,
    volume_path,
)
from nasfs.volume.reach import FEW
from nasfs.volume.space import LEAVES_A_PART
from nasfs.volume.store import newest_ancestor
from nasfs.volume.types import REGION_BLOCKS

from .test_volume_model import layer_bytes

NAMES = [b"a", b"b", b"c"]


def contents(view: View) -> dict[bytes, bytes]:
    return {
        entry.name: view.read(inode.ino, 0, inode.size)
        for entry, inode in view.readdir(ROOT_INO, 0, 100)
    }


def change_a_file(volume: Volume, chance: random.Random) -> None:
    name = chance.choice(NAMES)
    try:
        ino = volume.lookup(ROOT_INO, name).ino
    except FsError:
        ino = volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino
    near_region_end = chance.random() < 0.2
    first = chance.randrange(12) + (REGION_BLOCKS - 6 if near_region_end else 0)
    match chance.randrange(8):
        case 0:
            volume.setattr(ino, size=first * BLOCK + chance.choice([0, 1, 2000]))
        case 1:
            volume.unlink(ROOT_INO, name)
        case 2:
            volume.write(ino, first * BLOCK + chance.randrange(BLOCK), b"partial")
        case _:
            count = chance.randrange(1, 6)
            volume.write(ino, first * BLOCK, chance.randbytes(1) * (count * BLOCK))


def reclaim_all(volume: Volume) -> None:
    while volume.reclaim_step(3) or volume.changed:
        volume.commit()


@pytest.mark.parametrize("seed", range(40))
def test_every_block_is_accounted_for_and_comes_back(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    volume = open_volume(path)
    copies: dict[str, dict[bytes, bytes]] = {}
    for number in range(150):
        kind = chance.random()
        if kind < 0.62:
            change_a_file(volume, chance)
        elif kind < 0.76:
            copies[volume.seal(f"s{number}").name] = contents(volume)
        elif kind < 0.86 and copies:
            name = chance.choice(list(copies))
            volume.destroy_snapshot(name)
            del copies[name]
        elif kind < 0.90 and copies:
            name = chance.choice(list(copies))
            volume.rollback(volume.snapshot(name).epoch)
            assert contents(volume) == copies[name]
        elif kind < 0.97:
            volume.reclaim_step(chance.choice([1, 2, 50]))
        else:
            volume.commit()
            if chance.random() < 0.5:
                volume.close()
            else:
                volume.abandon()
            volume = open_volume(path)
    reclaim_all(volume)
    for name, copy in copies.items():
        assert contents(volume.view(volume.snapshot(name).epoch)) == copy
    used = volume.statfs().used
    volume.close()
    assert [str(finding) for finding in check_volume(path)] == []
    assert layer_bytes(path) == used


def test_destroying_all_snapshots_leaves_what_the_live_view_needs(pool: Pool) -> None:
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        for number in range(20):
            volume.write(ino, 0, bytes([number]) * 50 * BLOCK)
            volume.write(ino, 7 * BLOCK, bytes([number]) * BLOCK)
            volume.setxattr(ino, b"user.n", b"%d" % number)
            volume.seal(f"s{number}")
            volume.write(ino, 3 * BLOCK, bytes([number]) * BLOCK)  # a leaf row for each epoch
        assert volume.statfs().used == (20 * 50 + 1) * BLOCK
        for number in range(20):
            volume.destroy_snapshot(f"s{number}")
        reclaim_all(volume)
        assert volume.statfs().used == 50 * BLOCK
        assert volume.read(ino, 0, 50 * BLOCK) == bytes([19]) * 50 * BLOCK
    db = sqlite3.connect(path / "meta.db")
    for table in ("inode", "dirent", "xattr", "leaf"):
        assert db.execute(f"SELECT count(*) FROM {table}_past").fetchone() == (0,)
    db.close()
    assert layer_bytes(path) == 50 * BLOCK
    assert len(list((path / "layers").glob("*/*"))) == 2  # one block is of the current epoch


def test_a_leaf_row_that_outlives_the_row_of_its_inode_goes_with_the_snapshot(pool: Pool) -> None:
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(ino, 0, b"a" * 10 * BLOCK)
        volume.seal("zero")
        volume.write(ino, 2 * BLOCK, b"b" * BLOCK)  # now there is a leaf row
        volume.seal("one")
        volume.setattr(ino, mode=0o600)  # only the row of the inode changes
        volume.commit()
        volume.destroy_snapshot("one")
        volume.reclaim_step(1)  # and the old one goes
        volume.commit()
        volume.write(ino, 3 * BLOCK, b"c" * BLOCK)  # the leaf row moves to the past only now
        volume.commit()
        volume.destroy_snapshot("zero")
        reclaim_all(volume)
    db = sqlite3.connect(path / "meta.db")
    assert db.execute("SELECT count(*) FROM leaf_past").fetchone() == (0,)
    db.close()
    assert check_volume(path) == []


@pytest.mark.parametrize("block", [0, 5, 9, REGION_BLOCKS - 1])
def test_a_block_that_only_a_far_view_sees_is_not_given_back(pool: Pool, block: int) -> None:
    """Its neighbours don't: after a rollback the live view sees again what they had replaced."""
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(ino, 0, b"0" * REGION_BLOCKS * BLOCK)
        volume.seal("zero")
        volume.write(ino, block * BLOCK, b"1" * BLOCK)
        one = volume.seal("one")
        for number in range(3 * FEW):
            volume.write(ino, block * BLOCK, b"x" * BLOCK)
            volume.seal(f"later{number}")
        volume.rollback(one.epoch)
        for name in ("one", "zero", *(f"later{number}" for number in range(3 * FEW))):
            volume.destroy_snapshot(name)
            reclaim_all(volume)
            assert volume.read(ino, block * BLOCK, BLOCK) == b"1" * BLOCK
        assert layer_bytes(path) == REGION_BLOCKS * BLOCK
    assert check_volume(path) == []


REGIONS = 24


def fragmented(path: Path) -> Ino:
    """A sparse file of many regions, each with a leaf row that changed in two snapshots."""
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(ino, 0, b"0" * BLOCK)
        volume.setattr(ino, size=REGIONS * REGION_BLOCKS * BLOCK)
        for number in (1, 2, 3):
            for region in range(REGIONS):
                block = region * REGION_BLOCKS + number % 2
                volume.write(ino, block * BLOCK, bytes([number]) * BLOCK)
            volume.seal(f"s{number}")
    return ino


def steps_of_one(path: Path, *, reopen: bool) -> Iterator[int]:
    """Reclaim until nothing is left, an item at each step; how many maps that read.

    Args:
        reopen: begin anew after every third step that destroys a part of a snapshot.
    """
    volume = open_volume(path)
    destroyed = 0
    try:
        while True:
            said: list[str] = []
            pending = volume.reclaim_pending()
            destroyed += pending["snapshots"] > 0 and pending["layers"] == 0
            volume._store.db.set_trace_callback(said.append)
            more = volume.reclaim_step(1)
            volume._store.db.set_trace_callback(None)
            if not more and not volume.changed:
                return
            volume.commit()
            yield sum("SELECT map" in text for text in said)
            if reopen and destroyed == 3:
                destroyed = 0
                volume.abandon()
                volume = open_volume(path)
    finally:
        volume.close()


@pytest.mark.parametrize("reopen", [False, True])
def test_no_step_takes_all_of_a_file_of_many_regions(pool: Pool, *, reopen: bool) -> None:
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    ino = fragmented(path)
    with open_volume(path) as volume:
        assert volume.statfs().used == (3 * REGIONS + 1) * BLOCK
        copy = contents(volume)
        volume.destroy_snapshot("s1")
        volume.destroy_snapshot("s2")
    most = number = 0
    for number, maps in enumerate(steps_of_one(path, reopen=reopen)):
        most = max(most, maps)
        if number % 10 == 0:
            assert [str(finding) for finding in check_volume(path)] == []
    assert number > 2 * REGIONS // LEAVES_A_PART
    assert most <= 8 * LEAVES_A_PART  # its own maps, and those of the views beside it
    with open_volume(path) as volume:
        assert contents(volume) == copy
        assert volume.statfs().used == layer_bytes(path) == 2 * REGIONS * BLOCK
        volume.unlink(ROOT_INO, b"f")
        volume.commit()
        volume.destroy_snapshot("s3")
    for _ in steps_of_one(path, reopen=reopen):
        pass
    assert [str(finding) for finding in check_volume(path)] == []
    assert not list((path / "layers").glob(f"*/{ino}.*"))


def test_level_2_of_a_map_goes_in_parts_where_others_have_leaf_rows(pool: Pool) -> None:
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        size = 20 * REGION_BLOCKS * BLOCK
        for offset in range(0, size, REGION_BLOCKS * BLOCK):
            volume.write(ino, offset, b"0" * (REGION_BLOCKS * BLOCK))
        volume.seal("s1")
        for offset in range(0, size, REGION_BLOCKS * BLOCK):
            volume.write(ino, offset + 5 * BLOCK, b"1" * BLOCK)
        volume.seal("s2")
        volume.destroy_snapshot("s1")
    ends = set()
    for _ in steps_of_one(path, reopen=True):
        with sqlite3.connect(path / "meta.db") as db:
            ends |= set(db.execute("SELECT layer_end FROM inode_past WHERE ino = ?", (ino,)))
        db.close()
        assert [str(finding) for finding in check_volume(path)] == []
    assert len(ends) >= 20 // LEAVES_A_PART - 1
    with open_volume(path) as volume:
        assert volume.statfs().used == layer_bytes(path) == size


def test_a_leaf_row_of_two_snapshots_of_which_the_later_one_went_first(pool: Pool) -> None:
    """It is counted once, when the second one of them goes."""
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    fragmented(path)
    with open_volume(path) as volume:
        ino = volume.lookup(ROOT_INO, b"f").ino
        volume.setattr(ino, mode=0o600)  # the row of the inode changes, no leaf row does
        volume.seal("s4")
        volume.unlink(ROOT_INO, b"f")
        volume.commit()
        volume.destroy_snapshot("s4")
        for _ in range(3):
            volume.reclaim_step(1)
            volume.commit()
        for name in ("s3", "s1", "s2"):
            volume.destroy_snapshot(name)
        reclaim_all(volume)
        assert volume.statfs().used == layer_bytes(path) == 0
    assert [str(finding) for finding in check_volume(path)] == []


def test_what_is_written_while_a_layer_is_looked_through_stays(pool: Pool) -> None:
    """Its beginning was free of data; then the live view writes there, in the same epoch."""
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    fragmented(path)
    with open_volume(path) as volume:
        ino = volume.lookup(ROOT_INO, b"f").ino
        for region in range(REGIONS):
            volume.write(ino, (region * REGION_BLOCKS + 9) * BLOCK, b"9" * BLOCK)
        volume.commit()
        volume.setattr(ino, size=0)
        volume.commit()
        volume.reclaim_step(3)
        volume.write(ino, 9 * BLOCK, b"new" * 1000)
        volume.commit()
        reclaim_all(volume)
        assert volume.read(ino, 9 * BLOCK, 3000) == b"new" * 1000
        assert volume.statfs().used == layer_bytes(path)
    assert [str(finding) for finding in check_volume(path)] == []


def test_what_a_killed_owner_had_not_committed_gives_its_space_back(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "SMALL_BYTES", -1)  # nothing waits in memory
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    volume = open_volume(path)
    kept = volume.mknod(ROOT_INO, b"kept", stat.S_IFREG | 0o644, uid=0, gid=0).ino
    volume.write(kept, 0, b"k" * 3 * BLOCK)
    volume.commit()
    volume.write(kept, 3 * BLOCK, b"lost" * BLOCK)
    for number in range(5):
        lost = volume.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(lost, 0, b"l" * BLOCK)
    volume.abandon()
    assert layer_bytes(path) == 12 * BLOCK
    with open_volume(path) as volume:
        new = volume.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        assert new > lost  # its number had been given
        volume.setattr(new, size=BLOCK)
        assert volume.read(new, 0, BLOCK) == bytes(BLOCK)
        volume.setattr(kept, size=5 * BLOCK)
        assert volume.read(kept, 3 * BLOCK, 2 * BLOCK) == bytes(2 * BLOCK)
        reclaim_all(volume)
        assert volume.statfs().used == 3 * BLOCK
    assert layer_bytes(path) == 3 * BLOCK
    assert check_volume(path) == []


def test_a_layer_is_kept_until_the_commit_that_freed_it_is_durable(pool: Pool) -> None:
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(ino, 0, b"x" * BLOCK)
        volume.commit()
        layer = next((path / "layers").glob(f"*/{ino}.*"))
        volume.unlink(ROOT_INO, b"f")
        volume.reclaim_step()
        assert layer.exists()  # a crash now brings the file back
        volume.dirty_data().run()
        volume.commit_nowait()
        volume.reclaim_step()
        assert layer.exists()  # committed, but the log is not on the disk
        volume.sync_log()
        volume.reclaim_step()
        assert not layer.exists()


@pytest.mark.parametrize(
    ("snapshots", "rollbacks", "ancestor"),
    [
        ([], [], 0),
        ([1, 3, 5], [], 5),
        ([1, 3, 5], [(6, 3)], 3),
        ([1, 3, 5, 6], [(6, 3)], 6),
        ([1, 5], [(6, 3)], 1),
        ([5], [(6, 3)], 0),
        ([1, 3, 5], [(4, 1), (6, 3)], 3),
        ([1, 3, 5], [(4, 1), (6, 5)], 5),
        ([1, 3], [(4, 1), (6, 5)], 1),
    ],
)
def test_the_newest_ancestor_leaves_out_what_rollbacks_left_aside(
    snapshots: list[int], rollbacks: list[tuple[int, int]], ancestor: int
) -> None:
    assert newest_ancestor(snapshots, rollbacks) == ancestor
