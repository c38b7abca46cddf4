"""What the snapshots below `.snapshots` answer: nothing in them ever changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounts import TestMount
from tests.posix.calls import (
    RENAME_EXCHANGE,
    errno_of,
    make,
    open_close,
    renameat2,
    utimensat,
)
from tests.posix.users import ALICE, BOB, ROOT, User, acting_as

pytestmark = pytest.mark.mount


@pytest.fixture
def then(mount: TestMount, work: Path) -> Iterator[Path]:
    """A directory of a snapshot, with one of each kind that matters."""
    make("file", work / "file", ALICE, 0o666)
    make("directory", work / "directory", ALICE, 0o777)
    make("directory", work / "full", ALICE, 0o777)
    make("file", work / "full/file", ALICE, 0o666)
    make("fifo", work / "fifo", ALICE, 0o666)
    os.symlink("file", work / "link")
    os.setxattr(work / "file", "user.x", b"v")
    (work / "file").write_bytes(b"content")
    mount.snapshot(work.name)
    yield mount.root / ".snapshots" / work.name / work.name
    mount.control.call("snapshot_destroy", names=[work.name])


CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda then: os.chmod(then / "file", 0o600),
    "chown": lambda then: os.chown(then / "file", 0, 0),
    "lchown of a symlink": lambda then: os.lchown(then / "link", 0, 0),
    "chown of a directory": lambda then: os.chown(then / "directory", 0, 0),
    "utimensat": lambda then: os.utime(then / "file", ns=(1, 1)),
    "utimensat with now": lambda then: utimensat(then / "file", (0, (1 << 30) - 1), (0, 0)),
    "truncate": lambda then: os.truncate(then / "file", 0),
    "open for writing": lambda then: open_close(then / "file", os.O_WRONLY),
    "open for both": lambda then: open_close(then / "file", os.O_RDWR),
    "open with O_TRUNC": lambda then: open_close(then / "file", os.O_RDONLY | os.O_TRUNC),
    "open for appending": lambda then: open_close(then / "file", os.O_WRONLY | os.O_APPEND),
    "open with O_CREAT": lambda then: open_close(then / "new", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda then: os.mkdir(then / "new"),
    "mknod": lambda then: os.mknod(then / "new", stat.S_IFREG | 0o644),
    "mkfifo": lambda then: os.mkfifo(then / "new"),
    "symlink": lambda then: os.symlink("t", then / "new"),
    "link": lambda then: os.link(then / "file", then / "new"),
    "unlink": lambda then: os.unlink(then / "file"),
    "rmdir": lambda then: os.rmdir(then / "directory"),
    "rmdir of a full one": lambda then: os.rmdir(then / "full"),
    "rename": lambda then: os.rename(then / "file", then / "new"),
    "rename over": lambda then: os.rename(then / "file", then / "fifo"),
    "exchange": lambda then: renameat2(then / "file", then / "directory", RENAME_EXCHANGE),
    "setxattr": lambda then: os.setxattr(then / "file", "user.x", b"w"),
    "setxattr of a new one": lambda then: os.setxattr(then / "file", "user.y", b"w"),
    "removexattr": lambda then: os.removexattr(then / "file", "user.x"),
}


@pytest.mark.parametrize("user", [ROOT, ALICE], ids=["root", "owner"])
def test_every_change_is_erofs(then: Path, user: User) -> None:
    expected = dict.fromkeys(CHANGES, "EROFS")
    if user == ALICE:
        expected["lchown of a symlink"] = "EPERM"
        expected["chown"] = expected["chown of a directory"] = "EPERM"
    with acting_as(user):
        assert {name: errno_of(change, then) for name, change in CHANGES.items()} == expected
    assert (then / "file").read_bytes() == b"content"


def test_what_is_there_is_told_before_that(then: Path) -> None:
    assert errno_of(os.mkdir, then / "file") == "EEXIST"
    assert errno_of(os.unlink, then / "gone") == "ENOENT"
    assert errno_of(open_close, then / "gone", os.O_RDONLY) == "ENOENT"
    assert errno_of(os.unlink, then / "directory") == "EISDIR"
    with acting_as(BOB):
        assert errno_of(os.chmod, then / "file", 0o600) == "EPERM"


def test_nothing_moves_between_a_snapshot_and_now(then: Path, work: Path) -> None:
    for name in ("file", "directory"):
        assert errno_of(os.rename, then / name, work / "new") == "EXDEV"
        assert errno_of(os.rename, work / name, then / "new") == "EXDEV"
    assert errno_of(os.link, then / "file", work / "new") == "EXDEV"
    assert errno_of(os.link, work / "file", then / "new") == "EXDEV"
    assert errno_of(renameat2, work / "file", then / "file", RENAME_EXCHANGE) == "EXDEV"


def test_reading_works_as_ever(then: Path) -> None:
    with acting_as(BOB):
        assert (then / "file").read_bytes() == b"content"
        assert os.readlink(then / "link") == "file"
        assert (then / "link").read_bytes() == b"content"
        assert sorted(os.listdir(then)) == ["directory", "fifo", "file", "full", "link"]
        assert os.getxattr(then / "file", "user.x") == b"v"
        assert os.stat(then / "file").st_uid == ALICE.uid
        assert os.access(then / "file", os.R_OK)
        assert (
            not os.access(then / "file", os.W_OK)
            or errno_of(open_close, then / "file", os.O_WRONLY) == "EROFS"
        )


def test_modes_are_enforced_in_them(mount: TestMount, work: Path) -> None:
    make("file", work / "secret", ALICE, 0o600)
    mount.snapshot("secret")
    (work / "secret").chmod(0o644)
    path = mount.root / ".snapshots/secret" / work.name / "secret"
    with acting_as(BOB):
        assert errno_of(open_close, path, os.O_RDONLY) == "EACCES"
        assert errno_of(open_close, work / "secret", os.O_RDONLY) == "ok"
    with acting_as(ALICE):
        assert errno_of(open_close, path, os.O_RDONLY) == "ok"


def test_the_directory_of_snapshots_does_not_change_either(mount: TestMount, then: Path) -> None:
    snapshots, name = mount.root / ".snapshots", then.parent.name
    found = {
        "mkdir": errno_of(os.mkdir, snapshots / "new"),
        "create": errno_of(open_close, snapshots / "new", os.O_CREAT | os.O_WRONLY),
        "symlink": errno_of(os.symlink, "t", snapshots / "new"),
        "rmdir": errno_of(os.rmdir, snapshots / name),
        "rename": errno_of(os.rename, snapshots / name, snapshots / "new"),
        "chmod": errno_of(os.chmod, snapshots, 0o777),
        "chown": errno_of(os.chown, snapshots, 1, 1),
        "utimensat": errno_of(os.utime, snapshots, ns=(1, 1)),
        "setxattr": errno_of(os.setxattr, snapshots, "user.x", b""),
        "removing it": errno_of(os.rmdir, snapshots),
        "renaming it": errno_of(os.rename, snapshots, mount.root / "new"),
        "replacing it": errno_of(os.rename, then.parents[2] / then.name, snapshots),
    }
    assert found == dict.fromkeys(found, "EROFS")
    assert errno_of(os.unlink, snapshots) == "EISDIR"
    assert name in os.listdir(snapshots)


def test_nothing_else_can_have_its_name_in_the_root(mount: TestMount, work: Path) -> None:
    name = mount.root / ".snapshots"
    assert errno_of(os.mkdir, name) == "EEXIST"
    assert errno_of(os.symlink, "t", name) == "EEXIST"
    assert errno_of(os.mknod, name) == "EEXIST"
    assert errno_of(open_close, name, os.O_CREAT | os.O_WRONLY) == "EISDIR"
    assert errno_of(os.link, make("file", work / "x"), name) == "EEXIST"
    assert errno_of(os.rename, work / "x", name) in ("EISDIR", "EROFS")
    assert ".snapshots" not in os.listdir(mount.root)


def test_below_the_root_it_is_a_name_like_others(work: Path) -> None:
    (work / ".snapshots").mkdir()
    make("file", work / ".snapshots/file")
    assert os.listdir(work) == [".snapshots"]
    os.rename(work / ".snapshots", work / "other")
    make("file", work / ".snapshots")
    (work / ".snapshots").unlink()
