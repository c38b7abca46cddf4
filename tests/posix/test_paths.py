"""What every call that takes a path says of a bad one."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.posix.calls import errno_of, make, open_close, utimensat
from tests.posix.users import ALICE, acting_as

pytestmark = pytest.mark.mount

Call = Callable[[str, Path], object]
"""Takes the path, and a directory that is in order, for calls that need another one."""

_numbers = itertools.count()


def _open(flags: int) -> Call:
    return lambda path, beside: os.close(os.open(path, flags, 0o644))


def _new(beside: Path) -> Path:
    return beside / f"new-{next(_numbers)}"


def _file(beside: Path) -> Path:
    return make("file", _new(beside))


FOLLOWING: dict[str, Call] = {
    "chmod": lambda path, beside: os.chmod(path, 0o644),
    "chown": lambda path, beside: os.chown(path, -1, -1),
    "truncate": lambda path, beside: os.truncate(path, 0),
    "open": _open(os.O_RDONLY),
    "open for writing": _open(os.O_WRONLY),
    "utimensat": lambda path, beside: os.utime(path, ns=(0, 0)),
    "stat": lambda path, beside: os.stat(path),
    "getxattr": lambda path, beside: os.getxattr(path, "user.x"),
    "setxattr": lambda path, beside: os.setxattr(path, "user.x", b""),
    "removexattr": lambda path, beside: os.removexattr(path, "user.x"),
    "listxattr": lambda path, beside: os.listxattr(path),
    "statvfs": lambda path, beside: os.statvfs(path),
    "chdir": lambda path, beside: os.chdir(path),
}
"""Calls on something that is there, which go through a symlink at the end."""

NOT_FOLLOWING: dict[str, Call] = {
    "lstat": lambda path, beside: os.lstat(path),
    "lchown": lambda path, beside: os.lchown(path, -1, -1),
    "utimensat nofollow": lambda path, beside: utimensat(path, (1, 0), (1, 0), follow=False),
    "readlink": lambda path, beside: os.readlink(path),
    "link from": lambda path, beside: os.link(path, _new(beside)),
    "rename from": lambda path, beside: os.rename(path, _new(beside)),
    "unlink": lambda path, beside: os.unlink(path),
    "rmdir": lambda path, beside: os.rmdir(path),
}

MAKING: dict[str, Call] = {
    "open with O_CREAT": _open(os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda path, beside: os.mkdir(path),
    "mkfifo": lambda path, beside: os.mkfifo(path),
    "mknod": lambda path, beside: os.mknod(path, stat.S_IFREG | 0o644),
    "symlink": lambda path, beside: os.symlink("x", path),
    "link to": lambda path, beside: os.link(_file(beside), path),
    "rename to": lambda path, beside: os.rename(_file(beside), path),
}

EXISTING = FOLLOWING | NOT_FOLLOWING
ALL = EXISTING | MAKING


def outcomes(calls: Mapping[str, Call], path: Path | str, beside: Path) -> dict[str, str]:
    """What each of the calls answers."""

    def outcome(call: Call) -> str:
        return errno_of(call, os.fspath(path), beside)

    return {name: outcome(call) for name, call in calls.items()}


@pytest.fixture
def work(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir("/")  # and back, if a call went somewhere
    return work


@pytest.fixture
def beside(work: Path) -> Path:
    path = work / "beside"
    path.mkdir(mode=0o777)
    return path


@pytest.mark.parametrize("kind", ["file", "fifo", "block", "char", "socket"])
def test_a_path_through_something_that_is_no_directory_is_enotdir(
    work: Path, beside: Path, kind: str
) -> None:
    make(kind, work / "thing")
    assert outcomes(ALL, work / "thing" / "x", beside) == dict.fromkeys(ALL, "ENOTDIR")


def test_a_path_through_a_missing_directory_is_enoent(work: Path, beside: Path) -> None:
    assert outcomes(ALL, work / "gone" / "x", beside) == dict.fromkeys(ALL, "ENOENT")


def test_what_is_not_there_is_enoent(work: Path, beside: Path) -> None:
    assert outcomes(EXISTING, work / "gone", beside) == dict.fromkeys(EXISTING, "ENOENT")


def test_a_symlink_to_nowhere_is_enoent(work: Path, beside: Path) -> None:
    (work / "link").symlink_to("nowhere")
    assert outcomes(FOLLOWING, work / "link", beside) == dict.fromkeys(FOLLOWING, "ENOENT")


def test_an_empty_path_is_enoent(beside: Path) -> None:
    assert outcomes(ALL, "", beside) == dict.fromkeys(ALL, "ENOENT")


def prepare(name: str, path: str) -> None:
    """What that call wants to find."""
    if name in EXISTING:
        kinds = {"rmdir": "directory", "chdir": "directory", "readlink": "symlink"}
        make(kinds.get(name, "file"), Path(path))


@pytest.mark.parametrize("name", ALL)
def test_names_have_up_to_255_bytes(work: Path, beside: Path, name: str) -> None:
    call = ALL[name]
    longest = str(work / ("n" * 255))
    prepare(name, longest)
    assert errno_of(call, longest, beside) in ("ok", "ENODATA")
    assert errno_of(call, str(work / ("n" * 256)), beside) == "ENAMETOOLONG"
    assert errno_of(call, str(work / ("n" * 256) / "x"), beside) == "ENAMETOOLONG"


@pytest.mark.parametrize("name", ALL)
def test_paths_have_up_to_4095_bytes(work: Path, beside: Path, name: str) -> None:
    call = ALL[name]
    prepare(name, str(work / "name"))
    filling = 4095 - len(f"{work}//name")
    longest = f"{work}/" + "./" * (filling // 2) + "/" * (filling % 2) + "/name"
    assert len(longest) == 4095
    assert errno_of(call, longest, beside) in ("ok", "ENODATA")
    assert errno_of(call, longest + "x", beside) == "ENAMETOOLONG"


def test_no_search_permission_is_eacces(work: Path, beside: Path) -> None:
    closed = work / "closed"
    closed.mkdir()
    make("file", closed / "x", ALICE)
    closed.chmod(0o666)
    with acting_as(ALICE):
        assert outcomes(ALL, closed / "x", beside) == dict.fromkeys(ALL, "EACCES")


def test_names_change_only_with_write_permission_on_the_directory(work: Path, beside: Path) -> None:
    closed = work / "closed"
    closed.mkdir()
    make("file", closed / "file", ALICE)
    make("directory", closed / "directory", ALICE)
    closed.chmod(0o555)
    with acting_as(ALICE):
        assert outcomes(MAKING, closed / "new", beside) == dict.fromkeys(MAKING, "EACCES")
        assert errno_of(os.unlink, closed / "file") == "EACCES"
        assert errno_of(os.rmdir, closed / "directory") == "EACCES"
        assert errno_of(os.rename, closed / "file", beside / "x") == "EACCES"
        assert errno_of(os.rename, closed / "file", closed / "x") == "EACCES"
        assert errno_of(os.rename, _file(beside), closed / "file") == "EACCES"
        assert errno_of(os.link, closed / "file", beside / "y") == "ok"


def test_symlinks_in_a_circle_are_eloop(work: Path, beside: Path) -> None:
    (work / "one").symlink_to("two")
    (work / "two").symlink_to("one")
    assert outcomes(ALL, work / "one" / "x", beside) == dict.fromkeys(ALL, "ELOOP")
    assert outcomes(FOLLOWING, work / "one", beside) == dict.fromkeys(FOLLOWING, "ELOOP")


def test_forty_symlinks_in_a_row_are_followed_and_no_more(work: Path) -> None:
    make("file", work / "0")
    for number in range(41):
        (work / f"{number + 1}").symlink_to(f"{number}")
    assert errno_of(os.stat, work / "40") == "ok"
    assert errno_of(os.stat, work / "41") == "ELOOP"


def test_a_slash_at_the_end_asks_for_a_directory(work: Path) -> None:
    make("file", work / "file")
    make("directory", work / "directory")
    assert errno_of(os.stat, f"{work}/file/") == "ENOTDIR"
    assert errno_of(os.stat, f"{work}/directory/") == "ok"
    assert errno_of(os.unlink, f"{work}/file/") == "ENOTDIR"
    assert errno_of(os.rename, work / "file", f"{work}/new/") == "ENOTDIR"
    assert errno_of(os.rename, work / "directory", f"{work}/new/") == "ok"
    assert errno_of(os.mkdir, f"{work}/directory/") == "ok"
    assert errno_of(open_close, f"{work}/no/", os.O_CREAT | os.O_WRONLY) == "EISDIR"
