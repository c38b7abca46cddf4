"""link(2) and linkat(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mounts import TestMount
from tests.posix.calls import (
    NOT_DIRECTORIES,
    errno_of,
    link_descriptor,
    link_followed,
    make,
    mode_of,
    owner_of,
    times_changed,
)
from tests.posix.users import ALICE, BOB, acting_as

pytestmark = pytest.mark.mount


def link(old: Path, new: Path) -> None:
    os.link(old, new, follow_symlinks=False)


def nlink(path: Path) -> int:
    return os.lstat(path).st_nlink


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_all_names_are_the_same_object(work: Path, kind: str) -> None:
    one, two, three = work / "1", work / "2", work / "3"
    make(kind, one)
    link(one, two)
    link(two, three)
    assert [nlink(path) for path in (one, two, three)] == [3, 3, 3]
    assert len({os.lstat(path).st_ino for path in (one, two, three)}) == 1
    os.lchown(two, 5, 6)
    assert owner_of(one) == owner_of(three) == (5, 6)
    if kind != "symlink":
        two.chmod(0o201)
        assert mode_of(one) == mode_of(three) == 0o201
    one.unlink()
    assert [nlink(path) for path in (two, three)] == [2, 2]
    three.unlink()
    assert nlink(two) == 1
    two.unlink()
    assert errno_of(os.lstat, two) == "ENOENT"


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_it_moves_ctime_of_the_file_and_the_times_of_the_directory(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    other = make("directory", work / "other")
    assert times_changed(path, lambda: link(path, other / "1")) == {"ctime"}
    assert times_changed(other, lambda: link(path, other / "2")) == {"mtime", "ctime"}
    assert times_changed(work, lambda: link(path, other / "3")) == set()


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_one_that_fails_moves_nothing(work: Path, kind: str) -> None:
    path = make(kind, work / "x", ALICE)
    closed = make("directory", work / "closed")

    def attempt() -> None:
        with acting_as(ALICE):
            assert errno_of(link, path, closed / "y") == "EACCES"

    assert times_changed(path, attempt) == set()
    assert times_changed(closed, attempt) == set()
    assert nlink(path) == 1


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink"])
def test_a_name_that_is_taken_is_eexist(work: Path, kind: str) -> None:
    make("file", work / "x")
    make(kind, work / "taken")
    assert errno_of(link, work / "x", work / "taken") == "EEXIST"
    assert errno_of(link, work / "x", work / "x") == "EEXIST"


def test_directories_have_one_name(work: Path) -> None:
    make("directory", work / "x", ALICE)
    assert errno_of(link, work / "x", work / "y") == "EPERM"
    with acting_as(ALICE):
        assert errno_of(link, work / "x", work / "y") == "EPERM"


def test_a_symlink_is_linked_itself_or_followed(work: Path) -> None:
    make("file", work / "x")
    (work / "s").symlink_to("x")
    os.link(work / "s", work / "itself", follow_symlinks=False)
    assert (work / "itself").is_symlink()
    link_followed(work / "s", work / "followed")
    assert (work / "followed").samefile(work / "x")


def test_an_open_file_can_be_linked_by_its_descriptor(work: Path) -> None:
    fd = os.open(make("file", work / "x"), os.O_RDONLY)
    link_descriptor(fd, work / "y")
    assert (work / "y").samefile(work / "x")
    os.close(fd)


def test_what_has_lost_its_last_name_gets_no_new_one(work: Path) -> None:
    path = make("file", work / "x")
    fd = os.open(path, os.O_RDWR)
    path.unlink()
    assert errno_of(link_descriptor, fd, work / "y") == "ENOENT"
    assert errno_of(link_followed, f"/proc/self/fd/{fd}", work / "y") == "ENOENT"
    os.close(fd)


def test_other_peoples_files_can_be_linked_only_by_those_who_may_write_them(work: Path) -> None:
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("this machine does not protect hard links")
    path = make("file", work / "x", ALICE, 0o644)
    with acting_as(BOB):
        assert errno_of(link, path, work / "y") == "EPERM"
    path.chmod(0o666)
    with acting_as(BOB):
        link(path, work / "y")


def test_linking_to_another_file_system_is_exdev(work: Path, tmp_path: Path) -> None:
    assert errno_of(link, make("file", work / "x"), tmp_path / "y") == "EXDEV"
    assert errno_of(link, make("file", tmp_path / "x"), work / "y") == "EXDEV"


def test_a_file_has_up_to_65000_names(mount: TestMount, work: Path) -> None:
    path = make("file", work / "x")
    mount.unmount()
    try:
        set_nlink(mount, path, 64_999)
    finally:
        mount.mount()
    link(path, work / "y")
    assert nlink(path) == 65_000
    assert errno_of(link, path, work / "z") == "EMLINK"
    (work / "y").unlink()
    mount.unmount()
    try:
        set_nlink(mount, path, 1)
    finally:
        mount.mount()


def set_nlink(mount: TestMount, path: Path, count: int) -> None:
    """As if it had so many names: making them takes a while."""
    from nasfs.volume import ROOT_INO, Ino, open_volume

    with open_volume(mount.volume_path) as volume:
        ino = ROOT_INO
        for name in path.relative_to(mount.root).parts:
            ino = volume.lookup(ino, name.encode()).ino
        volume._put(volume.getattr(Ino(ino)), nlink=count)
