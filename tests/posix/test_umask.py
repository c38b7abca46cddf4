"""The umask, and default lists that take its place: acl(5), "Object creation and default ACLs"."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.calls import mode_of, open_close
from tests.posix.test_acl import DEFAULT, get_acl, set_acl
from tests.posix.users import ALICE, BOB, acting_as

pytestmark = pytest.mark.mount

Make = Callable[[Path, int], None]


def create(path: Path, mode: int) -> None:
    open_close(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)


def mknod(path: Path, mode: int) -> None:
    os.mknod(path, stat.S_IFREG | mode)


each_call = pytest.mark.parametrize(
    "make", [create, mknod, os.mkfifo, os.mkdir], ids=["open", "mknod", "mkfifo", "mkdir"]
)


@each_call
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077, 0o777])
def test_without_a_list_the_umask_counts(work: Path, make: Make, umask: int) -> None:
    with acting_as(ALICE, umask):
        make(work / "x", 0o777)
    assert mode_of(work / "x") == 0o777 & ~umask


@each_call
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_with_a_list_it_does_not(work: Path, make: Make, umask: int) -> None:
    set_acl(work, f"u::rwx u:{BOB.uid}:rw- g::r-x m::rwx o::r--", DEFAULT)
    with acting_as(ALICE, umask):
        make(work / "x", 0o776)
    assert mode_of(work / "x") == 0o774
    assert get_acl(work / "x") == f"u::rwx u:{BOB.uid}:rw- g::r-x m::rwx o::r--"


@each_call
def test_a_minimal_list_counts_just_as_much(work: Path, make: Make) -> None:
    set_acl(work, "u::rwx g::rwx o::---", DEFAULT)
    with acting_as(ALICE, 0o077):
        make(work / "x", 0o777)
    assert (mode_of(work / "x"), get_acl(work / "x")) == (0o770, "")


def test_below_a_list_everything_is_as_the_list_says(work: Path) -> None:
    text = f"u::rwx u:{BOB.uid}:rwx g::r-x m::rwx o::---"
    set_acl(work, text, DEFAULT)
    with acting_as(ALICE, 0o077):
        os.makedirs(work / "a/b")
        create(work / "a/b/x", 0o666)
    assert get_acl(work / "a/b", DEFAULT) == text
    with acting_as(BOB):
        (work / "a/b/x").write_bytes(b"written by one whom the list names")
