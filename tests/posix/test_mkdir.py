"""mkdir(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.posix.calls import KINDS, errno_of, make, mode_of, owner_of, times_changed
from tests.posix.users import ALICE, BOB, BOB_IN_TEAM, TEAM, acting_as

pytestmark = pytest.mark.mount


@pytest.mark.parametrize(
    ("mode", "umask", "result"),
    [
        (0o755, 0, 0o755),
        (0o151, 0, 0o151),
        (0o151, 0o77, 0o100),
        (0o345, 0o70, 0o305),
        (0o345, 0o501, 0o244),
        (0o1777, 0o22, 0o1755),
    ],
)
def test_the_umask_is_taken_from_the_mode(work: Path, mode: int, umask: int, result: int) -> None:
    with acting_as(ALICE, umask):
        os.mkdir(work / "x", mode)
    assert mode_of(work / "x") == result
    assert stat.S_ISDIR((work / "x").stat().st_mode)


def test_it_belongs_to_the_caller(work: Path) -> None:
    with acting_as(ALICE):
        os.mkdir(work / "x")
    assert owner_of(work / "x") == (ALICE.uid, ALICE.gid)


def test_an_sgid_directory_passes_its_group_and_bit_on(work: Path) -> None:
    shared = make("directory", work / "shared")
    os.chown(shared, 0, TEAM)
    shared.chmod(0o2777)
    with acting_as(BOB):
        os.makedirs(shared / "1" / "2")
    for path in (shared / "1", shared / "1" / "2"):
        assert owner_of(path) == (BOB.uid, TEAM)
        assert mode_of(path) & stat.S_ISGID


def test_the_sgid_bit_itself_can_not_be_asked_for(work: Path) -> None:
    with acting_as(BOB_IN_TEAM):
        os.mkdir(work / "x", 0o2755)
    assert mode_of(work / "x") == 0o755


def test_it_moves_the_times_of_the_directory_above_and_its_links(work: Path) -> None:
    assert times_changed(work, lambda: os.mkdir(work / "x")) == {"mtime", "ctime"}
    found = (work / "x").stat()
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns
    assert (work.stat().st_nlink, found.st_nlink) == (3, 2)


def test_it_is_empty_but_for_itself_and_the_one_above(work: Path) -> None:
    os.mkdir(work / "x")
    assert os.listdir(work / "x") == []
    assert (work / "x" / "..").samefile(work)
    assert (work / "x" / ".").samefile(work / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_taken_is_eexist(work: Path, kind: str) -> None:
    make(kind, work / "x")
    assert times_changed(work, lambda: errno_of(os.mkdir, work / "x")) == set()
    assert errno_of(os.mkdir, work / "x") == "EEXIST"
    assert errno_of(os.mkdir, work / ".") == "EEXIST"
    assert errno_of(os.mkdir, work / "..") == "EEXIST"


def test_in_a_directory_that_is_gone_is_enoent(work: Path) -> None:
    gone = work / "gone"
    gone.mkdir()
    fd = os.open(gone, os.O_RDONLY)
    gone.rmdir()
    assert errno_of(os.mkdir, "x", dir_fd=fd) == "ENOENT"
    os.close(fd)


def test_names_may_hold_any_bytes(work: Path) -> None:
    names = [bytes([value]) * 3 for value in range(1, 256) if value not in b"./"]
    names += [b"...", b" ", b"\n", b"-", b"a" * 255, b"\xff" * 255, "ü€😀".encode()]
    for name in names:
        os.mkdir(os.fsencode(work) + b"/" + name)
    assert sorted(os.listdir(os.fsencode(work))) == sorted(names)
