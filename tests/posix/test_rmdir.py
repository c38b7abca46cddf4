"""rmdir(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.posix.calls import KINDS, NOT_DIRECTORIES, errno_of, make, open_close, times_changed
from tests.posix.users import ALICE, BOB, ROOT, User, acting_as

pytestmark = pytest.mark.mount


def test_the_directory_is_gone_and_so_is_a_link_of_the_one_above(work: Path) -> None:
    path = make("directory", work / "x")
    assert work.stat().st_nlink == 3
    assert times_changed(work, path.rmdir) == {"mtime", "ctime"}
    assert errno_of(os.lstat, path) == "ENOENT"
    assert work.stat().st_nlink == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_with_anything_in_it_is_enotempty(work: Path, kind: str) -> None:
    path = make("directory", work / "x")
    make(kind, path / "y")
    assert errno_of(path.rmdir) in ("ENOTEMPTY", "EEXIST")
    assert times_changed(work, lambda: errno_of(path.rmdir)) == set()


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_anything_else_is_enotdir(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    assert errno_of(path.rmdir) == "ENOTDIR"


def test_a_symlink_to_a_directory_is_enotdir(work: Path) -> None:
    make("directory", work / "x")
    (work / "link").symlink_to("x")
    assert errno_of(os.rmdir, work / "link") == "ENOTDIR"
    assert errno_of(os.rmdir, f"{work}/link/") == "ENOTDIR"


def test_dot_and_dotdot(work: Path) -> None:
    make("directory", work / "x")
    assert errno_of(os.rmdir, f"{work}/x/.") == "EINVAL"
    assert errno_of(os.rmdir, f"{work}/x/..") in ("ENOTEMPTY", "EEXIST")


def test_the_root_of_a_mount_is_ebusy(root: Path) -> None:
    assert errno_of(os.rmdir, root) == "EBUSY"


@pytest.mark.parametrize("directory_of", [ROOT, ALICE, BOB], ids=["root's", "mine", "bob's"])
@pytest.mark.parametrize("object_of", [ROOT, ALICE, BOB], ids=["root's", "mine", "bob's"])
def test_a_sticky_directory_lets_its_owner_and_theirs_remove(
    work: Path, directory_of: User, object_of: User
) -> None:
    sticky = make("directory", work / "sticky", directory_of, 0o1777)
    path = make("directory", sticky / "x", object_of, 0o777)
    with acting_as(ALICE):
        found = errno_of(path.rmdir)
    assert found == ("ok" if ALICE in (directory_of, object_of) else "EPERM")


def test_who_stands_in_it_finds_nothing_more(work: Path) -> None:
    path = make("directory", work / "x")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    path.rmdir()
    try:
        found = os.fstat(fd)
        assert found.st_nlink == 0
        assert os.listdir(fd) == []
        assert errno_of(open_close, "y", os.O_CREAT, dir_fd=fd) == "ENOENT"
        assert errno_of(os.mkdir, "y", dir_fd=fd) == "ENOENT"
        assert errno_of(os.symlink, "t", "y", dir_fd=fd) == "ENOENT"
        assert errno_of(os.mknod, "y", dir_fd=fd) == "ENOENT"
        other = make("file", work / "other")
        assert errno_of(os.rename, other, "y", dst_dir_fd=fd) == "ENOENT"
        assert errno_of(os.link, other, "y", dst_dir_fd=fd) == "ENOENT"
        assert errno_of(os.stat, ".", dir_fd=fd) == "ok"
        assert os.stat("..", dir_fd=fd).st_ino == work.stat().st_ino
        os.fchmod(fd, 0o700)
        os.setxattr(fd, "user.x", b"still here")
        assert os.getxattr(fd, "user.x") == b"still here"
    finally:
        os.close(fd)


def test_a_new_directory_of_that_name_is_another_one(work: Path) -> None:
    path = make("directory", work / "x")
    fd = os.open(path, os.O_RDONLY)
    path.rmdir()
    path.mkdir()
    make("file", path / "y")
    assert os.listdir(fd) == []
    assert os.fstat(fd).st_ino != path.stat().st_ino
    os.close(fd)
