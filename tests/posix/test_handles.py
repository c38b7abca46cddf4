"""name_to_handle_at(2) and open_by_handle_at(2): what NFS servers hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mounts import TestMount
from tests.posix.calls import errno_of, make, name_to_handle, open_by_handle

pytestmark = pytest.mark.mount


def read_by_handle(root: Path, handle: bytes) -> bytes:
    fd = open_by_handle(root, handle, os.O_RDONLY)
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


def test_a_handle_opens_the_file_whatever_its_name(root: Path, work: Path) -> None:
    path = work / "x"
    path.write_bytes(b"content")
    handle = name_to_handle(path)
    assert read_by_handle(root, handle) == b"content"
    (work / "d").mkdir()
    os.rename(path, work / "d/y")
    assert read_by_handle(root, handle) == b"content"
    assert name_to_handle(work / "d/y") == handle


def test_a_handle_of_a_directory_lists_it_and_finds_the_way_up(root: Path, work: Path) -> None:
    path = work / "a/b/c"
    path.mkdir(parents=True)
    make("file", path / "x")
    fd = open_by_handle(root, name_to_handle(path), os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(fd) == ["x"]
    assert os.stat("..", dir_fd=fd).st_ino == (work / "a/b").stat().st_ino
    assert os.readlink(f"/proc/self/fd/{fd}") == str(path)
    os.close(fd)


def test_a_handle_outlives_the_mount(mount: TestMount, work: Path) -> None:
    path = work / "a/b/x"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    of_file, of_directory = name_to_handle(path), name_to_handle(path.parent)
    for _ in range(2):
        mount.unmount()
        mount.mount()
        # nothing of the path is known to the kernel now
        fd = open_by_handle(mount.root, of_directory, os.O_RDONLY | os.O_DIRECTORY)
        assert os.listdir(fd) == ["x"]
        assert os.readlink(f"/proc/self/fd/{fd}") == str(path.parent)
        os.close(fd)
        assert read_by_handle(mount.root, of_file) == b"content"


def test_a_handle_of_what_is_gone_is_estale(mount: TestMount, work: Path) -> None:
    path = make("file", work / "x")
    handle = name_to_handle(path)
    path.unlink()
    assert errno_of(open_by_handle, mount.root, handle, os.O_RDONLY) == "ESTALE"
    for number in range(50):  # a new file never takes its place
        make("file", work / str(number))
    assert errno_of(open_by_handle, mount.root, handle, os.O_RDONLY) == "ESTALE"
    mount.unmount()
    mount.mount()
    assert errno_of(open_by_handle, mount.root, handle, os.O_RDONLY) == "ESTALE"


def test_handles_reach_into_snapshots(mount: TestMount, work: Path) -> None:
    (work / "x").write_bytes(b"then")
    mount.snapshot("handles")
    (work / "x").write_bytes(b"now")
    then = mount.root / ".snapshots/handles" / work.name / "x"
    handle = name_to_handle(then)
    assert handle != name_to_handle(work / "x")
    mount.unmount()
    mount.mount()
    assert read_by_handle(mount.root, handle) == b"then"
