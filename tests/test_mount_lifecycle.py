"""The life of a mount process: busy places, clean ends, and being killed while it writes."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import random
import signal
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nasfs.errors import Failed
from nasfs.fuse.background import is_news
from nasfs.fuse.mount import mount_in_background, unmount
from nasfs.fuse.mountpoint import find_mount
from nasfs.volume import NoSuchVolume, open_volume
from tests.mounts import TestMount, failing, mounted, wait_for_end

pytestmark = pytest.mark.mount


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[TestMount]:
    with mounted(tmp_path) as found:
        yield found


def content(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number).digest() * 100


def test_everything_is_there_after_unmount_and_mount(mount: TestMount) -> None:
    for number in range(200):
        (mount.root / f"file-{number}").write_bytes(content(number))
    before = {entry.name: entry.inode() for entry in os.scandir(mount.root)}
    mount.unmount()
    assert os.listdir(mount.root) == []
    mount.mount()
    assert {entry.name: entry.inode() for entry in os.scandir(mount.root)} == before
    for number in range(200):
        assert (mount.root / f"file-{number}").read_bytes() == content(number)


def test_unmount_returns_when_everything_is_durable_and_the_volume_is_free(
    mount: TestMount,
) -> None:
    (mount.root / "file").write_text("kept")
    mount.unmount()
    with open_volume(mount.volume_path) as volume:  # no VolumeBusy
        assert volume.read(volume.lookup(1, b"file").ino, 0, 10) == b"kept"


@pytest.mark.parametrize("how", ["fusermount3", "umount", "SIGTERM", "SIGINT", "stop"])
def test_every_way_to_end_a_mount_keeps_what_was_written(mount: TestMount, how: str) -> None:
    (mount.root / "file").write_text("kept")
    end = os.pidfd_open(mount.pid)
    try:
        match how:
            case "fusermount3":
                subprocess.run(["fusermount3", "-u", mount.root], check=True)
            case "umount":
                subprocess.run(["umount", mount.root], check=True)
            case "stop":
                mount.control.call("stop")
            case name:
                os.kill(mount.pid, signal.Signals[name])
        wait_for_end(end)
    finally:
        os.close(end)
    assert find_mount(mount.root) is None
    assert not (mount.base / "control.sock").exists()
    mount.check()
    mount.mount()
    assert (mount.root / "file").read_text() == "kept"


def test_a_signal_ends_the_mount_though_files_are_open(mount: TestMount) -> None:
    end = os.pidfd_open(mount.pid)
    file = os.open(mount.root / "file", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(file, b"kept")
        os.kill(mount.pid, signal.SIGTERM)
        wait_for_end(end)
        with failing(errno.ENOTCONN):
            os.write(file, b"lost")
    finally:
        os.close(end)
        with suppress(OSError):
            os.close(file)
    mount.mount()
    assert (mount.root / "file").read_bytes() == b"kept"


def test_unmounting_what_is_in_use_fails_and_leaves_it_mounted(mount: TestMount) -> None:
    with (mount.root / "file").open("w") as file:
        with pytest.raises(Failed, match="busy"):
            unmount(mount.root)
        file.write("still works")
    assert (mount.root / "file").read_text() == "still works"


def test_a_copy_of_the_mount_in_another_name_space_does_not_keep_it(mount: TestMount) -> None:
    """As a container has it that was started while the volume was mounted."""
    (mount.root / "f").write_text("kept")
    other = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        seen = Path(f"/proc/{other.pid}/root{mount.root}/f")
        seen.write_text("written there")
        unmount(mount.root, timeout_s=30)
        with failing(errno.ENOTCONN):
            seen.read_text()
        mount.mount()
        assert (mount.root / "f").read_text() == "written there"
    finally:
        other.communicate()


def test_unmounting_what_is_not_ours_fails(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no nasfs volume is mounted"):
        unmount(tmp_path)
    with pytest.raises(Failed, match="no nasfs volume is mounted"):
        unmount(Path("/proc"))


def test_a_place_that_cannot_be_mounted_on_is_told_with_the_reason(mount: TestMount) -> None:
    (mount.base / "a-file").touch()
    for place, reason in (
        (mount.root, "is busy"),
        (Path("/proc"), "is busy"),
        (mount.base / "missing", "No such file or directory"),
        (mount.base / "a-file", "not a directory"),
    ):
        with pytest.raises(Failed, match=reason):
            mount_in_background(mount.volume_path, place, fsname="x", timeout_s=30)
    assert (mount.root).is_mount()


def test_a_volume_that_is_mounted_or_missing_is_told(mount: TestMount) -> None:
    other = mount.base / "other"
    other.mkdir()
    with pytest.raises(Failed, match="in use"):
        mount_in_background(mount.volume_path, other, fsname="x", timeout_s=30)
    with pytest.raises(Failed, match="no volume"):
        mount_in_background(mount.base / "pool/nothing", other, fsname="x", timeout_s=30)
    assert issubclass(NoSuchVolume, Failed)
    assert find_mount(other) is None


def test_without_a_place_for_the_control_socket_nothing_is_mounted(mount: TestMount) -> None:
    mount.unmount()
    with pytest.raises(Failed, match="control socket"):
        mount_in_background(
            mount.volume_path,
            mount.root,
            control=mount.base / "missing/control.sock",
            fsname="x",
            timeout_s=30,
        )
    assert find_mount(mount.root) is None


def test_the_process_inherits_nothing_of_its_caller(mount: TestMount) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        mount.unmount()
        mount.mount()
        table = Path(f"/proc/{mount.pid}/fd")
        found = {os.readlink(entry) for entry in table.iterdir()}
        assert os.readlink(f"/proc/self/fd/{writing}") not in found
        for number in ("0", "1", "2"):
            assert os.readlink(table / number) == "/dev/null"
        assert os.readlink(f"/proc/{mount.pid}/cwd") == "/"
        assert os.getsid(mount.pid) not in (os.getsid(0), mount.pid)
    finally:
        os.close(reading)
        os.close(writing)


def test_mount_tables_name_the_volume(mount: TestMount) -> None:
    found = find_mount(mount.root)
    assert found is not None
    assert (found.fstype, found.source) == ("fuse.nasfs", "pool/home")


def test_file_handles_outlive_the_mount_process(mount: TestMount) -> None:
    """What an NFS server keeps of a file works after a restart: inode number and generation."""
    libc = ctypes.CDLL(None, use_errno=True)
    (mount.root / "dir").mkdir()
    (mount.root / "dir/file").write_text("content")
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    path = os.fsencode(mount.root / "dir/file")
    number = ctypes.c_int()
    assert libc.name_to_handle_at(-100, path, handle, ctypes.byref(number), 0) == 0
    mount.unmount()
    mount.mount()
    root = os.open(mount.root, os.O_RDONLY)
    try:
        fd = libc.open_by_handle_at(root, handle, os.O_RDONLY)
        assert fd >= 0, os.strerror(ctypes.get_errno())
        assert os.read(fd, 100) == b"content"
        os.close(fd)
    finally:
        os.close(root)


class SyncingWriter:
    """Writes and fsyncs files, over and over; remembers what fsync acknowledged."""

    def __init__(self, root: Path, number: int) -> None:
        self._root = root
        self._number = number
        self.acknowledged: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run)
        self.enough = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        count = 0
        try:
            while True:
                name = f"{self._number}-{count % 7}"
                fresh = self._root / f"{name}.new"
                with fresh.open("wb", buffering=0) as file:
                    file.write(content(count))
                    os.fsync(file.fileno())
                os.rename(fresh, self._root / name)
                directory = os.open(self._root, os.O_RDONLY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
                self.acknowledged[name] = count
                count += 1
                if count == 20:
                    self.enough.set()
        except OSError:  # the mount was killed
            self.enough.set()


@pytest.mark.parametrize("seed", range(4))
def test_after_kill_everything_synced_is_there_and_snapshots_read_as_before(
    mount: TestMount, seed: int
) -> None:
    chance = random.Random(seed)
    (mount.root / "steady").write_bytes(content(1))
    mount.snapshot("before")
    (mount.root / "steady").write_bytes(content(2))
    writers = [SyncingWriter(mount.root, number) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        assert writer.enough.wait(60)
    mount.snapshot("amid")
    amid = {p.name: p.read_bytes() for p in (mount.root / ".snapshots/amid").iterdir()}
    (mount.root / "unsynced").write_bytes(content(3))
    for _ in range(chance.randrange(5, 60)):  # some more work, of a random amount
        (mount.root / "touched").write_bytes(content(4))
    mount.kill()
    for writer in writers:
        writer.join()

    mount.mount()  # over the dead mount
    for writer in writers:
        for name, count in writer.acknowledged.items():
            found = (mount.root / name).read_bytes()
            later = {content(number) for number in range(count, count + 8)}
            assert found in later, f"{name}: neither what was synced nor anything newer"
    old = mount.root / ".snapshots"
    assert (old / "before/steady").read_bytes() == content(1)
    assert os.listdir(old / "before") == ["steady"]
    assert {p.name: p.read_bytes() for p in (old / "amid").iterdir()} == amid
    assert (mount.root / "steady").read_bytes() == content(2)


def test_after_kill_the_volume_is_sound_though_nobody_mounts_it(mount: TestMount) -> None:
    for number in range(100):
        (mount.root / f"file-{number}").write_bytes(content(number))
    mount.snapshot("s")
    for number in range(100):
        (mount.root / f"file-{number}").write_bytes(content(number + 1))
    mount.kill()
    with failing(errno.ENOTCONN):
        os.listdir(mount.root)
    mount.check()
    unmount(mount.root)  # a dead mount too can be unmounted
    assert find_mount(mount.root) is None


def test_changes_are_committed_unasked_after_the_interval(tmp_path: Path) -> None:
    with mounted(tmp_path, interval_s=0.05) as mount:
        (mount.root / "file").write_bytes(content(1))
        before = mount.control.call("stats")["commits"]
        (mount.root / "other").write_bytes(content(2))
        while mount.control.call("stats")["commits"] < before + 2:
            (mount.root / "more").write_bytes(content(3))
        mount.kill()
        mount.mount()
        assert (mount.root / "file").read_bytes() == content(1)
        assert (mount.root / "other").read_bytes() == content(2)


@pytest.mark.parametrize(
    ("reason", "told"), [(errno.ENOENT, False), (errno.EIO, True), (errno.ENODEV, True)]
)
def test_an_answer_that_nobody_waits_for_is_no_error(reason: int, told: bool) -> None:
    text = "fuse_releasedir(): fuse_reply_* failed with %s"
    said = (os.strerror(reason),)
    ours = logging.LogRecord("nasfs.fuse.mount", logging.ERROR, "", 1, text, said, None)
    theirs = logging.LogRecord("pyfuse3", logging.ERROR, "", 1, text, said, None)
    assert is_news(ours)
    assert is_news(theirs) == told
