"""setxattr(2), getxattr(2), listxattr(2), removexattr(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mounts import TestMount
from tests.posix.calls import CAPABILITY, KINDS, errno_of, make, times_changed
from tests.posix.users import ALICE, BOB, ROOT, acting_as

pytestmark = pytest.mark.mount

NAMES = ("user.x", "trusted.x", "security.x")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("value", [b"", b"v", b"\0\xff" * 100])
def test_what_is_set_can_be_read(work: Path, kind: str, name: str, value: bytes) -> None:
    path = make(kind, work / "x")
    os.setxattr(path, name, b"old")
    os.setxattr(path, name, value)
    assert os.getxattr(path, name) == value
    assert os.listxattr(path) == [name]
    os.removexattr(path, name)
    assert errno_of(os.getxattr, path, name) == "ENODATA"
    assert os.listxattr(path) == []


@pytest.mark.parametrize("name", NAMES)
def test_create_and_replace(work: Path, name: str) -> None:
    path = make("file", work / "x")
    assert errno_of(os.setxattr, path, name, b"1", os.XATTR_REPLACE) == "ENODATA"
    os.setxattr(path, name, b"", os.XATTR_CREATE)
    assert errno_of(os.setxattr, path, name, b"2", os.XATTR_CREATE) == "EEXIST"
    assert os.getxattr(path, name) == b""
    os.setxattr(path, name, b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, name) == b"3"
    assert errno_of(os.setxattr, path, name, b"4", 1 << 5) == "EINVAL"
    os.removexattr(path, name)
    assert errno_of(os.removexattr, path, name) == "ENODATA"


@pytest.mark.parametrize("name", NAMES)
def test_it_moves_ctime_alone(work: Path, name: str) -> None:
    path = make("file", work / "x")
    for change in (
        lambda: os.setxattr(path, name, b"1"),
        lambda: os.setxattr(path, name, b"2"),
        lambda: os.removexattr(path, name),
    ):
        assert times_changed(path, change) == {"ctime"}
    assert times_changed(path, lambda: errno_of(os.removexattr, path, name)) == set()
    assert times_changed(path, lambda: os.listxattr(path)) == set()


# who and what


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("file", "directory")])
def test_users_attributes_are_for_files_and_directories(work: Path, kind: str) -> None:
    path = make(kind, work / "x")
    for name, wanted in (("user.x", "EPERM"), ("trusted.x", "ok"), ("security.x", "ok")):
        found = errno_of(os.setxattr, path, name, b"v", follow_symlinks=False)
        assert (name, found) == (name, wanted)
    assert errno_of(os.getxattr, path, "user.x", follow_symlinks=False) in ("ENODATA", "EPERM")
    assert os.getxattr(path, "trusted.x", follow_symlinks=False) == b"v"


def test_users_attributes_follow_the_mode(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o640)
    with acting_as(ALICE):
        os.setxattr(path, "user.x", b"v")
    with acting_as(BOB):
        assert errno_of(os.getxattr, path, "user.x") == "EACCES"
        assert errno_of(os.setxattr, path, "user.x", b"w") == "EACCES"
        assert errno_of(os.removexattr, path, "user.x") == "EACCES"
    path.chmod(0o644)
    with acting_as(BOB):
        assert os.getxattr(path, "user.x") == b"v"
        assert errno_of(os.setxattr, path, "user.x", b"w") == "EACCES"
    path.chmod(0o666)
    with acting_as(BOB):
        os.setxattr(path, "user.x", b"w")
        os.removexattr(path, "user.x")
    path.chmod(0o444)
    with acting_as(ALICE):
        assert errno_of(os.setxattr, path, "user.x", b"w") == "EACCES"


def test_on_a_sticky_directory_they_are_the_owners(work: Path) -> None:
    path = make("directory", work / "x", ALICE, 0o1777)
    with acting_as(BOB):
        assert errno_of(os.setxattr, path, "user.x", b"v") == "EPERM"
    with acting_as(ALICE):
        os.setxattr(path, "user.x", b"v")


def test_trusted_attributes_are_roots(work: Path) -> None:
    path = make("file", work / "x", ALICE)
    os.setxattr(path, "trusted.x", b"secret")
    os.setxattr(path, "user.x", b"v")
    with acting_as(ALICE):
        assert errno_of(os.setxattr, path, "trusted.y", b"v") == "EPERM"
        assert errno_of(os.getxattr, path, "trusted.x") in ("ENODATA", "EPERM")
        assert errno_of(os.removexattr, path, "trusted.x") == "EPERM"
        assert os.listxattr(path) == ["user.x"]
    with acting_as(ROOT):
        assert sorted(os.listxattr(path)) == ["trusted.x", "user.x"]


def test_security_attributes_are_read_by_all_and_set_by_root(work: Path) -> None:
    path = make("file", work / "x", ALICE, 0o755)
    os.setxattr(path, "security.capability", CAPABILITY)
    with acting_as(ALICE):
        assert os.getxattr(path, "security.capability") == CAPABILITY
        assert errno_of(os.setxattr, path, "security.other", b"v") == "EPERM"
        assert errno_of(os.removexattr, path, "security.capability") == "EPERM"


@pytest.mark.parametrize(
    "name", ["x", "user", "other.x", "system.x", "system.nfs4_acl", "User.x", "os2.x"]
)
def test_other_namespaces_are_not_supported(work: Path, name: str) -> None:
    path = make("file", work / "x")
    for call in (
        lambda: os.getxattr(path, name),
        lambda: os.setxattr(path, name, b"v"),
        lambda: os.removexattr(path, name),
    ):
        assert errno_of(call) == "ENOTSUP"


@pytest.mark.parametrize("name", ["user.", "trusted.", "security."])
def test_a_namespace_is_no_name(work: Path, name: str) -> None:
    path = make("file", work / "x")
    assert errno_of(os.setxattr, path, name, b"v") == "EINVAL"
    assert os.listxattr(path) == []


# limits


def test_names_have_up_to_255_bytes(work: Path) -> None:
    path = make("file", work / "x")
    longest = "user." + "n" * 250
    os.setxattr(path, longest, b"v")
    assert os.listxattr(path) == [longest]
    assert errno_of(os.setxattr, path, longest + "n", b"v") == "ERANGE"
    assert errno_of(os.getxattr, path, longest + "n") == "ERANGE"
    assert errno_of(os.setxattr, path, "", b"v") == "ERANGE"


@pytest.mark.usefixtures("mount")  # others have less room
def test_values_have_up_to_65536_bytes(work: Path) -> None:
    path = make("file", work / "x")
    value = os.urandom(65_536)
    os.setxattr(path, "user.x", value)
    assert os.getxattr(path, "user.x") == value
    assert errno_of(os.setxattr, path, "user.x", value + b"v") == "E2BIG"
    for number in range(20):
        os.setxattr(path, f"user.{number}", value[number:])
    for number in range(20):
        assert os.getxattr(path, f"user.{number}") == value[number:]


@pytest.mark.usefixtures("mount")
def test_all_names_together_can_always_be_listed(work: Path) -> None:
    path = make("file", work / "x")
    names = [f"user.{number:03d}".ljust(255, "n") for number in range(300)]
    found = [errno_of(os.setxattr, path, name, b"") for name in names]
    count = found.index("ENOSPC")
    assert count == 256  # of 256 bytes, with the zero
    assert set(found[count:]) == {"ENOSPC"}
    assert sorted(os.listxattr(path)) == names[:count]
    os.setxattr(path, names[0], b"an old one may change")
    os.removexattr(path, names[0])
    os.setxattr(path, names[count], b"")


@pytest.mark.usefixtures("mount")
def test_names_may_hold_any_bytes(work: Path) -> None:
    path = os.fsencode(make("file", work / "x"))
    names = [b"user." + bytes([value]) for value in range(1, 256)]
    for name in names:
        os.setxattr(path, name, name)
    assert sorted(map(os.fsencode, os.listxattr(path))) == sorted(names)
    assert [os.getxattr(path, name) for name in names] == names


# where they go


def test_they_belong_to_the_object_and_not_to_a_name(work: Path) -> None:
    path = make("file", work / "x")
    os.link(path, work / "y")
    os.setxattr(path, "user.x", b"v")
    assert os.getxattr(work / "y", "user.x") == b"v"
    os.rename(path, work / "z")
    assert os.getxattr(work / "z", "user.x") == b"v"
    with open(work / "z", "rb") as file:
        assert os.getxattr(file.fileno(), "user.x") == b"v"
        os.setxattr(file.fileno(), "user.y", b"w")
    assert os.getxattr(work / "y", "user.y") == b"w"


def test_symlinks_have_their_own(work: Path) -> None:
    make("file", work / "x")
    os.symlink("x", work / "link")
    os.setxattr(work / "link", "user.x", b"of the file")
    os.setxattr(work / "link", "trusted.x", b"of the link", follow_symlinks=False)
    assert os.listxattr(work / "x") == ["user.x"]
    assert os.listxattr(work / "link", follow_symlinks=False) == ["trusted.x"]


def test_they_outlive_the_mount_and_a_snapshot_keeps_those_of_its_time(
    mount: TestMount, work: Path
) -> None:
    path = make("file", work / "x")
    for name in NAMES:
        os.setxattr(path, name, b"then")
    mount.snapshot("attributes")
    for name in NAMES:
        os.setxattr(path, name, b"now")
    os.removexattr(path, "user.x")
    mount.unmount()
    mount.mount()
    then = mount.root / ".snapshots/attributes" / work.name / "x"
    assert sorted(os.listxattr(path)) == ["security.x", "trusted.x"]
    assert os.getxattr(path, "trusted.x") == b"now"
    assert sorted(os.listxattr(then)) == sorted(NAMES)
    assert os.getxattr(then, "user.x") == b"then"
    with acting_as(ALICE):
        assert sorted(os.listxattr(then)) == ["security.x", "user.x"]
