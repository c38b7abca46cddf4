"""chmod(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.posix.calls import KINDS, NOT_LINKS, errno_of, make, mode_of, open_close, times_changed
from tests.posix.users import ALICE, BOB, BOB_IN_TEAM, TEAM, User, acting_as

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("kind", NOT_LINKS)
@pytest.mark.parametrize("mode", [0o000, 0o111, 0o222, 0o444, 0o1751, 0o7777])
def test_root_sets_all_twelve_bits(work: Path, kind: str, mode: int) -> None:
    path = make(kind, work / "x")
    path.chmod(mode)
    assert mode_of(path) == mode


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_a_symlink_is_followed_and_keeps_its_own_mode(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    (work / "link").symlink_to("x")
    os.chmod(work / "link", 0o222)
    assert mode_of(path) == 0o222
    assert mode_of(work / "link") == 0o777


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_it_moves_ctime_alone(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    assert times_changed(path, lambda: path.chmod(0o111)) == {"ctime"}
    assert times_changed(work, lambda: path.chmod(0o222)) == set()


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_only_the_owner_and_root_may(work: Path, kind: str) -> None:
    path = make(kind, work / "x", ALICE)
    with acting_as(ALICE):
        path.chmod(0o640)
    path.chmod(0o644)
    with acting_as(BOB):
        assert errno_of(path.chmod, 0o666) == "EPERM"
        assert times_changed(path, lambda: errno_of(path.chmod, 0o666)) == set()
    assert mode_of(path) == 0o644


def test_write_permission_is_not_enough(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o666)
    with acting_as(BOB):
        assert errno_of(path.chmod, 0o666) == "EPERM"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_sgid_bit_goes_when_a_stranger_to_the_group_sets_it(work: Path, kind: str) -> None:
    path = make(kind, work / "x", BOB)
    with acting_as(BOB):
        path.chmod(0o2755)
        assert mode_of(path) == 0o2755
    os.chown(path, BOB.uid, TEAM)
    with acting_as(BOB):
        path.chmod(0o2755)
        assert mode_of(path) == 0o755
    with acting_as(BOB_IN_TEAM):
        path.chmod(0o2755)
        assert mode_of(path) == 0o2755


def test_owners_set_the_sticky_bit(work: Path) -> None:
    for kind in ("file", "directory"):
        path = make(kind, work / kind, ALICE)
        with acting_as(ALICE):
            path.chmod(0o1644)
        assert mode_of(path) == 0o1644


def test_a_descriptor_will_do(work: Path) -> None:
    path = make("file", work / "x", ALICE)
    fd = os.open(path, os.O_RDONLY)
    try:
        with acting_as(ALICE):
            os.fchmod(fd, 0o600)
        assert mode_of(path) == 0o600
        with acting_as(BOB):
            assert errno_of(os.fchmod, fd, 0o666) == "EPERM"
    finally:
        os.close(fd)


def test_what_was_open_stays_open(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o600)
    with acting_as(ALICE), path.open("r+b", buffering=0) as file:
        path.chmod(0)
        file.write(b"still")
        assert errno_of(path.open, "rb") == "EACCES"


@pytest.mark.parametrize(
    ("user", "readable", "writable"), [(ALICE, True, False), (BOB_IN_TEAM, False, True)]
)
def test_the_first_class_that_fits_decides(
    work: Path, user: User, readable: bool, writable: bool
) -> None:
    path = make("file", work / "x", User(ALICE.uid, TEAM), 0o427)
    with acting_as(user):
        assert errno_of(open_close, path, os.O_RDONLY) == ("ok" if readable else "EACCES")
        assert errno_of(open_close, path, os.O_WRONLY) == ("ok" if writable else "EACCES")
        assert errno_of(open_close, path, os.O_RDWR) == "EACCES"
    with acting_as(BOB):
        path.open("r+b").close()


def test_symlinks_have_no_mode_of_their_own(work: Path) -> None:
    assert mode_of(make("symlink", work / "x")) == 0o777
    assert set(KINDS) - set(NOT_LINKS) == {"symlink"}
