"""Each numbered invariant, broken on purpose by SQL or in a layer, is found by its number.

And repaired where that follows from the rest: the volume is sound afterwards and every file is
there as it was.  Where it does not follow nothing is touched, and it is told.
"""

from __future__ import annotations

import os
import random
import sqlite3
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    CorruptionError,
    Ino,
    Pool,
    View,
    VolumeBusy,
    check_volume,
    create_volume,
    open_volume,
    repair_volume,
    volume_path,
)
from nasfs.volume.media import HostMedia
from nasfs.volume.types import REGION_BLOCKS

REGION = REGION_BLOCKS * BLOCK

DIR, FILE, LATER, OTHER, SUB, DEEP = range(256, 262)


@pytest.fixture
def sound(pool: Pool) -> Path:
    """A closed volume with files, directories, leaf rows, xattrs and two snapshots.

    ``dir/file`` (also ``link``) has versions in every epoch, ``other/sub/deep`` is new.
    """
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        directory = volume.mkdir(ROOT_INO, b"dir", 0o755, uid=0, gid=0).ino
        file = volume.mknod(directory, b"file", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(file, 0, b"a" * 10 * BLOCK)
        volume.setxattr(file, b"user.k", b"v")
        volume.link(file, ROOT_INO, b"link")
        volume.seal("one")
        volume.write(file, 3 * BLOCK, b"b" * BLOCK)
        volume.mknod(ROOT_INO, b"later", stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.seal("two")
        volume.unlink(ROOT_INO, b"later")
        volume.setattr(file, size=8 * BLOCK)
        other = volume.mkdir(ROOT_INO, b"other", 0o755, uid=0, gid=0).ino
        sub = volume.mkdir(other, b"sub", 0o755, uid=0, gid=0).ino
        deep = volume.mknod(sub, b"deep", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(deep, 0, b"d" * 5 * BLOCK)
        volume.setxattr(deep, b"user.d", b"deep")
    assert (directory, file, other, sub, deep) == (DIR, FILE, OTHER, SUB, DEEP)
    assert check_volume(path) == []
    return path


def files(view: View, at: Ino = ROOT_INO) -> dict[int, tuple[object, ...]]:
    """What can be reached from the root: contents, attributes and links by inode number."""
    found: dict[int, tuple[object, ...]] = {}
    for _, inode in view.readdir(at, 0, 1000):
        if inode.is_dir:
            found |= files(view, inode.ino)
        else:
            xattrs = [(name, view.getxattr(inode.ino, name)) for name in view.listxattr(inode.ino)]
            body = view.read(inode.ino, 0, inode.size)
            found[inode.ino] = (inode.mode, inode.nlink, inode.blocks, body, xattrs)
    return found


def picture(path: Path) -> list[dict[int, tuple[object, ...]]]:
    """The live view's files, then those of the snapshots."""
    with open_volume(path) as volume:
        views = [volume.view(snapshot.epoch) for snapshot in volume.snapshots()]
        return [files(volume), *map(files, views)]


def dump(path: Path) -> list[str]:
    """Everything in the tables."""
    db = sqlite3.connect(path / "meta.db")
    try:
        return list(db.iterdump())
    finally:
        db.close()


def sql(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        db = sqlite3.connect(path / "meta.db")
        for statement in statements:
            assert db.execute(statement).rowcount != 0, statement
        db.commit()
        db.close()

    return damage


def layer(path: Path, ino: int, epoch: int) -> Path:
    return path / "layers" / f"{ino % 256:02x}" / f"{ino}.{epoch}"


def cut_layer(path: Path) -> None:
    os.truncate(layer(path, FILE, 1), BLOCK)


def remove_layer(path: Path) -> None:
    layer(path, FILE, 2).unlink()


def leaf_of_a_lost_inode(path: Path) -> None:
    """Nothing but a leaf row and its layer are left."""
    sql("INSERT INTO leaf VALUES (999, 0, 3, 3)")(path)
    layer(path, 999, 3).write_bytes(b"rescue me")


def blob(name: str) -> str:
    return f"CAST('{name}' AS BLOB)"


@dataclass(frozen=True)
class Break:
    """How to break an invariant; *left*: those that stay broken after a repair."""

    invariant: str
    damage: Callable[[Path], None]
    left: str = ""
    moved: bool = False
    """A file is found at another place afterwards."""


NAME_OF_DEEP = f"name = {blob('deep')}"
BREAKS = {
    # versions: nothing decides
    "born later": Break("I2", sql("UPDATE dirent SET born = 99"), "I2 I4"),
    "born never": Break("I2", sql(f"UPDATE inode SET born = 0 WHERE ino = {OTHER}"), "I2 I4"),
    "died at once": Break("I2", sql("UPDATE inode_past SET died = born"), "I2 I3 I6 I8"),
    "overlaps the live row": Break(
        "I2", sql(f"UPDATE inode SET born = 1 WHERE ino = {FILE}"), "I2 I7 I8"
    ),
    "past rows overlap": Break(
        "I2", sql(f"UPDATE inode_past SET died = 3 WHERE ino = {FILE} AND born = 1"), "I2 I7"
    ),
    # entries
    "an entry of nothing": Break(
        "I3", sql(f"UPDATE dirent SET ino = 999 WHERE name = {blob('file')}"), "I3", moved=True
    ),
    "an entry of another type": Break(
        "I3", sql(f"UPDATE dirent SET kind = {stat.S_IFIFO} WHERE name = {blob('link')}")
    ),
    "an entry of another type in a snapshot": Break(
        "I3", sql(f"UPDATE dirent_past SET kind = {stat.S_IFIFO} WHERE name = {blob('later')}")
    ),
    "an entry in a file": Break(
        "I3", sql(f"UPDATE dirent SET parent = {FILE} WHERE {NAME_OF_DEEP}"), moved=True
    ),
    "an entry in nothing": Break(
        "I3", sql(f"UPDATE dirent SET parent = 999 WHERE {NAME_OF_DEEP}"), moved=True
    ),
    "an entry in a file, in a snapshot": Break(
        "I3", sql(f"UPDATE dirent SET parent = {FILE} WHERE name = {blob('link')}"), "I3",
        moved=True,
    ),
    "a directory is gone": Break(
        "I3", sql(f"DELETE FROM inode WHERE ino = {SUB}"), "I3", moved=True
    ),
    "the root is no directory": Break(
        "I3", sql(f"UPDATE inode SET mode = {stat.S_IFREG} WHERE ino = 1"), "I3 I4"
    ),
    "the root is gone": Break("I3", sql("DELETE FROM inode WHERE ino = 1"), "I3 I8"),
    # links
    "too many links": Break("I4", sql(f"UPDATE inode SET nlink = 5 WHERE ino = {FILE}")),
    "too many links of a directory": Break(
        "I4", sql(f"UPDATE inode SET nlink = 3 WHERE ino = {DIR}")
    ),
    "too few links of the root": Break("I4", sql("UPDATE inode SET nlink = 2 WHERE ino = 1")),
    "no links of a directory": Break(
        "I4", sql(f"UPDATE inode SET nlink = 0 WHERE ino = {OTHER}")
    ),
    "too many links in a snapshot": Break(
        "I4", sql(f"UPDATE inode_past SET nlink = 9 WHERE ino = {FILE} AND born = 1")
    ),
    "another parent": Break("I4", sql(f"UPDATE inode SET parent = {FILE} WHERE ino = {DIR}")),
    "a directory with two names": Break(
        "I4",
        sql(f"INSERT INTO dirent VALUES ({DIR}, {blob('also')}, 3, 40, {SUB}, {stat.S_IFDIR})"),
    ),
    # the tree
    "a directory in itself": Break(
        "I5", sql(f"UPDATE dirent SET parent = {OTHER} WHERE name = {blob('other')}"), moved=True
    ),
    "a directory below itself": Break(
        "I5", sql(f"UPDATE dirent SET parent = {SUB} WHERE name = {blob('other')}"), moved=True
    ),
    # owners
    "an attribute of nothing": Break(
        "I6", sql("INSERT INTO xattr VALUES (999, CAST('k' AS BLOB), 3, CAST('v' AS BLOB))")
    ),
    "an attribute of what was removed": Break(
        "I6", sql(f"INSERT INTO xattr VALUES ({LATER}, CAST('k' AS BLOB), 2, CAST('v' AS BLOB))"),
        "I6",
    ),
    "a leaf of nothing": Break("I6", sql("INSERT INTO leaf VALUES (999, 0, 3, 3)")),
    "a leaf of what was lost": Break("I6", leaf_of_a_lost_inode, "I6"),
    "a leaf that was another's": Break("I6", sql("UPDATE leaf SET ino = 999"), "I7"),
    # maps
    "too few leaves": Break("I7", sql(f"UPDATE inode SET leaves = 0 WHERE ino = {FILE}")),
    "too few blocks": Break("I7", sql(f"UPDATE inode SET blocks = 7 WHERE ino = {FILE}")),
    "too few blocks in a snapshot": Break(
        "I7", sql(f"UPDATE inode_past SET blocks = 7 WHERE ino = {FILE}")
    ),
    "too many leaves": Break("I7", sql(f"UPDATE inode SET leaves = 2 WHERE ino = {FILE}"), "I7"),
    "too small": Break("I7", sql(f"UPDATE inode SET size = {BLOCK} WHERE ino = {FILE}"), "I7"),
    "no layer": Break("I7", sql(f"UPDATE inode SET layer = 0 WHERE ino = {DEEP}"), "I7"),
    "a layer of the future": Break("I7", sql("UPDATE leaf SET map = 9"), "I7"),
    "a map of another length": Break("I7", sql(f"UPDATE leaf SET map = {blob('short')}"), "I7 I8"),
    "a layer is too short": Break("I7", cut_layer, "I7"),
    "a layer is gone": Break("I7", remove_layer, "I7"),
    # counters
    "live blocks": Break("I8", sql("UPDATE volume SET live_blocks = live_blocks + 1")),
    "snapshot blocks": Break("I8", sql("UPDATE volume SET snapshot_blocks = 0")),
    "kept blocks": Break("I8", sql("UPDATE kept SET blocks = blocks + 1")),
    "kept blocks of another": Break("I8", sql("UPDATE kept SET seen = seen - 1, layer = 1")),
    "inodes": Break("I8", sql("UPDATE volume SET inodes = inodes + 1")),
    "the next inode": Break("I8", sql(f"UPDATE volume SET next_ino = {FILE}")),
    "reserved inodes": Break("I8", sql(f"UPDATE volume SET reserved_ino = {FILE}")),
    "the next cookie": Break("I8", sql("UPDATE volume SET next_cookie = 1")),
    # snapshots
    "a snapshot of the future": Break(
        "I9", sql("UPDATE snapshot SET epoch = 77 WHERE epoch = 2"), "I8 I9"
    ),
    "a hold of nothing": Break("I9", sql("INSERT INTO hold VALUES (55, 'me', 'why')")),
    # unlinked files
    "an orphan with a name": Break("I10", sql(f"INSERT INTO orphan VALUES ({FILE})")),
    "an orphan that is not there": Break("I10", sql("INSERT INTO orphan VALUES (999)")),
    "an inode without a name": Break(
        "I10",
        sql(
            f"UPDATE inode SET nlink = 0 WHERE ino = {DEEP}",
            f"DELETE FROM dirent WHERE ino = {DEEP}",
        ),
        moved=True,
    ),
    "an inode that has lost its name": Break(
        "I4", sql(f"DELETE FROM dirent WHERE ino = {DEEP}"), moved=True
    ),
    "a directory that has lost its name": Break(
        "I4", sql(f"DELETE FROM dirent WHERE ino = {OTHER}"), moved=True
    ),
    "a file that has lost its names in the snapshots as well": Break(
        "I4", sql(f"DELETE FROM dirent WHERE ino = {FILE}"), "I4", moved=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_invariant_is_found(sound: Path, what: str) -> None:
    BREAKS[what].damage(sound)
    found = {finding.invariant for finding in check_volume(sound)}
    assert BREAKS[what].invariant in found


@pytest.mark.parametrize("what", BREAKS)
def test_what_follows_from_the_rest_is_repaired_and_nothing_else(sound: Path, what: str) -> None:
    broken = BREAKS[what]
    before = picture(sound)
    broken.damage(sound)
    damaged = dump(sound)
    findings = check_volume(sound)
    plan = repair_volume(sound, dry_run=True)
    assert dump(sound) == damaged
    outcome = repair_volume(sound)
    assert outcome == plan
    assert {finding.invariant for finding in outcome.left} <= set(broken.left.split())
    assert list(outcome.left) == check_volume(sound)
    if not outcome.repairs:
        assert list(outcome.left) == findings
        assert dump(sound) == damaged
    if broken.left:
        assert {f.invariant for f in outcome.left} == set(broken.left.split())
        return
    assert repair_volume(sound).repairs == ()
    after = picture(sound)
    assert after[1:] == before[1:]
    if broken.moved:
        assert {i: f[3:] for i, f in after[0].items()} == {i: f[3:] for i, f in before[0].items()}
        with open_volume(sound) as volume:
            assert volume.readdir(volume.lookup(ROOT_INO, b"lost+found").ino, 0, 10)
    else:
        assert after == before
    with open_volume(sound) as volume:  # and it can be worked with
        ino = volume.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(ino, 0, b"new")
        volume.seal("three")
        volume.unlink(volume.lookup(ROOT_INO, b"dir").ino, b"file")
        while volume.reclaim_step() or volume.changed:
            volume.commit()
    assert check_volume(sound) == []


def test_a_sound_volume_is_left_as_it_is(sound: Path) -> None:
    before = dump(sound)
    assert repair_volume(sound) == repair_volume(sound, dry_run=True)
    assert repair_volume(sound).repairs == ()
    assert dump(sound) == before


class FailingMedia(HostMedia):
    """After so many calls there are no layers any more."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def usage(self, path: Path) -> tuple[int, int]:
        self._left -= 1
        return super().usage(path) if self._left > 0 else (0, 0)


def test_nothing_is_done_if_it_looks_worse_afterwards(sound: Path) -> None:
    sql("UPDATE volume SET inodes = 9")(sound)
    before = dump(sound)
    outcome = repair_volume(sound, media=FailingMedia(8))
    assert outcome.repairs == ()
    assert [finding.invariant for finding in outcome.left] == ["I8"]
    assert dump(sound) == before
    assert repair_volume(sound).left == ()


def test_a_volume_in_use_is_not_repaired(sound: Path) -> None:
    with open_volume(sound), pytest.raises(VolumeBusy):
        repair_volume(sound)


def test_many_at_once(sound: Path) -> None:
    before = picture(sound)
    chosen = [name for name, broken in BREAKS.items() if not (broken.left or broken.moved)]
    tried = 0
    for name in chosen:
        try:
            BREAKS[name].damage(sound)
        except AssertionError:  # what an earlier one has broken can't be broken again
            continue
        tried += 1
    assert tried > 15
    assert len({finding.invariant for finding in check_volume(sound)}) > 5
    assert repair_volume(sound).left == ()
    assert picture(sound) == before


def test_what_is_repaired_travels_with_the_next_delta(sound: Path) -> None:
    sql(f"UPDATE inode SET nlink = 3 WHERE ino = {DIR}")(sound)
    assert repair_volume(sound).left == ()
    with open_volume(sound) as volume:
        two = volume.snapshot("two").epoch
        three = volume.seal("three").epoch
        changed = {c.row[0] for c in volume.delta(two, three).rows() if c.sort == "inode"}
        assert DIR in changed
        assert volume.view(two).getattr(DIR).nlink == 2


def test_layers_that_nothing_names_are_given_back(sound: Path) -> None:
    stray = layer(sound, 4711, 2)
    stray.write_bytes(b"stray")
    assert check_volume(sound) == []
    assert [str(repair) for repair in repair_volume(sound).repairs] == [
        "space: layer files that nothing names will be given back"
    ]
    before = picture(sound)
    with open_volume(sound) as volume:
        while volume.reclaim_step() or volume.changed:
            volume.commit()
    assert not stray.exists()
    assert picture(sound) == before


def test_what_is_left_of_a_lost_file_is_not_given_back(sound: Path) -> None:
    """Its name is there, its inode is not: whoever rescues it needs its layers."""
    sql(f"DELETE FROM inode WHERE ino = {DEEP}")(sound)
    outcome = repair_volume(sound)
    assert {finding.invariant for finding in outcome.left} == {"I3", "I6"}
    with open_volume(sound) as volume:
        while volume.reclaim_step() or volume.changed:
            volume.commit()
    assert layer(sound, DEEP, 3).read_bytes() == b"d" * 5 * BLOCK


def root_page(path: Path, name: str) -> tuple[int, int]:
    """Offset and size of the first page of a table or an index; the log is emptied."""
    db = sqlite3.connect(path / "meta.db")
    page = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0]
    size = db.execute("PRAGMA page_size").fetchone()[0]
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return (page - 1) * size, size


def lose_a_cell(path: Path, name: str) -> None:
    offset, _ = root_page(path, name)
    with (path / "meta.db").open("r+b") as file:
        file.seek(offset + 3)
        cells = int.from_bytes(file.read(2), "big")
        file.seek(offset + 3)
        file.write((cells - 1).to_bytes(2, "big"))


def test_an_index_that_has_lost_an_entry_is_found_and_built_again(sound: Path) -> None:
    """I1: SQLite's own check."""
    before = picture(sound)
    lose_a_cell(sound, "inode_born")
    assert "I1" in {finding.invariant for finding in check_volume(sound)}
    outcome = repair_volume(sound)
    assert [repair.invariant for repair in outcome.repairs] == ["I1"]
    assert outcome.left == ()
    assert picture(sound) == before
    assert check_volume(sound) == []


@pytest.mark.parametrize("table", ["inode", "dirent", "leaf"])
def test_a_table_that_has_lost_a_row_is_not_made_to_agree_with_that(
    sound: Path, table: str
) -> None:
    lose_a_cell(sound, table)
    assert "I1" in {finding.invariant for finding in check_volume(sound)}
    assert repair_volume(sound).repairs == ()


@pytest.mark.parametrize("table", ["inode", "dirent", "volume"])
def test_damage_in_a_table_is_told_and_nothing_is_touched(sound: Path, table: str) -> None:
    offset, size = root_page(sound, table)
    with (sound / "meta.db").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * size)
    before = (sound / "meta.db").read_bytes()
    with suppress(CorruptionError):
        assert "I1" in {finding.invariant for finding in check_volume(sound)}
    with suppress(CorruptionError):
        assert repair_volume(sound).repairs == ()
    assert (sound / "meta.db").read_bytes() == before


def test_a_volume_is_checked_while_it_is_mounted(sound: Path) -> None:
    with open_volume(sound) as volume:
        ino = volume.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(ino, 0, b"not committed")
        assert check_volume(sound) == []
        volume.commit()
        assert check_volume(sound) == []


def test_unlinked_files_that_are_open_are_no_damage(sound: Path) -> None:
    volume = open_volume(sound)
    volume.acquire(DEEP)
    volume.unlink(SUB, b"deep")
    volume.seal("open")
    volume.abandon()
    assert check_volume(sound) == []
    assert repair_volume(sound).repairs == ()


def test_progress_is_told(sound: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check_volume(sound, lambda *step: told.append(step))
    assert ("files and directories", 0, 6) in told
    assert told[0][0] == "the database"


def test_a_file_with_many_maps_is_counted_right(pool: Pool) -> None:
    """Regions with and without leaf rows, versions that only some snapshots see."""
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(ino, 0, b"0" * 3 * REGION)
        for number in range(8):
            volume.seal(f"s{number}")
            volume.write(ino, number * REGION // 3, bytes([number]) * (BLOCK * (number + 1)))
            volume.write(ino, 5 * BLOCK, bytes([number]) * BLOCK)
            volume.setattr(ino, size=(3 * REGION) - number * 5 * BLOCK - 7)
        volume.destroy_snapshot("s3")
        volume.destroy_snapshot("s4")
        assert check_volume(path) == []
        volume.reclaim_step(1)
        volume.commit()
        assert check_volume(path) == []
        while volume.reclaim_step(1) or volume.changed:
            volume.commit()
    assert check_volume(path) == []
    sql("UPDATE volume SET snapshot_blocks = snapshot_blocks - 1")(path)
    assert repair_volume(path).left == ()


COLUMNS = {
    "inode": ("born", "nlink", "mode", "size", "parent", "layer", "layer_end", "leaves", "blocks"),
    "dirent": ("born", "parent", "ino", "kind", "cookie"),
    "xattr": ("born", "ino"),
    "leaf": ("born", "ino", "region", "map"),
    "volume": ("epoch", "next_ino", "reserved_ino", "next_cookie", "inodes", "live_blocks"),
    "snapshot": ("epoch",),
}


KEYS = {"dirent": "cookie", "volume": "id", "snapshot": "epoch"}


def damage_at_random(path: Path, chance: random.Random) -> None:
    """A few numbers in a few rows are others, a few rows are gone."""
    db = sqlite3.connect(path / "meta.db")
    for _ in range(chance.randrange(1, 4)):
        table = name = chance.choice(list(COLUMNS))
        versioned = table not in ("volume", "snapshot")
        if versioned and chance.random() < 0.3:
            name = f"{table}_past"
        key = KEYS.get(table, "ino")
        keys = db.execute(f"SELECT {key} FROM {name}").fetchall()
        if not keys:
            continue
        (value,) = chance.choice(keys)
        if versioned and chance.random() < 0.2:
            db.execute(f"DELETE FROM {name} WHERE {key} = ?", (value,))
            continue
        number = chance.choice([0, 1, 2, 3, 4, 99, ROOT_INO, DIR, FILE, SUB, DEEP, stat.S_IFDIR])
        column = chance.choice(COLUMNS[table])
        with suppress(sqlite3.IntegrityError):
            db.execute(f"UPDATE {name} SET {column} = ? WHERE {key} = ?", (number, value))
    db.commit()
    db.close()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_damaged_a_repair_loses_nothing(sound: Path, seed: int) -> None:
    damage_at_random(sound, random.Random(seed))
    inodes = "SELECT ino FROM inode UNION SELECT ino FROM inode_past"
    db = sqlite3.connect(sound / "meta.db")
    before = set(db.execute(inodes))
    values = set(db.execute("SELECT value FROM xattr UNION SELECT value FROM xattr_past"))
    db.close()
    layers = {p.name: p.read_bytes() for p in (sound / "layers").glob("*/*")}
    findings = check_volume(sound)
    outcome = repair_volume(sound)
    assert list(outcome.left) == check_volume(sound)
    assert bool(outcome.repairs) <= bool(findings)
    assert repair_volume(sound).repairs == ()
    assert {p.name: p.read_bytes() for p in (sound / "layers").glob("*/*")} == layers
    db = sqlite3.connect(sound / "meta.db")
    assert before <= set(db.execute(inodes))
    if not any(repair.invariant == "I6" for repair in outcome.repairs):
        assert values == set(
            db.execute("SELECT value FROM xattr UNION SELECT value FROM xattr_past")
        )
    db.close()
