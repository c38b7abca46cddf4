"""rename(2) and renameat2(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.posix.calls import (
    KINDS,
    NOT_DIRECTORIES,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    errno_of,
    make,
    remove,
    renameat2,
    times_changed,
)
from tests.posix.users import ALICE, BOB, ROOT, User, acting_as

pytestmark = pytest.mark.mount


def ino(path: Path) -> int:
    return os.lstat(path).st_ino


def exists(path: Path) -> bool:
    return os.path.lexists(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_object_stays_and_its_name_changes(work: Path, kind: str) -> None:
    old = make(kind, work / "old", ALICE)
    before = os.lstat(old)
    os.rename(old, work / "new")
    after = os.lstat(work / "new")
    assert not exists(old)
    for field in ("st_ino", "st_mode", "st_uid", "st_gid", "st_nlink", "st_rdev", "st_size"):
        assert getattr(after, field) == getattr(before, field)
    assert after.st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_ctime_and_the_times_of_both_directories(work: Path, kind: str) -> None:
    one, two, bystander = (make("directory", work / name) for name in "123")
    old, new = make(kind, one / "x"), two / "y"
    identity = ino(old)

    def there() -> None:
        os.rename(old, new)

    def back() -> None:
        os.rename(new, old)

    assert times_changed(one, there) == {"mtime", "ctime"}
    assert times_changed(two, back) == {"mtime", "ctime"}
    before = os.lstat(old)
    assert times_changed(bystander, there) == set()
    after = os.lstat(new)
    assert (after.st_ino, after.st_mtime_ns) == (identity, before.st_mtime_ns)
    assert after.st_ctime_ns > before.st_ctime_ns


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
@pytest.mark.parametrize("replaced", NOT_DIRECTORIES)
def test_what_is_no_directory_replaces_what_is_none(work: Path, kind: str, replaced: str) -> None:
    old, new = make(kind, work / "old"), make(replaced, work / "new")
    os.link(new, work / "other name", follow_symlinks=False)
    identity = ino(old)
    left = times_changed(work / "other name", lambda: os.rename(old, new))
    assert left == {"ctime"}
    assert (exists(old), ino(new)) == (False, identity)
    assert os.lstat(work / "other name").st_nlink == 1


def test_a_directory_replaces_an_empty_one_only(work: Path) -> None:
    old, empty, full = (make("directory", work / name) for name in ("old", "empty", "full"))
    make("file", full / "x")
    assert errno_of(os.rename, old, full) in ("ENOTEMPTY", "EEXIST")
    identity = ino(old)
    os.rename(old, empty)
    assert ino(empty) == identity
    assert work.stat().st_nlink == 4
    assert errno_of(os.rename, full, empty) == "ok"


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_directories_and_the_rest_do_not_replace_each_other(work: Path, kind: str) -> None:
    directory, other = make("directory", work / "d"), make(kind, work / "o")
    assert errno_of(os.rename, directory, other) == "ENOTDIR"
    assert errno_of(os.rename, other, directory) == "EISDIR"


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_two_names_of_one_object_both_stay(work: Path, kind: str) -> None:
    one = make(kind, work / "1")
    os.link(one, work / "2", follow_symlinks=False)
    os.rename(one, work / "2")
    assert exists(one)
    assert exists(work / "2")
    assert os.lstat(one).st_nlink == 2
    os.rename(one, one)
    assert exists(one)


def test_a_directory_can_not_go_below_itself(work: Path) -> None:
    (work / "a/b/c").mkdir(parents=True)
    assert errno_of(os.rename, work / "a", work / "a/b/c/d") == "EINVAL"
    assert errno_of(os.rename, work / "a", work / "a/b") == "EINVAL"
    assert errno_of(os.rename, work / "a/b/c", work / "a") in ("ENOTEMPTY", "EEXIST")
    assert errno_of(os.rename, work / "a", work / "a") == "ok"


def test_dot_and_dotdot_can_not_be_renamed(work: Path) -> None:
    directory = make("directory", work / "d")
    for name in (".", ".."):
        assert errno_of(os.rename, f"{directory}/{name}", work / "x") == "EBUSY"
        assert errno_of(os.rename, work / "d", f"{directory}/{name}") == "EBUSY"


def test_a_directory_takes_its_links_with_it(work: Path) -> None:
    one, two = make("directory", work / "1"), make("directory", work / "2")
    moved = make("directory", one / "moved")
    make("directory", moved / "below")
    os.rename(moved, two / "moved")
    assert (one.stat().st_nlink, two.stat().st_nlink) == (2, 3)
    assert (two / "moved/..").samefile(two)
    assert (two / "moved/below/../..").samefile(two)
    victim = make("directory", one / "victim")
    os.rename(two / "moved", victim)
    assert (one.stat().st_nlink, two.stat().st_nlink) == (3, 2)


def test_who_stands_in_a_directory_moves_with_it(work: Path) -> None:
    (work / "a/b").mkdir(parents=True)
    (work / "other").mkdir()
    fd = os.open(work / "a/b", os.O_RDONLY)
    os.rename(work / "a", work / "other/a")
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    assert (work / "other/a/b/file").exists()


def test_moving_a_directory_elsewhere_takes_write_permission_on_it(work: Path) -> None:
    one, two = (make("directory", work / name, mode=0o777) for name in "12")
    make("directory", one / "d", ROOT, 0o755)
    make("file", one / "f", ROOT, 0o600)
    with acting_as(ALICE):
        assert errno_of(os.rename, one / "d", two / "d") == "EACCES"
        assert errno_of(os.rename, one / "d", one / "e") == "ok"
        assert errno_of(os.rename, one / "f", two / "f") == "ok"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directory_of", [ROOT, ALICE, BOB], ids=["root's", "mine", "bob's"])
@pytest.mark.parametrize("object_of", [ROOT, ALICE, BOB], ids=["root's", "mine", "bob's"])
def test_a_sticky_directory_lets_its_owner_and_theirs_move_things(
    work: Path, kind: str, directory_of: User, object_of: User
) -> None:
    sticky = make("directory", work / "sticky", directory_of, 0o1777)
    free = make("directory", work / "free", mode=0o777)
    here, there = sticky / "x", free / "x"
    mine = ALICE in (directory_of, object_of)
    make(kind, here, object_of, 0o777)
    with acting_as(ALICE):
        from_it = errno_of(os.rename, here, there)
    assert from_it == ("ok" if mine else "EPERM")
    if not exists(there):
        os.rename(here, there)
    make(kind, here, object_of, 0o777)
    with acting_as(ALICE):
        over_it = errno_of(os.rename, there, here)
    assert over_it == ("ok" if mine else "EPERM")


def test_from_and_to_another_file_system_is_exdev(work: Path, tmp_path: Path) -> None:
    for kind in ("file", "directory"):
        here, there = make(kind, work / kind), make(kind, tmp_path / kind)
        assert errno_of(os.rename, here, tmp_path / "x") == "EXDEV"
        assert errno_of(os.rename, there, work / "x") == "EXDEV"


def test_an_open_file_that_is_replaced_lives_on(work: Path) -> None:
    old, new = work / "old", work / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with new.open("r+b", buffering=0) as replaced:
        os.rename(old, new)
        assert replaced.read() == b"new"
        replaced.write(b", still")
        assert os.fstat(replaced.fileno()).st_nlink == 0
    assert new.read_bytes() == b"old"


# renameat2(2)


@pytest.mark.parametrize("kind", KINDS)
def test_noreplace_refuses_what_is_there(work: Path, kind: str) -> None:
    old, new = make("file", work / "old"), make(kind, work / "new")
    assert errno_of(renameat2, old, new, RENAME_NOREPLACE) == "EEXIST"
    assert errno_of(renameat2, old, old, RENAME_NOREPLACE) == "EEXIST"
    remove(new)
    renameat2(old, new, RENAME_NOREPLACE)
    assert (exists(old), exists(new)) == (False, True)


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("two", KINDS)
def test_exchange_swaps_any_two(work: Path, one: str, two: str) -> None:
    left, right = make("directory", work / "l"), make("directory", work / "r")
    first, second = make(one, left / "x"), make(two, right / "y")
    identities = ino(first), ino(second)
    changed = times_changed(left, lambda: renameat2(first, second, RENAME_EXCHANGE))
    assert changed == {"mtime", "ctime"}
    assert (ino(second), ino(first)) == identities
    directories = (two == "directory", one == "directory")
    assert (left.stat().st_nlink, right.stat().st_nlink) == tuple(2 + d for d in directories)
    if two == "directory":
        assert (first / "..").samefile(left)
    if one == "directory":
        assert (second / "..").samefile(right)


def test_exchange_wants_both(work: Path) -> None:
    make("file", work / "x")
    assert errno_of(renameat2, work / "x", work / "y", RENAME_EXCHANGE) == "ENOENT"
    assert errno_of(renameat2, work / "y", work / "x", RENAME_EXCHANGE) == "ENOENT"


def test_exchange_can_not_put_a_directory_below_itself(work: Path) -> None:
    (work / "a/b").mkdir(parents=True)
    make("file", work / "a/b/f")
    assert errno_of(renameat2, work / "a", work / "a/b/f", RENAME_EXCHANGE) == "EINVAL"
    assert errno_of(renameat2, work / "a/b/f", work / "a", RENAME_EXCHANGE) in (
        "EINVAL",
        "ENOTEMPTY",
    )


def test_exchange_in_a_sticky_directory_takes_both_to_be_mine(work: Path) -> None:
    sticky = make("directory", work / "sticky", BOB, 0o1777)
    mine, theirs = make("file", sticky / "mine", ALICE), make("file", sticky / "theirs", BOB)
    with acting_as(ALICE):
        assert errno_of(renameat2, mine, theirs, RENAME_EXCHANGE) == "EPERM"
        assert errno_of(renameat2, theirs, mine, RENAME_EXCHANGE) == "EPERM"


def test_unknown_flags_and_combinations_are_einval(work: Path) -> None:
    make("file", work / "x")
    make("file", work / "y")
    for flags in (8, 1 << 31, RENAME_EXCHANGE | RENAME_NOREPLACE):
        assert errno_of(renameat2, work / "x", work / "y", flags) == "EINVAL"


@pytest.mark.usefixtures("mount")
def test_there_are_no_whiteouts(work: Path) -> None:
    make("file", work / "x")
    assert errno_of(renameat2, work / "x", work / "y", RENAME_WHITEOUT) == "EINVAL"
    assert stat.S_ISREG(os.lstat(work / "x").st_mode)
