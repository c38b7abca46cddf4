"""What changed between two views: the same as a naive comparison of the whole trees tells."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    DiffEntry,
    Inode,
    NoSuchSnapshot,
    Pool,
    View,
    Volume,
    create_volume,
    diff_volume,
    open_volume,
    volume_path,
)

from .test_volume_delta import change_something, view_content

Fact = tuple[str, bytes, bytes, tuple[str, ...]]
"""Kind, path, old path, what."""


class Seen:
    """A whole tree, read without any knowledge of versions."""

    def __init__(self, view: View) -> None:
        self.inodes: dict[int, tuple[object, ...]] = {}
        self.raw: dict[int, Inode] = {}
        self.names: dict[int, set[tuple[int, bytes]]] = {}
        self.paths: dict[tuple[int, bytes], bytes] = {}
        self._walk(view, ROOT_INO, b"")
        self._note(view, ROOT_INO)
        self.names[ROOT_INO] = set()

    def _walk(self, view: View, ino: int, above: bytes) -> None:
        after = 0
        while page := view.readdir(ino, after, 50):
            for entry, inode in page:
                after = entry.cookie
                path = above + entry.name
                self.names.setdefault(inode.ino, set()).add((ino, entry.name))
                self.paths[ino, entry.name] = path
                self._note(view, inode.ino)
                if inode.is_dir:
                    self._walk(view, inode.ino, path + b"/")

    def _note(self, view: View, ino: int) -> None:
        inode = view.getattr(ino)
        xattrs = {name: view.getxattr(ino, name) for name in view.listxattr(ino)}
        self.raw[ino] = inode
        self.inodes[ino] = (view_content(view, ino), xattrs)


def naive(old: Seen, new: Seen) -> list[Fact]:
    facts: list[Fact] = []
    for ino in old.inodes.keys() | new.inodes.keys():
        gone = sorted(old.names.get(ino, set()) - new.names.get(ino, set()))
        fresh = sorted(new.names.get(ino, set()) - old.names.get(ino, set()))
        kept = new.names.get(ino, set()) - set(fresh)
        while gone and fresh and ino in old.inodes and ino in new.inodes:
            was, now = gone.pop(0), fresh.pop(0)
            facts.append(("renamed", new.paths[now], old.paths[was], ()))
            kept = kept | {now}
        facts += [("removed", old.paths[name], b"", ()) for name in gone]
        facts += [("added", new.paths[name], b"", ()) for name in fresh]
        if ino in old.inodes and ino in new.inodes:
            what = naive_change(old, new, ino)
            if what:
                paths = [new.paths[name] for name in kept] if ino != ROOT_INO else [b""]
                facts += [("changed", path, b"", what) for path in paths]
    return sorted(facts)


def naive_change(old: Seen, new: Seen, ino: int) -> tuple[str, ...]:
    was, now = old.raw[ino], new.raw[ino]
    what = []
    if was.is_file and old.inodes[ino][0] != new.inodes[ino][0]:
        what.append("data")
    if was.mode != now.mode:
        what.append("mode")
    if (was.uid, was.gid) != (now.uid, now.gid):
        what.append("owner")
    if was.target != now.target:
        what.append("target")
    if old.inodes[ino][1] != new.inodes[ino][1]:
        what.append("xattrs")
    if not what and not was.is_dir and was.mtime_ns != now.mtime_ns:
        what.append("times")
    return tuple(what)


def told(path: Path, old: str, new: str | None) -> list[Fact]:
    with diff_volume(path, old, new) as diff:
        entries = list(diff.entries())
        assert sum(diff.counts.values()) == len(entries)
    keys = [entry.path.replace(b"/", b"\0") for entry in entries]
    assert keys == sorted(keys)
    return sorted((e.change, e.path, e.old_path, e.what) for e in entries)


def without_rewrites(facts: list[Fact], wanted: list[Fact]) -> list[Fact]:
    """Blocks that were written with the bytes that were there: told as data, seen by nobody."""
    same = {(kind, path): what for kind, path, _, what in wanted}
    result = []
    for kind, path, old_path, what in facts:
        expected = same.get((kind, path), ())
        if kind == "changed" and "data" in what and "data" not in expected:
            what = tuple(word for word in what if word != "data") or expected
            if not what:
                continue
        result.append((kind, path, old_path, what))
    return result


def move_directories(volume: Volume, chance: random.Random) -> None:
    entries = [e for e, inode in volume.readdir(ROOT_INO, 0, 10_000) if inode.is_dir]
    if len(entries) < 2:
        return
    one, other = chance.sample(entries, 2)
    if chance.random() < 0.5:
        volume.rename(ROOT_INO, one.name, other.ino, b"moved-%d" % volume.epoch)
    else:
        volume.rename(ROOT_INO, one.name, ROOT_INO, b"renamed-%d" % volume.epoch)
    volume.setattr(other.ino, mode=chance.choice([0o700, 0o755]), uid=chance.randrange(3))


@pytest.fixture
def path(pool: Pool) -> Path:
    create_volume(pool, "v", size=1 << 40)
    return volume_path(pool, "v")


@pytest.mark.parametrize("seed", range(12))
def test_any_two_views_differ_as_the_whole_trees_do(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with open_volume(path) as volume:
        for number in range(5):
            change_something(volume, chance, 60)
            move_directories(volume, chance)
            if number == 3:  # a rollback is a change like any other
                volume.rollback(volume.snapshots()[1].epoch)
                change_something(volume, chance, 20)
            volume.seal(f"s{number}")
        change_something(volume, chance, 30)
        volume.commit()
        seen = {s.name: Seen(volume.view(s.epoch)) for s in volume.snapshots()}
        live = Seen(volume)
        for old in seen:
            for new in seen:
                wanted = naive(seen[old], seen[new])
                assert without_rewrites(told(path, old, new), wanted) == wanted
            wanted = naive(seen[old], live)
            assert without_rewrites(told(path, old, None), wanted) == wanted


def entries(path: Path, old: str, new: str | None = None) -> Iterator[DiffEntry]:
    with diff_volume(path, old, new) as diff:
        yield from diff.entries()


def lines(path: Path, old: str, new: str | None = None) -> list[str]:
    marks = {"added": "+", "removed": "-", "renamed": "R", "changed": "M"}
    return [
        f"{marks[e.change]} {e.old_path.decode() + ' > ' if e.old_path else ''}{e.path.decode()}"
        + (f" {','.join(e.what)}" if e.what else "")
        for e in entries(path, old, new)
    ]


def test_a_moved_directory_is_one_entry_and_its_content_only_where_it_changed(path: Path) -> None:
    with open_volume(path) as volume:
        top = volume.mkdir(ROOT_INO, b"top", 0o755, uid=0, gid=0).ino
        place = volume.mkdir(ROOT_INO, b"place", 0o755, uid=0, gid=0).ino
        files = [
            volume.mknod(top, b"%d" % n, stat.S_IFREG | 0o644, uid=0, gid=0).ino for n in range(50)
        ]
        volume.seal("a")
        volume.rename(ROOT_INO, b"top", place, b"there")
        volume.write(files[7], 0, b"x")
        volume.rename(top, b"8", ROOT_INO, b"out")
        volume.seal("b")
    assert lines(path, "a", "b") == ["R top/8 > out", "R top > place/there", "M place/there/7 data"]
    assert lines(path, "b", "a") == ["R place/there > top", "M top/7 data", "R out > top/8"]


def test_names_of_one_file_come_and_go(path: Path) -> None:
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"one", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.link(ino, ROOT_INO, b"two")
        volume.seal("a")
        volume.unlink(ROOT_INO, b"one")
        volume.link(ino, ROOT_INO, b"three")
        volume.link(ino, ROOT_INO, b"four")
        volume.setattr(ino, mode=0o600)
        volume.commit()
        assert lines(path, "a") == ["R one > four", "M four mode", "+ three", "M two mode"]


def test_a_file_that_was_replaced_is_another_one(path: Path) -> None:
    with open_volume(path) as volume:
        volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.seal("a")
        volume.mknod(ROOT_INO, b"tmp", stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.rename(ROOT_INO, b"tmp", ROOT_INO, b"f")
        volume.seal("b")
    assert lines(path, "a", "b") == ["- f", "+ f"]


def test_a_file_that_was_open_without_a_name_is_in_no_comparison(path: Path) -> None:
    with open_volume(path) as volume:
        ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.acquire(ino)
        volume.seal("a")
        volume.unlink(ROOT_INO, b"f")
        volume.seal("b")
        volume.write(ino, 0, b"x")
        volume.seal("c")
        volume.release(ino)
    assert lines(path, "a", "b") == lines(path, "a", "c") == ["- f"]
    assert lines(path, "b", "c") == []


def test_what_changed_is_told(path: Path) -> None:
    with open_volume(path) as volume:
        inos = {
            name: volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino
            for name in (b"block", b"cut", b"mode", b"none", b"owner", b"size", b"time", b"xattr")
        }
        for ino in inos.values():
            volume.write(ino, 0, b"x" * 3 * BLOCK)
        volume.seal("a")
        volume.write(inos[b"block"], BLOCK, b"y")
        volume.setattr(inos[b"cut"], size=5)
        volume.setattr(inos[b"cut"], size=3 * BLOCK)
        volume.setattr(inos[b"mode"], mode=0o600, mtime_ns=7)
        volume.setattr(inos[b"none"], mode=0o600)
        volume.setattr(inos[b"none"], mode=0o644)
        volume.setattr(inos[b"owner"], gid=9)
        volume.setattr(inos[b"size"], size=9)
        volume.setattr(inos[b"time"], mtime_ns=5)
        volume.setxattr(inos[b"xattr"], b"user.x", b"1")
        volume.seal("b")
    assert lines(path, "a", "b") == [
        "M block data", "M cut data", "M mode mode", "M owner owner", "M size data", "M time times",
        "M xattr xattrs",
    ]  # fmt: skip


def test_odd_names_come_as_they_are(path: Path) -> None:
    names = [b"new\nline", b"\xff\xfe", b" -> ", "ä".encode()]
    with open_volume(path) as volume:
        volume.seal("a")
        for name in names:
            volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.seal("b")
    assert [entry.path for entry in entries(path, "a", "b")] == sorted(names)


def test_the_live_side_is_the_last_commit_whatever_comes_then(path: Path) -> None:
    with open_volume(path) as volume:
        volume.seal("a")
        volume.mknod(ROOT_INO, b"in", stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.commit()
        volume.mknod(ROOT_INO, b"not-yet", stat.S_IFREG | 0o644, uid=0, gid=0)
        assert lines(path, "a") == ["+ in"]


def test_a_snapshot_that_is_not_there_is_told(path: Path) -> None:
    with open_volume(path) as volume:
        volume.seal("a")
    for old, new in (("x", "a"), ("a", "x"), ("x", None)):
        with pytest.raises(NoSuchSnapshot, match="no snapshot x"):
            diff_volume(path, old, new)


@pytest.mark.parametrize("files", [100, 3000])
def test_it_costs_what_changed_and_not_what_is_there(path: Path, files: int) -> None:
    """Steps of SQLite's machine, as it counts them itself, do not grow with the tree."""
    with open_volume(path) as volume:
        directory = volume.mkdir(ROOT_INO, b"d", 0o755, uid=0, gid=0).ino
        for number in range(files):
            volume.mknod(directory, b"%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.seal("a")
        changed = volume.lookup(directory, b"50").ino
        volume.write(changed, 0, b"x")
        volume.rename(directory, b"51", ROOT_INO, b"moved")
        volume.seal("b")
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        a, b = volume.snapshots()
        volume._store.db.set_progress_handler(count, 100)
        from nasfs.volume.diff import Diff

        with Diff() as diff:
            diff.fill(volume, a.epoch, b.epoch)
            assert [(e.change, e.path) for e in diff.entries()] == [
                ("changed", b"d/50"),
                ("renamed", b"moved"),
            ]
        volume._store.db.set_progress_handler(None, 100)
    assert steps < 30
