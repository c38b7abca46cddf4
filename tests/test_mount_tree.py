"""A mounted volume through the kernel: what programs expect of a file system."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounts import TestMount, failing, mounted

pytestmark = pytest.mark.mount

NOBODY = 65534
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[TestMount]:
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:  # pytest makes them private
        parent.chmod(0o755)
    with mounted(tmp_path) as found:
        yield found


@pytest.fixture
def root(mount: TestMount) -> Path:
    return mount.root


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def as_nobody(script: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-ec", script, "sh", *map(str, paths)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )


def test_files_are_written_read_appended_and_cut(root: Path) -> None:
    path = root / "file"
    path.write_bytes(b"hello world")
    with path.open("ab") as file:
        file.write(b", again")
    assert path.read_bytes() == b"hello world, again"
    os.truncate(path, 5)
    assert path.read_bytes() == b"hello"
    os.truncate(path, 10_000)
    assert path.read_bytes() == b"hello" + bytes(9_995)
    path.write_bytes(b"new")  # O_TRUNC
    assert path.read_bytes() == b"new"
    assert path.stat().st_size == 3
    path.unlink()
    assert not path.exists()


def test_directories_count_their_links_and_must_be_empty_to_go(root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    assert (root / "a").stat().st_nlink == 3
    assert root.stat().st_nlink == 3
    with failing(errno.ENOTEMPTY):
        (root / "a").rmdir()
    (root / "a/b/c").rmdir()
    assert (root / "a/b").stat().st_nlink == 2
    with failing(errno.EEXIST):
        (root / "a").mkdir()
    with failing(errno.ENOTDIR):
        (root / "file").touch()
        (root / "file").rmdir()


def test_a_name_that_was_looked_for_in_vain_appears_when_it_is_made(root: Path) -> None:
    (root / "source").write_text("x")
    for name, make in (
        ("created", lambda path: path.touch()),
        ("made", lambda path: path.mkdir()),
        ("linked", lambda path: os.link(root / "source", path)),
        ("pointing", lambda path: path.symlink_to("source")),
        ("moved", lambda path: os.rename(root / "source", path)),
    ):
        path = root / name
        assert not os.path.lexists(path)
        assert not os.path.lexists(path)  # this one out of the kernel's memory
        make(path)
        assert os.path.lexists(path)


def test_hard_links_are_one_file_with_many_names(root: Path) -> None:
    (root / "one").write_text("content")
    os.link(root / "one", root / "two")
    assert os.path.samefile(root / "one", root / "two")
    assert (root / "one").stat().st_nlink == 2
    (root / "two").write_text("changed")
    assert (root / "one").read_text() == "changed"
    (root / "one").unlink()
    assert (root / "two").stat().st_nlink == 1
    (root / "dir").mkdir()
    with failing(errno.EPERM):
        os.link(root / "dir", root / "dir2")


def test_symlinks_keep_their_target_of_up_to_4095_bytes(root: Path) -> None:
    target = "x" * 200 + "/" + "y" * 3894
    os.symlink(target, root / "link")
    assert os.readlink(root / "link") == target
    assert os.lstat(root / "link").st_size == 4095
    os.symlink("nowhere", root / "dangling")
    with failing(errno.ENOENT):
        (root / "dangling").stat()


def test_names_are_bytes_of_up_to_255(root: Path) -> None:
    base = os.fsencode(root)
    for name in (b"n" * 255, b"caf\xc3\xa9", b"latin-1 \xe9", b" ", b"-rf", b"a\nb"):
        with open(os.path.join(base, name), "w"):
            pass
        assert name in os.listdir(base)
    with failing(errno.ENAMETOOLONG):
        (root / ("n" * 256)).stat()
    with failing(errno.ENAMETOOLONG):
        (root / ("n" * 256)).mkdir()
    assert os.statvfs(root).f_namemax == 255


def test_xattrs_are_set_listed_replaced_and_removed(root: Path) -> None:
    path = root / "file"
    path.touch()
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "trusted.two", bytes(range(256)) * 16)
    assert sorted(os.listxattr(path)) == ["trusted.two", "user.one"]
    assert os.getxattr(path, "trusted.two") == bytes(range(256)) * 16
    with failing(errno.EEXIST):
        os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.one", b"2", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.one") == b"2"
    with failing(errno.ENODATA):
        os.setxattr(path, "user.other", b"2", os.XATTR_REPLACE)
    os.removexattr(path, "user.one")
    assert os.listxattr(path) == ["trusted.two"]
    with failing(errno.ENODATA):
        os.getxattr(path, "user.one")
    with failing(errno.ENODATA):
        os.removexattr(path, "user.one")
    os.setxattr(root, "user.on-a-directory", b"")
    assert os.getxattr(root, "user.on-a-directory") == b""


def test_the_memory_of_capabilities_is_exact(root: Path) -> None:
    path = root / "program"
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service
    path.touch()
    with failing(errno.ENODATA):
        os.getxattr(path, "security.capability")
    os.setxattr(path, "security.capability", capability)
    assert os.getxattr(path, "security.capability") == capability
    path.write_bytes(b"x")  # the kernel drops it when the file is written
    with failing(errno.ENODATA):
        os.getxattr(path, "security.capability")
    os.setxattr(path, "security.capability", capability)
    os.removexattr(path, "security.capability")
    with failing(errno.ENODATA):
        os.getxattr(path, "security.capability")


def test_times_have_nanoseconds_and_may_lie_before_1970(root: Path) -> None:
    path = root / "file"
    path.touch()
    for atime, mtime in ((1, 2), (-1, -1_500_000_001), (4_000_000_000_123_456_789, 7)):
        os.utime(path, ns=(atime, mtime))
        found = path.stat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (atime, mtime)


def test_changes_move_the_times_that_posix_says(root: Path) -> None:
    path = root / "dir" / "file"
    path.parent.mkdir()
    path.touch()
    for base in (path, path.parent):
        os.utime(base, ns=(0, 0))
    os.utime(path, ns=(0, 0))
    before = path.stat().st_ctime_ns
    path.write_text("x")
    assert path.stat().st_mtime_ns > 0
    assert path.stat().st_ctime_ns >= before
    assert path.parent.stat().st_mtime_ns == 0
    (path.parent / "other").touch()
    assert path.parent.stat().st_mtime_ns > 0
    assert path.stat().st_atime_ns == 0


def test_modes_and_owners_are_kept_and_checked_by_the_kernel(root: Path) -> None:
    path = root / "file"
    path.write_text("secret")
    path.chmod(0o640)
    os.chown(path, 12, 34)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 12, 34)
    assert "Permission denied" in as_nobody('cat "$1"', path).stderr
    path.chmod(0o644)
    assert as_nobody('cat "$1"', path).stdout == "secret"
    assert "Permission denied" in as_nobody('touch "$1/new"', root).stderr


def test_setgid_directories_pass_their_group_on(root: Path) -> None:
    shared = root / "shared"
    shared.mkdir()
    os.chown(shared, 0, 77)
    shared.chmod(0o2777)
    assert as_nobody('touch "$1/file"; mkdir "$1/dir"', shared).returncode == 0
    assert ((shared / "file").stat().st_uid, (shared / "file").stat().st_gid) == (NOBODY, 77)
    assert (shared / "dir").stat().st_gid == 77
    assert (shared / "dir").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize("script", [': >"$1"', 'echo x >>"$1"'])
def test_writing_by_another_user_drops_the_suid_bit(root: Path, script: str) -> None:
    path = root / "program"
    path.write_text("code")
    path.chmod(0o6777)
    assert as_nobody(script, path).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_special_files_keep_their_kind_and_device(root: Path) -> None:
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "big", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{root}/s")
    assert stat.S_ISFIFO(os.stat(root / "fifo").st_mode)
    assert stat.S_ISSOCK(os.stat(root / "s").st_mode)
    assert os.stat(root / "null").st_rdev == os.makedev(1, 3)
    assert os.stat(root / "big").st_rdev == os.makedev(259, 70_000)
    assert (root / "null").read_bytes() == b""  # devices work on a mount made by root


def test_rename_moves_files_and_replaces_what_is_there(root: Path) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    with (root / "b").open() as replaced:
        os.rename(root / "a", root / "b")
        assert (root / "b").read_text() == "a"
        assert replaced.read() == "b"
        assert os.fstat(replaced.fileno()).st_nlink == 0
    assert sorted(os.listdir(root)) == ["b"]
    with failing(errno.ENOENT):
        os.rename(root / "gone", root / "b")


def test_rename_moves_whole_directories(root: Path) -> None:
    (root / "from/deep/er").mkdir(parents=True)
    (root / "from/deep/er/file").write_text("x")
    (root / "to").mkdir()
    ino = (root / "from/deep").stat().st_ino
    os.rename(root / "from/deep", root / "to/moved")
    assert (root / "to/moved").stat().st_ino == ino
    assert (root / "to/moved/er/file").read_text() == "x"
    assert os.stat(root / "to/moved/..").st_ino == (root / "to").stat().st_ino
    assert ((root / "from").stat().st_nlink, (root / "to").stat().st_nlink) == (2, 3)
    with failing(errno.EINVAL):
        os.rename(root / "to", root / "to/moved/er/loop")
    (root / "from/full").mkdir()
    with failing(errno.ENOTEMPTY):
        os.rename(root / "to", root / "from")
    (root / "from/full").rmdir()
    os.rename(root / "to", root / "from")
    assert (root / "from/moved/er/file").read_text() == "x"


def test_rename_exchanges_or_refuses_to_replace(root: Path) -> None:
    (root / "file").write_text("x")
    (root / "dir/sub").mkdir(parents=True)
    with failing(errno.EEXIST):
        renameat2(root / "file", root / "dir", RENAME_NOREPLACE)
    renameat2(root / "file", root / "dir", RENAME_EXCHANGE)
    assert (root / "dir").read_text() == "x"
    assert (root / "file/sub").is_dir()
    renameat2(root / "dir", root / "free", RENAME_NOREPLACE)
    assert (root / "free").read_text() == "x"


def test_an_unlinked_file_lives_while_it_is_open_and_its_space_comes_back(
    mount: TestMount,
) -> None:
    path = mount.root / "file"
    with path.open("w+b") as file:
        file.write(b"x" * 1_000_000)
        file.flush()
        path.unlink()
        file.write(b"y" * 1_000_000)
        file.seek(0)
        assert file.read() == b"x" * 1_000_000 + b"y" * 1_000_000
        assert os.fstat(file.fileno()).st_nlink == 0
        mount.control.call("commit")
        assert mount.control.call("stats")["used"] > 1_900_000
    # the kernel sends the release after close has returned
    assert wait_until(lambda: mount.control.call("stats")["used"] == 0)


def wait_until(condition: Callable[[], bool]) -> bool:
    """Ask until the kernel has made it true, at its own time."""
    return any(condition() for _ in range(500))


def test_a_removed_directory_in_which_somebody_stands_can_still_be_asked(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "file").write_text("x")
    for name, remove in (("dir", os.rmdir), ("file", os.unlink)):
        fd = os.open(root / name, os.O_PATH)  # the kernel knows it, but we never saw it opened
        try:
            remove(root / name)
            assert os.fstat(fd).st_nlink == 0
        finally:
            os.close(fd)


def test_holes_take_no_space_and_big_files_work(root: Path) -> None:
    path = root / "sparse"
    with path.open("w+b") as file:
        file.seek(5 << 30)
        file.write(b"end")
        file.flush()
        found = os.fstat(file.fileno())
        assert found.st_size == (5 << 30) + 3
        assert found.st_blocks == 8
        assert os.pread(file.fileno(), 10_000, 3 << 30) == bytes(10_000)
        assert os.pread(file.fileno(), 10, (5 << 30) - 2) == b"\0\0end"
    os.truncate(path, 10**15)
    assert path.stat().st_size == 10**15
    os.truncate(path, 0)
    assert path.stat().st_blocks == 0


def test_64_mib_in_odd_pieces_come_back_as_written(root: Path) -> None:
    piece = os.urandom(1_000_003)
    with (root / "big").open("wb", buffering=0) as file:
        for _ in range(64):
            file.write(piece)
        os.fsync(file.fileno())
    with (root / "big").open("rb") as file:
        for _ in range(64):
            assert file.read(len(piece)) == piece
        assert file.read() == b""


def test_mapped_memory_is_written_back(root: Path) -> None:
    path = root / "mapped"
    path.write_bytes(bytes(100_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[50_000:50_005] = b"hello"
        memory.flush()
    assert path.read_bytes()[50_000:50_005] == b"hello"


def test_a_directory_of_thousands_can_be_read_while_it_is_emptied(root: Path) -> None:
    for number in range(4_000):
        os.mknod(root / f"file-{number:05d}")
    seen = []
    with os.scandir(root) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == [f"file-{number:05d}" for number in range(4_000)]
    assert os.listdir(root) == []


def test_listings_begin_with_the_directory_and_its_parent(root: Path) -> None:
    (root / "dir").mkdir()
    listing = subprocess.run(
        ["ls", "-fai1", root / "dir"], capture_output=True, text=True, check=True
    )
    assert [line.split() for line in listing.stdout.splitlines()] == [
        [str((root / "dir").stat().st_ino), "."],
        [str(root.stat().st_ino), ".."],
    ]


def test_statfs_counts_what_files_use(tmp_path: Path) -> None:
    with mounted(tmp_path, size=100 << 20) as mount:
        before = os.statvfs(mount.root)
        assert before.f_blocks * before.f_frsize == 100 << 20
        (mount.root / "file").write_bytes(b"x" * 4_096_000)
        after = os.statvfs(mount.root)
        assert before.f_bfree - after.f_bfree == 1_000


def test_statfs_never_tells_more_than_the_pool_has(mount: TestMount) -> None:
    told = os.statvfs(mount.root)
    assert told.f_blocks * told.f_frsize == 1 << 40
    disk = os.statvfs(mount.base)
    assert told.f_bavail * told.f_frsize < disk.f_blocks * disk.f_frsize


def test_the_full_volume_says_so_and_keeps_what_it_has(root: Path) -> None:
    with (root / "file").open("wb", buffering=0) as file:
        file.write(b"kept")
        with failing(errno.EFBIG):
            os.pwrite(file.fileno(), b"x", (1 << 63) - 10_000)
    assert (root / "file").read_bytes() == b"kept"
