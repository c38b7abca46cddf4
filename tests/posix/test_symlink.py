"""symlink(2) and readlink(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.posix.calls import KINDS, errno_of, make, owner_of, times_changed
from tests.posix.users import ALICE, BOB, TEAM, acting_as

pytestmark = pytest.mark.mount


@pytest.mark.parametrize(
    "target", ["x", "/etc/passwd", "../..", "no/such/thing", "a" * 255, "b" * 1000, "ü" * 500]
)
def test_the_target_is_kept_as_it_is(work: Path, target: str) -> None:
    os.symlink(target, work / "link")
    assert os.readlink(work / "link") == target
    found = os.lstat(work / "link")
    assert found.st_mode == stat.S_IFLNK | 0o777
    assert found.st_size == len(os.fsencode(target))
    assert found.st_nlink == 1


@pytest.mark.usefixtures("mount")  # others have less room
def test_targets_have_up_to_4095_bytes(work: Path) -> None:
    os.symlink("t" * 4095, work / "link")
    assert os.readlink(work / "link") == "t" * 4095


def test_targets_are_neither_empty_nor_longer(work: Path) -> None:
    assert errno_of(os.symlink, "t" * 4096, work / "longer") == "ENAMETOOLONG"
    assert errno_of(os.symlink, "", work / "empty") == "ENOENT"
    raw = bytes(range(1, 256))
    os.symlink(raw, os.fsencode(work / "bytes"))
    assert os.readlink(os.fsencode(work / "bytes")) == raw


def test_it_belongs_to_the_caller_whatever_the_umask(work: Path) -> None:
    with acting_as(ALICE, 0o77):
        os.symlink("x", work / "link")
    assert owner_of(work / "link") == (ALICE.uid, ALICE.gid)
    assert stat.S_IMODE(os.lstat(work / "link").st_mode) == 0o777


def test_an_sgid_directory_passes_its_group_on(work: Path) -> None:
    os.chown(work, 0, TEAM)
    work.chmod(0o2777)
    with acting_as(BOB):
        os.symlink("x", work / "link")
    assert owner_of(work / "link") == (BOB.uid, TEAM)


def test_it_moves_the_times_of_the_directory(work: Path) -> None:
    assert times_changed(work, lambda: os.symlink("x", work / "link")) == {"mtime", "ctime"}
    found = os.lstat(work / "link")
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_taken_is_eexist(work: Path, kind: str) -> None:
    make(kind, work / "x")
    assert errno_of(os.symlink, "t", work / "x") == "EEXIST"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "symlink"])
def test_only_symlinks_can_be_read_as_such(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    assert errno_of(os.readlink, path) == "EINVAL"


def test_reading_needs_no_permission_on_it(work: Path) -> None:
    os.symlink("t", work / "link")
    with acting_as(ALICE):
        assert os.readlink(work / "link") == "t"


def test_following_them(work: Path) -> None:
    (work / "d").mkdir()
    (work / "d/file").write_text("content")
    for name, target in {
        "relative": "d/file",
        "absolute": f"{work}/d/file",
        "twice": "relative",
        "through": "d/../d/./file",
    }.items():
        (work / name).symlink_to(target)
        assert (work / name).read_text() == "content"
    (work / "directory").symlink_to("d")
    assert os.listdir(work / "directory") == ["file"]
    (work / "directory/file").unlink()
    assert not (work / "d/file").exists()
    assert (work / "directory").is_symlink()
