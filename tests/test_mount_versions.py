"""Going back through a mount: what the kernel remembers is right at once, open files work."""

from __future__ import annotations

import base64
import errno
import os
import random
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from nasfs.errors import Failed, NasError
from nasfs.fuse.mount import mount_in_background
from nasfs.fuse.slots import Slots
from nasfs.fuse.snapdir import SnapshotDirectory
from nasfs.volume import FsError, Volume, create_pool, create_volume, open_volume, volume_info
from tests.mounts import TestMount, failing, mounted

pytestmark = pytest.mark.mount

ACCESS = "system.posix_acl_access"
NOBODY = 0xFFFFFFFF


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[TestMount]:
    with mounted(tmp_path) as found:
        yield found


def seen(root: Path) -> dict[str, Any]:
    """All that can be seen below a directory; afterwards the kernel remembers it."""
    found: dict[str, Any] = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory) / name
            stats = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            found[str(path.relative_to(root))] = (
                stats.st_mode, stats.st_uid, stats.st_gid, stats.st_nlink, stats.st_size,
                stats.st_blocks, stats.st_mtime_ns, content, xattrs,
            )  # fmt: skip
    return found


def change_tree(root: Path, chance: random.Random, rounds: int, word: str) -> None:
    """What users do, everywhere in the tree."""
    for number in range(rounds):
        directories = [root, *(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink())]
        files = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
        place = chance.choice(directories) / f"{word}{number}"
        match chance.randrange(9):
            case 0:
                place.mkdir()
            case 1 | 2:
                place.write_bytes(chance.randbytes(chance.randrange(20_000)))
            case 3 if files:
                with chance.choice(files).open("r+b") as file:
                    file.seek(chance.randrange(12_000))
                    file.write(chance.randbytes(3000))
            case 4 if files:
                chance.choice(files).unlink()
            case 5 if files:
                chance.choice(files).rename(place)
            case 6 if files:
                os.setxattr(chance.choice(files), "user.k", chance.randbytes(4))
            case 7 if files:
                os.link(chance.choice(files), place)
            case 8 if len(directories) > 1:
                moved = chance.choice(directories[1:])
                if not place.is_relative_to(moved):
                    moved.rename(place)
            case _:
                place.symlink_to("anywhere")


@pytest.mark.parametrize("seed", range(3))
def test_after_a_rollback_everybody_sees_the_old_tree_at_once(mount: TestMount, seed: int) -> None:
    chance = random.Random(seed)
    change_tree(mount.root, chance, 60, "a")
    mount.snapshot("s")
    change_tree(mount.root, chance, 60, "b")
    before = seen(mount.root)  # which the kernel remembers now, for a day
    for path in seen(mount.root / ".snapshots/s"):
        (mount.root / path).exists()  # and also what is not there
    kept = mount.control.call("rollback", name="s", keep_as="kept")
    assert kept["name"] == "kept"
    assert seen(mount.root) == seen(mount.root / ".snapshots/s")
    old = mount.root / ".snapshots/s"
    for path in before:
        assert os.path.lexists(mount.root / path) == os.path.lexists(old / path)
    assert seen(mount.root / ".snapshots/kept") == before
    change_tree(mount.root, chance, 20, "c")
    mount.control.call("rollback", name="kept", keep_as="kept2")
    assert seen(mount.root) == before


def test_open_files_that_were_there_show_the_old_state_and_others_are_stale(
    mount: TestMount,
) -> None:
    (mount.root / "old").write_bytes(b"as it was")
    (mount.root / "dir").mkdir()
    mount.snapshot("s")
    (mount.root / "old").write_bytes(b"newer and longer")
    (mount.root / "new").write_bytes(b"x")
    (mount.root / "newdir").mkdir()
    with (
        (mount.root / "old").open("r+b", buffering=0) as old,
        (mount.root / "new").open("r+b", buffering=0) as new,
    ):
        old.read()
        new.read()
        inside = os.open(mount.root / "newdir", os.O_RDONLY)
        mount.control.call("rollback", name="s", keep_as="kept")
        assert os.pread(old.fileno(), 100, 0) == b"as it was"
        assert os.pwrite(old.fileno(), b"AS", 0) == 2
        with failing(errno.ESTALE):
            os.pwrite(new.fileno(), b"y", 0)
        with failing(errno.ESTALE):
            os.pread(new.fileno(), 100, 0)
        with failing(errno.ESTALE):
            os.listdir(inside)
        os.close(inside)
    assert (mount.root / "old").read_bytes() == b"AS it was"
    assert sorted(os.listdir(mount.root)) == ["dir", "old"]
    assert (mount.root / ".snapshots/kept/new").read_bytes() == b"x"


def test_a_rollback_brings_access_lists_and_modes_back(mount: TestMount) -> None:
    path = mount.root / "f"
    path.write_text("x")
    path.chmod(0o640)
    plain = path.stat().st_mode
    mount.snapshot("s")
    entries = [(1, 6, NOBODY), (2, 7, 1234), (4, 4, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, ACCESS, value)
    assert os.getxattr(path, ACCESS)
    assert path.stat().st_mode != plain
    mount.control.call("rollback", name="s", keep_as="kept")
    assert path.stat().st_mode == plain
    with failing(errno.ENODATA):
        os.getxattr(path, ACCESS)


def test_a_rollback_that_can_not_be_changes_nothing(mount: TestMount) -> None:
    (mount.root / "f").write_text("x")
    mount.snapshot("s")
    (mount.root / "g").write_text("x")
    with pytest.raises(Failed, match="no snapshot none"):
        mount.control.call("rollback", name="none", keep_as="kept")
    with pytest.raises(Failed, match="has a snapshot s"):
        mount.control.call("rollback", name="s", keep_as="s")
    assert sorted(os.listdir(mount.root)) == ["f", "g"]
    assert os.listdir(mount.root / ".snapshots") == ["s"]


def test_a_file_that_was_open_without_a_name_when_it_was_brought_back_stays(
    mount: TestMount,
) -> None:
    path = mount.root / "f"
    path.write_bytes(b"as it was")
    mount.snapshot("s")
    with path.open("rb") as opened:
        path.unlink()
        mount.control.call("rollback", name="s", keep_as="kept")
        assert opened.read() == b"as it was"
    mount.control.call("commit")
    assert path.read_bytes() == b"as it was"


# restoring


def path_of(*names: str) -> list[str]:
    return [base64.b64encode(os.fsencode(name)).decode() for name in names]


def restore(mount: TestMount, source: str, target: str, *, keep_as: str = "kept") -> dict[str, Any]:
    found: dict[str, Any] = mount.control.call(
        "restore",
        name="s",
        source=path_of(*source.split("/")),
        target=path_of(*target.split("/")),
        replace=True,
        keep_as=keep_as,
    )
    return found


def without(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """All that is neither *name* nor below it."""
    return {path: what for path, what in tree.items() if not Path(path).is_relative_to(name)}


def below(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        str(Path(path).relative_to(name)): what
        for path, what in tree.items()
        if Path(path).is_relative_to(name)
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_restored_tree_is_seen_at_once_by_who_knew_the_place_before(
    mount: TestMount, seed: int
) -> None:
    chance = random.Random(seed)
    (mount.root / "top").mkdir()
    (mount.root / "else").mkdir()
    change_tree(mount.root / "top", chance, 60, "a")
    change_tree(mount.root / "else", chance, 10, "e")
    mount.snapshot("s")
    change_tree(mount.root / "top", chance, 60, "b")
    before = seen(mount.root)
    then = seen(mount.root / ".snapshots/s")
    for path in then:
        os.path.lexists(mount.root / path)
    answer = restore(mount, "top", "top")
    assert answer["kept"]
    now = seen(mount.root)
    assert below(now, "top") == below(then, "top")
    assert without(now, "top") == without(before, "top")
    assert seen(mount.root / ".snapshots/kept") == before
    for path in before:
        assert os.path.lexists(mount.root / path) == (path in now)
    assert restore(mount, "top", "copy", keep_as="not")["kept"] is False
    now = seen(mount.root)
    assert below(now, "copy") == below(now, "top") == below(then, "top")
    assert sorted(os.listdir(mount.root / ".snapshots")) == ["kept", "s"]
    change_tree(mount.root, chance, 30, "c")


def test_a_removed_tree_comes_back_with_its_numbers_and_a_name_that_was_missed_is_seen(
    mount: TestMount,
) -> None:
    (mount.root / "d/e").mkdir(parents=True)
    (mount.root / "d/e/f").write_text("as it was")
    number = (mount.root / "d/e/f").stat().st_ino
    mount.snapshot("s")
    (mount.root / "d/e/f").unlink()
    (mount.root / "d/e").rmdir()
    (mount.root / "d").rmdir()
    mount.control.call("commit")
    assert not (mount.root / "d").exists()  # which the kernel remembers
    restore(mount, "d", "d")
    assert (mount.root / "d/e/f").read_text() == "as it was"
    assert (mount.root / "d/e/f").stat().st_ino == number


def test_who_has_a_restored_file_open_sees_the_old_content_and_a_replaced_one_lives_on(
    mount: TestMount,
) -> None:
    for name in ("same", "other"):
        (mount.root / name).write_bytes(b"as it was")
    mount.snapshot("s")
    (mount.root / "same").write_bytes(b"newer, and longer")
    (mount.root / "new").write_bytes(b"another file")
    (mount.root / "new").rename(mount.root / "other")
    with (
        (mount.root / "same").open("r+b", buffering=0) as same,
        (mount.root / "other").open("r+b", buffering=0) as other,
    ):
        same.read()
        other.read()
        restore(mount, "same", "same", keep_as="k1")
        restore(mount, "other", "other", keep_as="k2")
        assert os.pread(same.fileno(), 100, 0) == b"as it was"
        assert os.pread(other.fileno(), 100, 0) == b"another file"
        assert os.fstat(other.fileno()).st_nlink == 0
        os.pwrite(same.fileno(), b"AS", 0)
        os.pwrite(other.fileno(), b"AN", 0)
        assert os.pread(other.fileno(), 100, 0) == b"ANother file"
    assert (mount.root / "same").read_bytes() == b"AS it was"
    assert (mount.root / "other").read_bytes() == b"as it was"
    assert (mount.root / ".snapshots/s/same").read_bytes() == b"as it was"


def test_who_stands_in_a_directory_that_is_replaced_stands_in_a_removed_one(
    mount: TestMount,
) -> None:
    (mount.root / "d").mkdir()
    mount.snapshot("s")
    (mount.root / "d/later").mkdir()
    (mount.root / "d/file").write_text("x")
    held = [os.open(mount.root / "d" / name, os.O_PATH) for name in ("later", "file")]
    try:
        restore(mount, "d", "d")
        assert [os.stat(f"/proc/self/fd/{fd}").st_nlink for fd in held] == [0, 0]
        assert os.listdir(mount.root / "d") == []
    finally:
        for fd in held:
            os.close(fd)


def test_requests_and_commits_go_on_while_data_is_copied(mount: TestMount) -> None:
    (mount.root / "big").write_bytes(os.urandom(40 << 20))
    mount.snapshot("s")
    stop = threading.Event()
    made: list[int] = []

    def work() -> None:
        number = 0
        while not stop.is_set():
            with (mount.root / f"w{number % 7}").open("wb") as file:
                file.write(b"%d" % number)
                os.fsync(file.fileno())
            number += 1
        made.append(number)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        restore(mount, "big", "copy")
    finally:
        stop.set()
        thread.join()
    assert made[0] > 0
    assert (mount.root / "copy").read_bytes() == (mount.root / ".snapshots/s/big").read_bytes()


@pytest.mark.parametrize("rounds", [1, 3, 8])
def test_a_mount_that_is_killed_while_it_restores_shows_nothing_or_all(
    tmp_path: Path, rounds: int
) -> None:
    create_volume(create_pool(tmp_path / "pool"), "home", size=1 << 40)
    mount = TestMount(tmp_path, interval_s=0.05)
    mount.root.mkdir()
    try:
        mount.mount()
        (mount.root / "d").mkdir()
        for number in range(30):
            (mount.root / f"d/{number}").write_bytes(os.urandom(1 << 20))
        mount.snapshot("s")
        before, pid = seen(mount.root), mount.pid
        thread = threading.Thread(target=ended, args=(mount,))
        commits = mount.control.call("stats")["commits"]
        thread.start()
        while mount.control.call("stats")["commits"] < commits + rounds and thread.is_alive():
            pass
        os.kill(pid, signal.SIGSTOP)  # wherever it is
        mount.kill()
        thread.join()
        mount.mount()
        now = seen(mount.root)
        assert without(now, "copy") == before
        assert below(now, "copy") in ({}, below(before, "d"))
        mount.unmount()
        mount.check()
    finally:
        mount.clean_up()


def ended(mount: TestMount) -> None:
    """Ask, and take whatever comes."""
    with suppress(NasError):
        restore(mount, "d", "copy")


@pytest.mark.parametrize("moment", ["at once", "when it is kept", "when it is done"])
def test_a_mount_that_is_killed_while_it_rolls_back_shows_one_state_or_the_other(
    tmp_path: Path, moment: str
) -> None:
    create_volume(create_pool(tmp_path / "pool"), "home", size=1 << 40)
    mount = TestMount(tmp_path)
    mount.root.mkdir()
    chance = random.Random(moment)
    try:
        mount.mount()
        change_tree(mount.root, chance, 40, "a")
        mount.snapshot("s")
        then = seen(mount.root)
        change_tree(mount.root, chance, 80, "b")
        mount.control.call("commit")
        before = seen(mount.root)
        thread = threading.Thread(target=rolled_back, args=(mount,))
        thread.start()
        if moment == "when it is kept":
            while not kept_is_there(mount.volume_path) and thread.is_alive():
                pass
        elif moment == "when it is done":
            thread.join()
        mount.kill()
        thread.join()
        mount.mount()
        now, kept = seen(mount.root), (mount.root / ".snapshots/kept").exists()
        assert now in (before, then)
        assert kept or now == before
        assert moment != "when it is done" or now == then
        if kept:
            assert seen(mount.root / ".snapshots/kept") == before
        mount.unmount()
        mount.check()
    finally:
        mount.clean_up()


def rolled_back(mount: TestMount) -> None:
    with suppress(NasError):
        mount.control.call("rollback", name="s", keep_as="kept")


def kept_is_there(path: Path) -> bool:
    return any(snapshot.name == "kept" for snapshot in volume_info(path).snapshots)


# the listing of `.snapshots` itself


def test_the_root_lists_snapshots_if_it_was_told_to_and_the_next_mount_does_too(
    mount: TestMount,
) -> None:
    (mount.root / "f").touch()
    mount.snapshot("s")
    assert os.listdir(mount.root) == ["f"]
    mount.control.call("list_snapshots", on=True)
    assert os.listdir(mount.root) == [".snapshots", "f"]
    assert sorted(p.name for p in (mount.root / ".snapshots").iterdir()) == ["s"]
    assert [entry.is_dir() for entry in os.scandir(mount.root)] == [True, False]
    for number in range(300):
        (mount.root / f"{number}").touch()
    names = os.listdir(mount.root)
    assert len(names) == len(set(names)) == 302
    mount.unmount()
    mount.mount()
    assert ".snapshots" in os.listdir(mount.root)
    mount.control.call("list_snapshots", on=False)
    assert ".snapshots" not in os.listdir(mount.root)
    assert (mount.root / ".snapshots/s/f").exists()


@pytest.mark.parametrize("listed", [True, False])
def test_a_mount_may_be_told_otherwise(mount: TestMount, listed: bool) -> None:
    mount.control.call("list_snapshots", on=not listed)
    mount.unmount()
    mount.pid = mount_in_background(
        mount.volume_path,
        mount.root,
        control=mount.base / "control.sock",
        fsname="pool/home",
        log_file=mount.base / "log",
        list_snapshots=listed,
    )
    assert os.listdir(mount.root) == ([".snapshots"] if listed else [])


def test_thousands_of_snapshots_are_listed_without_going_through_all_of_them_for_each(
    tmp_path: Path,
) -> None:
    """Counted, not timed: calls of the engine's methods that go through all snapshots."""
    create_volume(create_pool(tmp_path / "pool"), "home", size=1 << 30)
    with open_volume(tmp_path / "pool/home") as volume:
        for number in range(1500):
            volume.seal_nowait(f"s{number}")
        volume.commit()
        directory = SnapshotDirectory(volume, Slots(volume))
        with mock.patch.object(Volume, "snapshots", side_effect=AssertionError):
            found, after = [], 2
            while page := directory.readdir(2, after, 400):
                found += [name for name, _, _ in page]
                after = page[-1][2]
            assert found == [b"s%d" % number for number in range(1500)]
            assert directory.lookup(2, b"s777").st_ino == volume.snapshot("s777").epoch << 40 | 1
            assert directory.getattr(2).st_nlink == 1502
            with pytest.raises(FsError):
                directory.lookup(2, b"none")
