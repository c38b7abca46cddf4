"""acl(5): what the kernel enforces, and that mode and lists keep in step."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from nasfs.volume import acl
from tests.mounts import TestMount
from tests.posix.calls import KINDS, NOT_LINKS, errno_of, make, mode_of, open_close, times_changed
from tests.posix.users import ALICE, BOB, BOB_IN_TEAM, ROOT, TEAM, User, acting_as
from tests.test_acl import parse

pytestmark = pytest.mark.mount

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"


def set_acl(path: Path, text: str, name: str = ACCESS) -> None:
    os.setxattr(path, name, acl.encode(parse(text)))


def get_acl(path: Path, name: str = ACCESS) -> str:
    """The list in the words of `parse`; empty if there is none."""
    try:
        entries = acl.decode(os.getxattr(path, name))
    except OSError:
        return ""
    letters = {1: "u:", 2: "u:{}", 4: "g:", 8: "g:{}", 16: "m:", 32: "o:"}
    words = []
    for tag, permissions, number in entries:
        bits = "".join(c if permissions & 4 >> place else "-" for place, c in enumerate("rwx"))
        words.append(f"{letters[tag].format(number)}:{bits}")
    return " ".join(words)


def readable_by(path: Path, user: User) -> bool:
    with acting_as(user):
        return errno_of(open_close, path, os.O_RDONLY) == "ok"


# access


@pytest.mark.parametrize(
    ("text", "user", "allowed"),
    [
        ("u::--- g::rwx o::rwx", ALICE, ""),
        ("u::rw- u:{bob}:--- g::--- m::rwx o::---", ALICE, "rw"),
        ("u::--- u:{bob}:rw- g::--- m::rw- o::---", BOB, "rw"),
        ("u::--- u:{bob}:rw- g::--- m::r-- o::rwx", BOB, "r"),
        ("u::rwx u:{bob}:--- g::rwx m::rwx o::rwx", BOB_IN_TEAM, ""),
        ("u::rwx g::--- g:{team}:r-- m::rwx o::rwx", BOB_IN_TEAM, "r"),
        ("u::rwx g::--- g:{team}:-w- g:65511:r-- m::rwx o::---", BOB_IN_TEAM, "rw one by one"),
        ("u::rwx g::rwx g:{team}:rwx m::-w- o::rwx", BOB_IN_TEAM, "w"),
        ("u::rwx g::--- g:{team}:--- m::rwx o::rwx", BOB_IN_TEAM, ""),
        ("u::rwx g::--- g:{team}:rwx m::rwx o::---", BOB, ""),
        ("u::rwx g::--- g:{team}:rwx m::rwx o::r--", BOB, "r"),
        ("u::--- u:{alice}:rwx g::--- m::rwx o::---", ALICE, ""),
    ],
)
def test_the_entry_that_fits_best_decides(work: Path, text: str, user: User, allowed: str) -> None:
    path = make("file", work / "x", User(ALICE.uid, 12_345))
    set_acl(path, text.format(alice=ALICE.uid, bob=BOB.uid, team=TEAM))
    with acting_as(user):
        found = {
            flags: errno_of(open_close, path, flags) == "ok"
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
        }
    assert found == {
        os.O_RDONLY: "r" in allowed,
        os.O_WRONLY: "w" in allowed,
        os.O_RDWR: allowed == "rw",
    }


def test_root_may_everything(work: Path) -> None:
    path = make("file", work / "x", ALICE)
    set_acl(path, "u::--- u:0:--- g::--- m::--- o::---")
    assert readable_by(path, ROOT)


def test_a_directory_is_searched_and_changed_by_its_list(work: Path) -> None:
    path = make("directory", work / "d", ALICE, 0o700)
    make("file", path / "x", ALICE, 0o644)
    set_acl(path, f"u::rwx u:{BOB.uid}:--x g::--- m::rwx o::---")
    assert readable_by(path / "x", BOB)
    with acting_as(BOB):
        assert errno_of(os.listdir, path) == "EACCES"
        assert errno_of((path / "new").touch) == "EACCES"
    set_acl(path, f"u::rwx u:{BOB.uid}:rwx g::--- m::rwx o::---")
    with acting_as(BOB):
        assert os.listdir(path) == ["x"]
        (path / "new").touch()
        (path / "x").unlink()


def test_a_change_is_enforced_at_once(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o600)
    for _ in range(3):
        assert not readable_by(path, BOB)
        set_acl(path, f"u::rw- u:{BOB.uid}:r-- g::--- m::r-- o::---")
        assert readable_by(path, BOB)
        path.chmod(0o600)
        assert not readable_by(path, BOB)
        path.chmod(0o640)
        assert readable_by(path, BOB)
        os.removexattr(path, ACCESS)
        path.chmod(0o600)


# list and mode


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_setting_a_list_sets_the_mode(work: Path, kind: str) -> None:
    path = make(kind, work / "x", mode=0o644)
    os.stat(path)
    set_acl(path, "u::rwx u:5:rwx g::r-- m::rw- o::--x")
    assert mode_of(path) == 0o761
    assert stat.S_IFMT(os.lstat(path).st_mode) == stat.S_IFMT(os.stat(path).st_mode)
    assert get_acl(path) == "u::rwx u:5:rwx g::r-- m::rw- o::--x"


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_chmod_rewrites_the_list(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    set_acl(path, "u::rwx u:5:rwx g::r-- g:6:-w- m::rw- o::--x")
    path.chmod(0o1750)
    assert get_acl(path) == "u::rwx u:5:rwx g::r-- g:6:-w- m::r-x o::---"
    assert mode_of(path) == 0o1750


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_a_list_that_says_what_a_mode_says_becomes_one(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    set_acl(path, "u::rwx g::-w- o::--x")
    assert (mode_of(path), get_acl(path)) == (0o721, "")
    assert ACCESS not in os.listxattr(path)
    set_acl(path, "u::rw- u:5:r-- g::--- m::rw- o::---")
    assert ACCESS in os.listxattr(path)
    set_acl(path, "u::r-- g::r-- o::r--")
    assert (mode_of(path), get_acl(path)) == (0o444, "")


def test_high_mode_bits_stay(work: Path) -> None:
    path = make("file", work / "x", mode=0o7755)
    set_acl(path, "u::r-- u:5:r-- g::--- m::r-- o::r--")
    assert mode_of(path) == 0o7444


def test_removing_a_list_leaves_the_mode(work: Path) -> None:
    path = make("file", work / "x")
    set_acl(path, "u::rwx u:5:rwx g::r-- m::rw- o::--x")
    os.removexattr(path, ACCESS)
    assert (mode_of(path), get_acl(path)) == (0o761, "")
    os.removexattr(path, ACCESS)


def test_it_moves_ctime_alone(work: Path) -> None:
    path = make("directory", work / "x")
    text = "u::rwx u:5:rwx g::r-- m::rw- o::--x"
    assert times_changed(path, lambda: set_acl(path, text)) == {"ctime"}
    assert times_changed(path, lambda: set_acl(path, text, DEFAULT)) == {"ctime"}
    assert times_changed(path, lambda: os.removexattr(path, ACCESS)) == {"ctime"}
    assert times_changed(work, lambda: os.removexattr(path, DEFAULT)) == set()


def test_only_the_owner_and_root_set_lists(work: Path) -> None:
    path = make("directory", work / "x", ALICE, 0o777)
    text = f"u::rwx u:{BOB.uid}:rwx g::rwx m::rwx o::rwx"
    with acting_as(BOB):
        for name in (ACCESS, DEFAULT):
            assert errno_of(set_acl, path, text, name) == "EPERM"
            assert errno_of(os.removexattr, path, name) == "EPERM"
    with acting_as(ALICE):
        for name in (ACCESS, DEFAULT):
            set_acl(path, text, name)
    with acting_as(BOB):
        assert get_acl(path) == get_acl(path, DEFAULT) == text
        assert errno_of(os.removexattr, path, ACCESS) == "EPERM"


@pytest.mark.parametrize(
    ("user", "group", "result"),
    [
        (BOB, BOB.gid, 0o2770),
        (BOB, TEAM, 0o770),
        (BOB_IN_TEAM, TEAM, 0o2770),
        (ROOT, TEAM, 0o2770),
    ],
)
def test_the_sgid_bit_goes_when_a_stranger_to_the_group_sets_a_list(
    work: Path, user: User, group: int, result: int
) -> None:
    for text in ("u::rwx u:5:rwx g::rwx m::rwx o::---", "u::rwx g::rwx o::---"):
        path = make("file", work / f"x{len(text)}", User(BOB.uid, group), 0o2700)
        with acting_as(user):
            set_acl(path, text)
        assert mode_of(path) == result


def test_a_default_list_leaves_the_sgid_bit(work: Path) -> None:
    path = make("directory", work / "x", User(BOB.uid, TEAM), 0o2755)
    with acting_as(BOB):
        set_acl(path, "u::rwx g::rwx o::---", DEFAULT)
    assert mode_of(path) == 0o2755


# what can have which


@pytest.mark.parametrize("kind", [kind for kind in NOT_LINKS if kind != "directory"])
def test_default_lists_are_for_directories(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    assert errno_of(set_acl, path, "u::rwx g::r-x o::---", DEFAULT) == "EACCES"
    assert get_acl(path, DEFAULT) == ""


def test_symlinks_have_none(work: Path) -> None:
    path = make("symlink", work / "x")
    value = acl.encode(parse("u::rwx u:5:r-- g::r-x m::r-x o::---"))
    for name in (ACCESS, DEFAULT):
        assert errno_of(os.setxattr, path, name, value, follow_symlinks=False) == "ENOTSUP"


@pytest.mark.parametrize(
    "text",
    [
        "u::rwx g::r-x",
        "u::rwx u:5:r-- g::r-x o::---",
        "g::r-x u::rwx o::---",
        "u::rwx g::r-x o::--- o::---",
    ],
)
def test_lists_that_make_no_sense_are_einval(work: Path, text: str) -> None:
    path = make("directory", work / "x", mode=0o755)
    for name in (ACCESS, DEFAULT):
        assert errno_of(set_acl, path, text, name) == "EINVAL"
    assert mode_of(path) == 0o755
    assert os.listxattr(path) == []


@pytest.mark.usefixtures("mount")  # others have less room
def test_long_lists_fit(work: Path) -> None:
    path = make("file", work / "x")
    text = "u::rwx " + " ".join(f"u:{n}:r--" for n in range(500)) + " g::r-x m::rwx o::---"
    set_acl(path, text)
    assert get_acl(path) == text


# default lists

LIST = f"u::rwx u:{BOB.uid}:rwx g::r-x m::rwx o::---"


@pytest.fixture
def family(work: Path) -> Path:
    path = make("directory", work / "family", mode=0o777)
    set_acl(path, LIST, DEFAULT)
    return path


def test_files_inherit_it_as_their_access_list(family: Path) -> None:
    with acting_as(ALICE):
        os.close(os.open(family / "x", os.O_CREAT, 0o666))
    assert mode_of(family / "x") == 0o660
    assert get_acl(family / "x") == f"u::rw- u:{BOB.uid}:rwx g::r-x m::rw- o::---"
    assert get_acl(family / "x", DEFAULT) == ""
    assert readable_by(family / "x", BOB)


def test_directories_inherit_both(family: Path) -> None:
    os.mkdir(family / "d", 0o750)
    assert mode_of(family / "d") == 0o750
    assert get_acl(family / "d") == f"u::rwx u:{BOB.uid}:rwx g::r-x m::r-x o::---"
    assert get_acl(family / "d", DEFAULT) == LIST
    os.makedirs(family / "d/e/f", 0o777)
    assert get_acl(family / "d/e/f", DEFAULT) == LIST


@pytest.mark.parametrize("kind", ["fifo", "char", "socket"])
def test_special_files_do_too(family: Path, kind: str) -> None:
    kinds = {"fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "socket": stat.S_IFSOCK}
    os.mknod(family / "x", kinds[kind] | 0o640, os.makedev(1, 3))
    assert mode_of(family / "x") == 0o640
    assert get_acl(family / "x") == f"u::rw- u:{BOB.uid}:rwx g::r-x m::r-- o::---"


def test_symlinks_do_not(family: Path) -> None:
    os.symlink("t", family / "x")
    assert mode_of(family / "x") == 0o777
    assert os.listxattr(family / "x", follow_symlinks=False) == []


def test_links_and_renamed_things_keep_what_they_have(work: Path, family: Path) -> None:
    for name in ("linked", "renamed"):
        make("file", work / name, mode=0o644)
    os.link(work / "linked", family / "linked")
    os.rename(work / "renamed", family / "renamed")
    for name in ("linked", "renamed"):
        assert (mode_of(family / name), get_acl(family / name)) == (0o644, "")


def test_a_minimal_default_list_is_a_mask_for_modes(work: Path) -> None:
    set_acl(work, "u::rwx g::r-- o::---", DEFAULT)
    os.close(os.open(work / "x", os.O_CREAT, 0o777))
    assert (mode_of(work / "x"), get_acl(work / "x")) == (0o740, "")
    os.mkdir(work / "d", 0o777)
    assert (mode_of(work / "d"), get_acl(work / "d")) == (0o740, "")
    assert get_acl(work / "d", DEFAULT) == "u::rwx g::r-- o::---"


def test_an_sgid_directory_passes_both_on(family: Path) -> None:
    os.chown(family, 0, TEAM)
    family.chmod(0o2777)
    with acting_as(BOB):
        os.mkdir(family / "d")
    found = (family / "d").stat()
    assert (found.st_gid, bool(found.st_mode & stat.S_ISGID)) == (TEAM, True)
    assert get_acl(family / "d", DEFAULT) == LIST


def test_without_the_list_new_things_are_as_usual(family: Path) -> None:
    os.removexattr(family, DEFAULT)
    os.removexattr(family, DEFAULT)
    with acting_as(ALICE, 0o27):
        os.mkdir(family / "d")
    assert (mode_of(family / "d"), get_acl(family / "d")) == (0o750, "")
    set_acl(family, LIST, DEFAULT)
    os.setxattr(family, DEFAULT, acl.encode(()))
    assert get_acl(family, DEFAULT) == ""


# programs


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not installed")
def test_setfacl_and_getfacl_say_the_same(work: Path) -> None:
    path = make("directory", work / "x", mode=0o755)
    words = f"u:{BOB.uid}:rwx,g:{TEAM}:r-x,d:u:{BOB.uid}:rw-"
    subprocess.run(["setfacl", "-m", words, path], check=True)
    done = subprocess.run(
        ["getfacl", "-cn", "--omit-header", path], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [
        "user::rwx",
        f"user:{BOB.uid}:rwx",
        "group::r-x",
        f"group:{TEAM}:r-x",
        "mask::rwx",
        "other::r-x",
        "default:user::rwx",
        f"default:user:{BOB.uid}:rw-",
        "default:group::r-x",
        "default:mask::rwx",
        "default:other::r-x",
    ]
    assert mode_of(path) == 0o775
    subprocess.run(["setfacl", "-b", path], check=True)
    assert os.listxattr(path) == []


def test_cp_with_all_attributes_copies_lists_and_stores_no_minimal_ones(work: Path) -> None:
    source = make("directory", work / "source", mode=0o755)
    for name in ("plain", "listed"):
        make("file", source / name, ALICE, 0o640)
    set_acl(source / "listed", LIST)
    set_acl(source, LIST, DEFAULT)
    subprocess.run(["cp", "-a", source, work / "copy"], check=True)
    copy = work / "copy"
    assert get_acl(copy / "listed") == LIST
    assert get_acl(copy, DEFAULT) == LIST
    assert get_acl(copy) == get_acl(copy / "plain") == ""
    assert ACCESS not in os.listxattr(copy / "plain")
    assert (mode_of(copy / "plain"), (copy / "plain").stat().st_uid) == (0o640, ALICE.uid)


# snapshots and mounts


def test_a_snapshot_has_the_lists_of_its_time(mount: TestMount, work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o600)
    set_acl(path, f"u::rw- u:{BOB.uid}:r-- g::--- m::r-- o::---")
    set_acl(work, LIST, DEFAULT)
    mount.snapshot("lists")
    set_acl(path, "u::rw- g::--- o::---")
    os.removexattr(work, DEFAULT)
    then = mount.root / ".snapshots/lists" / work.name
    assert get_acl(then, DEFAULT) == LIST
    assert get_acl(then / "x") == f"u::rw- u:{BOB.uid}:r-- g::--- m::r-- o::---"
    assert (readable_by(then / "x", BOB), readable_by(path, BOB)) == (True, False)
    for name in (ACCESS, DEFAULT):
        assert errno_of(set_acl, then, LIST, name) == "EROFS"
        assert errno_of(os.removexattr, then, name) == "EROFS"
    assert errno_of((then / "x").chmod, 0o600) == "EROFS"


def test_lists_outlive_the_mount(mount: TestMount, work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o600)
    set_acl(path, f"u::rw- u:{BOB.uid}:r-- g::--- m::r-- o::---")
    assert readable_by(path, BOB)
    mount.unmount()
    mount.mount()
    assert readable_by(path, BOB)
    assert not readable_by(path, BOB_IN_TEAM._replace(uid=77))
    assert set(KINDS) > set(NOT_LINKS)
