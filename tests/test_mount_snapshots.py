"""Snapshots of a mounted volume: below `.snapshots`, under load, and mounted by themselves."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nasfs.errors import Failed, Refused
from nasfs.fuse.mount import unmount
from tests.mounts import TestMount, failing, mounted

pytestmark = pytest.mark.mount


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[TestMount]:
    with mounted(tmp_path) as found:
        yield found


def small_tree(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir/file").write_text("old")
    os.setxattr(root / "dir/file", "user.color", b"blue")
    os.link(root / "dir/file", root / "dir/same")
    os.symlink("file", root / "dir/link")


def test_a_snapshot_can_be_browsed_and_stays_as_it_was(mount: TestMount) -> None:
    small_tree(mount.root)
    taken = mount.snapshot("monday")
    (mount.root / "dir/file").write_text("newer")
    os.setxattr(mount.root / "dir/file", "user.color", b"red")
    (mount.root / "dir/link").unlink()
    (mount.root / "dir/added").touch()
    os.rename(mount.root / "dir", mount.root / "renamed")

    old = mount.root / ".snapshots/monday"
    assert os.listdir(old) == ["dir"]
    assert sorted(os.listdir(old / "dir")) == ["file", "link", "same"]
    assert (old / "dir/link").read_text() == "old"
    assert os.getxattr(old / "dir/file", "user.color") == b"blue"
    assert os.listxattr(old / "dir/file") == ["user.color"]
    assert os.path.samefile(old / "dir/file", old / "dir/same")
    live = (mount.root / "renamed/file").stat()
    assert (old / "dir/file").stat().st_ino == taken["epoch"] << 40 | live.st_ino
    assert (mount.root / "renamed/file").read_text() == "newer"


@pytest.mark.parametrize("epoch", [(1 << 22) - 2, (1 << 23) - 2, (1 << 24) + 1])
def test_a_volume_may_have_more_epochs_than_inode_numbers_have_room_for(
    tmp_path: Path, epoch: int
) -> None:
    with mounted(tmp_path) as mount:
        (mount.root / "f").write_text("first")
        mount.snapshot("first")
        unmount(mount.root)
        with closing(sqlite3.connect(mount.volume_path / "meta.db")) as db, db:
            db.execute("UPDATE volume SET epoch = ?", (epoch,))
        mount.mount()
        names = ["first"]
        for number in range(4):  # one of them has the low bits of the first one, or none at all
            (mount.root / "f").write_text(f"{epoch} {number}")
            names.append(f"s{number}")
            mount.snapshot(names[-1])
        inos = {(mount.root / ".snapshots" / name / "f").stat().st_ino for name in names}
        assert len(inos) == 5
        texts = [(mount.root / ".snapshots" / name / "f").read_text() for name in names]
        assert texts == ["first", *(f"{epoch} {number}" for number in range(4))]
        times = mount.root / ".snapshots/@GMT"
        assert sorted((times / name / "f").read_text() for name in os.listdir(times)) == sorted(
            texts
        )
        mount.control.call("snapshot_destroy", names=["first"])
        assert [(mount.root / ".snapshots" / n / "f").read_text() for n in names[1:]] == texts[1:]


def test_snapshots_are_reached_by_name_and_not_listed(mount: TestMount) -> None:
    for name in ("one", "two"):
        mount.snapshot(name)
    assert os.listdir(mount.root) == []
    directory = mount.root / ".snapshots"
    found = directory.stat()
    assert (found.st_ino, stat.S_IMODE(found.st_mode), found.st_nlink) == (2, 0o555, 4)
    assert os.listdir(directory) == ["one", "two"]
    assert os.stat(directory / "..").st_ino == 1
    assert os.stat(directory / "one/..").st_ino == 2
    assert not (directory / "three").exists()
    mount.snapshot("three")  # a name that was missing is not remembered
    assert (directory / "three").is_dir()
    assert not (directory / "one/.snapshots").exists()


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda old: (old / "new").touch(),
    "mkdir": lambda old: (old / "new").mkdir(),
    "symlink": lambda old: (old / "new").symlink_to("x"),
    "mknod": lambda old: os.mkfifo(old / "new"),
    "unlink": lambda old: (old / "dir/file").unlink(),
    "rmdir": lambda old: (old / "dir").rmdir(),
    "rename": lambda old: os.rename(old / "dir/file", old / "dir/other"),
    "link": lambda old: os.link(old / "dir/file", old / "dir/other"),
    "open for writing": lambda old: os.open(old / "dir/file", os.O_WRONLY),
    "open and truncate": lambda old: os.open(old / "dir/file", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda old: os.truncate(old / "dir/file", 0),
    "chmod": lambda old: (old / "dir/file").chmod(0o600),
    "chown": lambda old: os.chown(old / "dir/file", 1, 1),
    "utime": lambda old: os.utime(old / "dir/file"),
    "setxattr": lambda old: os.setxattr(old / "dir/file", "user.x", b""),
    "removexattr": lambda old: os.removexattr(old / "dir/file", "user.color"),
}


def test_nothing_below_snapshots_can_be_changed(mount: TestMount) -> None:
    small_tree(mount.root)
    mount.snapshot("s")
    directory = mount.root / ".snapshots"
    for change in CHANGES.values():
        with failing(errno.EROFS):
            change(directory / "s")
    changes: list[Callable[[], object]] = [
        lambda: (directory / "new").mkdir(),
        lambda: (directory / "s").rmdir(),
        lambda: os.rename(directory / "s", directory / "t"),
        lambda: directory.rmdir(),
        lambda: directory.chmod(0o777),
        lambda: os.rename(mount.root / "dir", directory),
        lambda: os.rename(directory, mount.root / "dir2"),
    ]
    for attempt in changes:
        with failing(errno.EROFS):
            attempt()
    with failing(errno.EEXIST):
        directory.mkdir()
    assert (directory / "s/dir/file").read_text() == "old"


def test_links_and_renames_do_not_cross_into_a_snapshot_or_out_of_it(mount: TestMount) -> None:
    small_tree(mount.root)
    mount.snapshot("s")
    old = mount.root / ".snapshots/s"
    calls: list[Callable[[Path, Path], None]] = [os.link, os.rename]
    for call in calls:
        with failing(errno.EXDEV):
            call(old / "dir/file", mount.root / "out")
        with failing(errno.EXDEV):
            call(mount.root / "dir/file", old / "in")


def test_a_destroyed_snapshot_is_gone_at_once_and_stale_for_who_stands_in_it(
    mount: TestMount,
) -> None:
    small_tree(mount.root)
    mount.snapshot("s")
    old = mount.root / ".snapshots/s"
    assert (old / "dir/file").exists()
    inside = os.open(old / "dir", os.O_RDONLY | os.O_DIRECTORY)
    try:
        mount.control.call("snapshot_destroy", names=["s"])
        assert not old.exists()
        assert os.listdir(mount.root / ".snapshots") == []
        with failing(errno.ESTALE):
            os.listdir(inside)
        with failing(errno.ESTALE):
            os.stat("never-asked-before", dir_fd=inside)
    finally:
        os.close(inside)
    mount.snapshot("s")
    assert (old / "dir/file").read_text() == "old"


def test_snapshots_are_renamed_held_and_destroyed_all_or_none(mount: TestMount) -> None:
    for name in ("a", "b"):
        mount.snapshot(name)
    directory = mount.root / ".snapshots"
    assert (directory / "a").is_dir()
    mount.control.call("snapshot_rename", name="a", new_name="c")
    assert not (directory / "a").exists()
    assert (directory / "c").is_dir()
    mount.control.call("hold", name="b", owner="test", reason="because")
    with pytest.raises(Refused):
        mount.control.call("snapshot_destroy", names=["c", "b"])
    assert os.listdir(directory) == ["c", "b"]
    mount.control.call("release", name="b", owner="test")
    mount.control.call("snapshot_destroy", names=["c", "b"])
    assert os.listdir(directory) == []
    with pytest.raises(Failed):
        mount.control.call("snapshot_destroy", names=["c"])


def test_the_space_of_destroyed_snapshots_comes_back(mount: TestMount) -> None:
    (mount.root / "file").write_bytes(b"x" * 8_000_000)
    mount.snapshot("s")
    (mount.root / "file").unlink()
    mount.control.call("commit")
    assert mount.control.call("stats")["used"] > 7_900_000
    mount.control.call("snapshot_destroy", names=["s"])
    for _ in range(500):
        mount.control.call("commit")  # queued layers go after the commit that freed them
        if mount.control.call("stats")["used"] == 0:
            break
    assert mount.control.call("stats")["used"] == 0
    layers = [path for path in mount.volume_path.glob("layers/*/*") if path.stat().st_blocks]
    for _ in range(500):
        if not layers:
            break
        mount.root.stat()
        mount.control.call("commit")
        layers = [path for path in layers if path.exists() and path.stat().st_blocks]
    assert layers == []


class Writer:
    """Writes record i to one file, then to the other, then counts it."""

    def __init__(self, root: Path) -> None:
        self.done = 0
        self.error: BaseException | None = None
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with (
                (self._root / "first").open("ab", buffering=0) as first,
                (self._root / "second").open("ab", buffering=0) as second,
            ):
                while not self._stop.is_set():
                    record = b"%07d\n" % self.done
                    first.write(record)
                    second.write(record)
                    (self._root / f"made-{self.done % 50}").write_bytes(record)
                    self.done += 1
        except BaseException as exc:
            self.error = exc


def test_snapshots_under_a_writer_hold_all_that_had_returned_and_no_later_without_earlier(
    mount: TestMount,
) -> None:
    with Writer(mount.root) as writer:
        floors = []
        for number in range(25):
            while writer.done < number * 20 and writer.error is None:
                pass
            floors.append(writer.done)
            mount.snapshot(f"s{number}")
    assert writer.error is None
    for number, floor in enumerate(floors):
        old = mount.root / f".snapshots/s{number}"
        if not floor:  # the writer may not have made its files yet
            continue
        first = (old / "first").read_bytes().splitlines()
        second = (old / "second").read_bytes().splitlines()
        assert first == [b"%07d" % i for i in range(len(first))]
        assert second == first[: len(second)]
        assert len(first) - len(second) in (0, 1)
        assert len(second) >= floor


def test_a_snapshot_is_mounted_by_itself_beside_the_live_volume(mount: TestMount) -> None:
    small_tree(mount.root)
    mount.snapshot("monday")
    ino = (mount.root / "dir/file").stat().st_ino
    (mount.root / "dir/file").write_text("newer")
    place = mount.mount_snapshot("monday")
    assert (place / "dir/file").read_text() == "old"
    assert (place / "dir/file").stat().st_ino == ino
    assert os.getxattr(place / "dir/same", "user.color") == b"blue"
    (mount.root / "dir/same").unlink()
    assert sorted(os.listdir(place / "dir")) == ["file", "link", "same"]
    for change in CHANGES.values():
        with failing(errno.EROFS):
            change(place)
    assert not (place / ".snapshots").exists()
    assert os.statvfs(place).f_flag & os.ST_RDONLY


def test_mounting_as_of_a_snapshot_that_is_not_there_fails(mount: TestMount) -> None:
    with pytest.raises(Failed, match="no snapshot never"):
        mount.mount_snapshot("never")
