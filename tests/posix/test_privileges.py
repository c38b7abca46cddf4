"""Which changes take the SUID and SGID bits and the capabilities from a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.calls import CAPABILITY, errno_of, make, mode_of
from tests.posix.users import ALICE, BOB, BOB_IN_TEAM, ROOT, TEAM, User, acting_as

pytestmark = pytest.mark.mount

Change = Callable[[Path], None]


def write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def ftruncate(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(fd, 1)
    finally:
        os.close(fd)


def open_truncating(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def open_creating_and_truncating(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))


CHANGES: list[Change] = [
    write,
    append,
    truncate,
    ftruncate,
    open_truncating,
    open_creating_and_truncating,
]

each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@each_change
@pytest.mark.parametrize("user", [ALICE, BOB_IN_TEAM, BOB], ids=["owner", "member", "stranger"])
@pytest.mark.parametrize("bits", [0o4000, 0o2000, 0o6000])
def test_a_change_takes_the_bits_of_what_can_be_executed(
    work: Path, change: Change, user: User, bits: int
) -> None:
    path = make("file", work / "x", User(ALICE.uid, TEAM), bits | 0o777)
    with acting_as(user):
        change(path)
        assert mode_of(path) == 0o777


@each_change
def test_root_leaves_them(work: Path, change: Change) -> None:
    path = make("file", work / "x", ALICE, 0o6777)
    with acting_as(ROOT):
        change(path)
    assert mode_of(path) == 0o6777


@each_change
def test_the_suid_bit_goes_from_what_nobody_can_execute_too(work: Path, change: Change) -> None:
    path = make("file", work / "x", ALICE, 0o4666)
    with acting_as(ALICE):
        change(path)
    assert mode_of(path) == 0o666


@each_change
def test_an_sgid_bit_without_execution_by_the_group_stays_with_its_members(
    work: Path, change: Change
) -> None:
    path = make("file", work / "x", User(ALICE.uid, TEAM), 0o2666)
    with acting_as(BOB_IN_TEAM):
        change(path)
    assert mode_of(path) == 0o2666


@pytest.mark.parametrize("change", CHANGES[2:], ids=lambda change: change.__name__)
def test_and_goes_when_a_stranger_changes_the_file(work: Path, change: Change) -> None:
    path = make("file", work / "x", User(ALICE.uid, TEAM), 0o2666)
    with acting_as(BOB):
        change(path)
    assert mode_of(path) == 0o666


@each_change
@pytest.mark.parametrize("user", [ROOT, ALICE], ids=["root", "owner"])
def test_capabilities_go_with_every_change(work: Path, change: Change, user: User) -> None:
    path = make("file", work / "x", ALICE, 0o755)
    for _ in range(2):
        os.setxattr(path, "security.capability", CAPABILITY)
        assert os.getxattr(path, "security.capability") == CAPABILITY
        with acting_as(user):
            change(path)
        assert errno_of(os.getxattr, path, "security.capability") == "ENODATA"
    assert mode_of(path) == 0o755


def test_reading_and_changes_of_the_mode_leave_capabilities(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o755)
    os.setxattr(path, "security.capability", CAPABILITY)
    path.read_bytes()
    path.chmod(0o700)
    os.utime(path)
    os.link(path, work / "y")
    assert os.getxattr(work / "y", "security.capability") == CAPABILITY


def test_a_program_that_was_written_runs_without_them_at_once(work: Path) -> None:
    path = work / "id"
    shutil.copy("/usr/bin/id", path)

    def run() -> str:
        done = subprocess.run(
            [str(path), "-u"],
            user=BOB.uid,
            group=BOB.gid,
            extra_groups=[],
            capture_output=True,
            encoding="ascii",
            check=True,
        )
        return done.stdout.strip()

    for _ in range(3):
        path.chmod(0o4777)
        assert run() == "0"
        with acting_as(ALICE):
            append(path)
        assert run() == str(BOB.uid)
