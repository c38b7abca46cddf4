"""unlink(2), and what is left of a file that is still open."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.posix.calls import NOT_DIRECTORIES, errno_of, make, times_changed
from tests.posix.users import ALICE, BOB, ROOT, User, acting_as

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_the_name_is_gone(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    assert times_changed(work, path.unlink) == {"mtime", "ctime"}
    assert errno_of(os.lstat, path) == "ENOENT"
    assert os.listdir(work) == []


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_other_names_of_it_stay(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    os.link(path, work / "y", follow_symlinks=False)
    assert times_changed(work / "y", path.unlink) == {"ctime"}
    assert os.lstat(work / "y").st_nlink == 1


def test_a_directory_is_eisdir(work: Path) -> None:
    path = make("directory", work / "x", ALICE)
    assert errno_of(os.unlink, path) == "EISDIR"
    with acting_as(ALICE):
        assert errno_of(os.unlink, path) == "EISDIR"


def test_the_mode_of_the_file_does_not_matter(work: Path) -> None:
    path = make("file", work / "x", BOB, 0)
    with acting_as(ALICE):
        path.unlink()


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
@pytest.mark.parametrize("directory_of", [ROOT, ALICE, BOB], ids=["root's", "mine", "bob's"])
@pytest.mark.parametrize("object_of", [ROOT, ALICE, BOB], ids=["root's", "mine", "bob's"])
def test_a_sticky_directory_lets_its_owner_and_theirs_remove(
    work: Path, kind: str, directory_of: User, object_of: User
) -> None:
    sticky = make("directory", work / "sticky", directory_of, 0o1777)
    path = make(kind, sticky / "x", object_of, 0o777)
    with acting_as(ALICE):
        found = errno_of(os.unlink, path)
    assert found == ("ok" if ALICE in (directory_of, object_of) else "EPERM")


def test_an_open_file_without_a_name_is_a_file(work: Path) -> None:
    path = work / "x"
    with path.open("w+b", buffering=0) as file:
        file.write(b"before")
        path.unlink()
        file.write(b" and after")
        file.seek(0)
        assert file.read() == b"before and after"
        os.ftruncate(file.fileno(), 6)
        found = os.fstat(file.fileno())
        assert (found.st_nlink, found.st_size) == (0, 6)
        os.fchmod(file.fileno(), 0o123)
        os.fchown(file.fileno(), 4, 5)
        os.setxattr(file.fileno(), "user.x", b"y")
        os.utime(file.fileno(), ns=(1, 2))
        os.fsync(file.fileno())
        found = os.fstat(file.fileno())
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o123, 4, 5)
        assert (found.st_atime_ns, found.st_mtime_ns) == (1, 2)
        assert os.getxattr(file.fileno(), "user.x") == b"y"
        with open(f"/proc/self/fd/{file.fileno()}", "rb") as again:
            assert again.read() == b"before"


def test_a_mapping_outlives_name_and_descriptor(work: Path) -> None:
    path = work / "x"
    path.write_bytes(b"a" * 8192)
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 8192)
    path.unlink()
    memory[4096:4100] = b"bcde"
    memory.flush()
    assert memory[4094:4102] == b"aabcdeaa"
    memory.close()


def test_a_name_can_be_taken_again_at_once(work: Path) -> None:
    path = work / "x"
    path.write_bytes(b"old")
    with path.open("rb") as old:
        path.unlink()
        path.write_bytes(b"new")
        assert old.read() == b"old"
        assert path.read_bytes() == b"new"
        assert os.fstat(old.fileno()).st_ino != path.stat().st_ino


def test_a_socket_in_use_can_be_unlinked(work: Path) -> None:
    path = make("socket", work / "x")
    path.unlink()
    make("socket", path)
