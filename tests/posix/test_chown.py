"""chown(2) and lchown(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.posix.calls import (
    CAPABILITY,
    KINDS,
    NOT_LINKS,
    errno_of,
    make,
    mode_of,
    owner_of,
    times_changed,
)
from tests.posix.users import ALICE, BOB, BOB_IN_TEAM, TEAM, acting_as

pytestmark = pytest.mark.mount

HIGHEST = 0xFFFFFFFE


@pytest.mark.parametrize("kind", KINDS)
def test_root_gives_things_to_anybody(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    for uid, gid in ((123, 456), (HIGHEST, HIGHEST), (0, 0)):
        os.lchown(path, uid, gid)
        assert owner_of(path) == (uid, gid)


@pytest.mark.parametrize("kind", KINDS)
def test_minus_one_leaves_an_id_as_it_is(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    os.lchown(path, 1, 2)
    os.lchown(path, 3, -1)
    assert owner_of(path) == (3, 2)
    os.lchown(path, -1, 4)
    assert owner_of(path) == (3, 4)


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_chown_follows_symlinks_and_lchown_does_not(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    link = work / "link"
    link.symlink_to("x")
    os.chown(link, 1, 2)
    assert (owner_of(path), owner_of(link)) == ((1, 2), (0, 0))
    os.lchown(link, 3, 4)
    assert (owner_of(path), owner_of(link)) == ((1, 2), (3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_gives_things_to_groups_of_his(work: Path, kind: str) -> None:
    path = make(kind, work / "x", BOB)
    with acting_as(BOB_IN_TEAM):
        os.lchown(path, -1, TEAM)
        assert owner_of(path) == (BOB.uid, TEAM)
        os.lchown(path, BOB.uid, BOB.gid)
        assert owner_of(path) == (BOB.uid, BOB.gid)


@pytest.mark.parametrize("kind", KINDS)
def test_anything_else_is_eperm(work: Path, kind: str) -> None:
    path = make(kind, work / "x", BOB)
    with acting_as(BOB_IN_TEAM):
        assert errno_of(os.lchown, path, ALICE.uid, -1) == "EPERM"
        assert errno_of(os.lchown, path, ALICE.uid, TEAM) == "EPERM"
        assert errno_of(os.lchown, path, -1, ALICE.gid) == "EPERM"
    with acting_as(ALICE):
        assert errno_of(os.lchown, path, ALICE.uid, ALICE.gid) == "EPERM"
        assert errno_of(os.lchown, path, -1, ALICE.gid) == "EPERM"
        assert errno_of(os.lchown, path, BOB.uid, -1) == "EPERM"
    assert owner_of(path) == (BOB.uid, BOB.gid)


@pytest.mark.parametrize("kind", KINDS)
def test_changing_nothing_is_allowed_to_all(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    with acting_as(ALICE):
        os.lchown(path, -1, -1)
    assert owner_of(path) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_ctime_alone(work: Path, kind: str) -> None:
    path = make(kind, work / "x", BOB)
    assert times_changed(path, lambda: os.lchown(path, BOB.uid, 7)) == {"ctime"}
    with acting_as(BOB_IN_TEAM):
        assert times_changed(path, lambda: os.lchown(path, -1, TEAM)) == {"ctime"}
        refused = times_changed(path, lambda: errno_of(os.lchown, path, 0, 0))
    assert refused == set()


@pytest.mark.parametrize("kind", [kind for kind in NOT_LINKS if kind != "directory"])
def test_the_suid_and_sgid_bits_go_when_an_owner_does_it(work: Path, kind: str) -> None:
    path = make(kind, work / "x", BOB, 0o6555)
    with acting_as(BOB_IN_TEAM):
        os.chown(path, -1, TEAM)
    assert (mode_of(path), owner_of(path)) == (0o555, (BOB.uid, TEAM))
    path.chmod(0o6555)
    with acting_as(BOB_IN_TEAM):
        os.chown(path, BOB.uid, BOB.gid)
    assert mode_of(path) == 0o555


def test_a_directory_keeps_them(work: Path) -> None:
    path = make("directory", work / "x", BOB, 0o6555)
    with acting_as(BOB_IN_TEAM):
        os.chown(path, -1, TEAM)
    assert mode_of(path) == 0o6555


def test_an_sgid_bit_without_execution_by_the_group_stays_with_its_members(work: Path) -> None:
    path = make("file", work / "x", BOB, 0o2644)
    with acting_as(BOB_IN_TEAM):
        os.chown(path, -1, TEAM)
    assert mode_of(path) == 0o2644


def test_root_takes_the_bits_of_what_can_be_executed(work: Path) -> None:
    path = make("file", work / "x", BOB, 0o6755)
    os.chown(path, ALICE.uid, ALICE.gid)
    assert mode_of(path) == 0o755


@pytest.mark.parametrize(("uid", "gid"), [(1, 1), (-1, TEAM)])
def test_capabilities_go(work: Path, uid: int, gid: int) -> None:
    path = make("file", work / "x", BOB, 0o755)
    os.setxattr(path, "security.capability", CAPABILITY)
    os.chown(path, uid, gid)
    assert errno_of(os.getxattr, path, "security.capability") == "ENODATA"
    assert mode_of(path) == 0o755


def test_access_follows_the_new_owner_at_once(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o600)
    with acting_as(BOB):
        assert errno_of(path.open, "rb") == "EACCES"
    os.chown(path, BOB.uid, BOB.gid)
    with acting_as(BOB):
        path.open("rb").close()
    with acting_as(ALICE):
        assert errno_of(path.open, "rb") == "EACCES"


def test_a_descriptor_will_do(work: Path) -> None:
    path = make("file", work / "x", BOB)
    fd = os.open(path, os.O_RDONLY)
    try:
        with acting_as(BOB_IN_TEAM):
            os.fchown(fd, -1, TEAM)
            assert errno_of(os.fchown, fd, 0, -1) == "EPERM"
        assert owner_of(path) == (BOB.uid, TEAM)
    finally:
        os.close(fd)
