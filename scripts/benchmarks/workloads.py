"""What is done to a file system, and how often; only what stands below `timed` is measured.

A workload is a function of a `Run`: an empty directory, a scale, and the means to time.  It knows
nothing of who serves the directory.  Set-up before and clean-up after the timed part are free.

"Dropped by the kernel" is what it keeps of the measured file system.  What a server keeps itself,
and the content of the files that it stands on, stays: how fast disks are is not the question.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from machine import drop_names, touch_memory

KIB = 1 << 10
MIB = 1 << 20

SNAPSHOTS = 200
"""How many the overwritten file has been through."""

WARM_BYTES = 256 * MIB
"""Memory that is touched before a workload, for whoever needs more of it then."""

PATIENCE_S = 5.0
"""How long a server may go on working before it is measured nevertheless."""


class Skipped(Exception):
    """It cannot be done here; says why."""


def _no_snapshot() -> None:
    pass


def _no_cpu() -> float:
    return 0.0


class Run:
    """One time that one workload is done.

    Args:
        home: an empty directory, removed afterwards.
        kept: a directory that stays for later runs on the same file system.
        scratch: one on another file system, for what a workload reads from elsewhere.
        scale: how much is done, 1 for a figure that is worth something.
        snapshot: freezes what was set up, where the file system keeps snapshots.
        cpu: seconds of processor time that the serving process has used.
    """

    def __init__(
        self,
        home: Path,
        kept: Path,
        scratch: Path,
        *,
        scale: float = 1.0,
        snapshot: Callable[[], None] = _no_snapshot,
        cpu: Callable[[], float] = _no_cpu,
    ) -> None:
        self.home = home
        self.kept = kept
        self.scratch = scratch
        self.snapshot = snapshot
        self._scale = scale
        self._cpu = cpu
        self.operations = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def scaled(self, count: int) -> int:
        return max(1, round(count * self._scale))

    def names(self, count: int) -> list[str]:
        """Paths in the empty directory, as strings: a Path costs more than a look-up."""
        return [f"{self.home}/file-{number:06}" for number in range(self.scaled(count))]

    def settle(self) -> None:
        """Nothing is left to be written, or to be tidied up, for what was done before."""
        fd = os.open(self.kept, os.O_RDONLY)
        with suppress(OSError):
            os.fsync(fd)
        os.close(fd)
        os.sync()
        deadline = time.monotonic() + PATIENCE_S
        before = self._cpu()
        while time.monotonic() < deadline:
            time.sleep(0.01)
            if (now := self._cpu()) - before < 0.001:
                break
            before = now

    @contextmanager
    def timed(self, operations: int, *, cold: bool = False) -> Iterator[None]:
        """Measures the body, which does that many operations on what is set up and settled.

        Args:
            cold: the kernel has forgotten names and attributes.
        """
        self.snapshot()
        self.settle()
        if cold:
            drop_names()
        touch_memory(WARM_BYTES)  # what goes to a new place needs more of it
        gc.collect()
        gc.disable()
        try:
            cpu, began = self._cpu(), time.perf_counter()
            yield
            self.seconds = time.perf_counter() - began
            self.cpu_seconds = self._cpu() - cpu
        finally:
            gc.enable()
        self.operations = operations


def drop_content(path: str | Path) -> None:
    """The kernel forgets the content of one settled file, as seen through its own file system."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    assert done == len(data), "a short write"


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that cannot be compressed."""
    return random.Random(seed).randbytes(size)


def make_files(names: list[str], size: int) -> None:
    data = noise(size)
    for name in names:
        with open(name, "wb", buffering=0) as file:
            if data:
                file.write(data)


def make_big(path: Path, size: int) -> Path:
    """A file of that many bytes, unless it is there already."""
    if not path.exists() or path.stat().st_size != size:
        block = noise(MIB)
        with open(path, "wb", buffering=0) as file:
            for offset in range(0, size, MIB):
                file.write(block[: size - offset])
    return path


def make_tree(top: Path, files: int) -> int:
    """Small files of many sizes in directories of 20; returns how many things there are."""
    rng = random.Random(2)
    data = noise(64 * KIB)
    made = 0
    for number in range(files):
        if number % 20 == 0:
            directory = top / f"group-{number // 400}" / f"directory-{number // 20}"
            directory.mkdir(parents=True)
            made += 1
        size = min(len(data), int(rng.paretovariate(1.0) * 700))
        (directory / f"file-{number}.txt").write_bytes(data[:size])
        made += 1
    return made


def call(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


# names


def create(run: Run) -> None:
    """create empty files"""
    names = run.names(3000)
    with run.timed(len(names)):
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def make_directories(run: Run) -> None:
    """mkdir"""
    names = run.names(3000)
    with run.timed(len(names)):
        for name in names:
            os.mkdir(name)


def stat_warm(run: Run) -> None:
    """stat, names known to the kernel"""
    names = run.names(3000)
    make_files(names, 0)
    rounds = 5
    with run.timed(len(names) * rounds):
        for _ in range(rounds):
            for name in names:
                os.stat(name)


def stat_cold(run: Run) -> None:
    """stat, names dropped by the kernel"""
    names = run.names(5000)
    make_files(names, 0)
    random.Random(3).shuffle(names)
    with run.timed(len(names), cold=True):
        for name in names:
            os.stat(name)


def stat_missing(run: Run) -> None:
    """stat of names that do not exist, each for the first time"""
    names = run.names(5000)
    with run.timed(len(names)):
        for name in names:
            with suppress(FileNotFoundError):
                os.stat(name)


def list_names(run: Run) -> None:
    """list a directory, per entry"""
    names = run.names(10_000)
    make_files(names, 0)
    with run.timed(len(names), cold=True):
        found = os.listdir(run.home)
    assert len(found) == len(names)


def list_long(run: Run) -> None:
    """list with attributes, as ls -l, per entry"""
    names = run.names(10_000)
    make_files(names, 0)
    with run.timed(len(names), cold=True), os.scandir(run.home) as entries:
        sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
    assert len(sizes) == len(names)


def rename(run: Run) -> None:
    """rename"""
    names = run.names(3000)
    make_files(names, 0)
    with run.timed(len(names)):
        for name in names:
            os.rename(name, name + ".new")


def replace(run: Run) -> None:
    """write a file and rename it over the old one"""
    names = run.names(1500)
    make_files(names, KIB)
    data = noise(KIB, 4)
    fresh = f"{run.home}/fresh"
    with run.timed(len(names)):
        for name in names:
            fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, data)
            os.close(fd)
            os.rename(fresh, name)


def unlink(run: Run) -> None:
    """unlink empty files"""
    names = run.names(3000)
    make_files(names, 0)
    with run.timed(len(names)):
        for name in names:
            os.unlink(name)


def unlink_small(run: Run) -> None:
    """unlink files of 4 KiB"""
    names = run.names(2000)
    make_files(names, 4 * KIB)
    with run.timed(len(names)):
        for name in names:
            os.unlink(name)


def change_attributes(run: Run) -> None:
    """chmod"""
    names = run.names(3000)
    make_files(names, 0)
    with run.timed(len(names)):
        for name in names:
            os.chmod(name, 0o600)


# small files


def write_small(run: Run) -> None:
    """write new files of 4 KiB"""
    names = run.names(2000)
    data = noise(4 * KIB)
    with run.timed(len(names)):
        for name in names:
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, data)
            os.close(fd)


def read_small(run: Run) -> None:
    """read files of 4 KiB, known to the kernel"""
    names = run.names(2000)
    make_files(names, 4 * KIB)
    _read_each(run, names)


def read_small_cold(run: Run) -> None:
    """read files of 4 KiB, names and content dropped by the kernel"""
    names = run.names(2000)
    make_files(names, 4 * KIB)
    run.settle()
    for name in names:
        drop_content(name)
    _read_each(run, names, cold=True)


def _read_each(run: Run, names: list[str], *, cold: bool = False) -> None:
    with run.timed(len(names), cold=cold):
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            data = os.read(fd, 8 * KIB)
            os.close(fd)
    assert len(data) == 4 * KIB


# one large file


def write_sequential(run: Run) -> None:
    """write a new file in requests of 1 MiB, per MiB"""
    count = run.scaled(256)
    data = noise(MIB)
    fd = os.open(run.home / "big", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        with run.timed(count):
            for number in range(count):
                write_all(fd, data, number * MIB)
    finally:
        os.close(fd)


def read_sequential(run: Run) -> None:
    """read a file in requests of 1 MiB, content dropped by the kernel, per MiB"""
    count = run.scaled(256)
    path = make_big(run.kept / "big", count * MIB)
    run.settle()
    drop_content(path)
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(MIB)
        with run.timed(count):
            while size := file.readinto(buffer):
                assert size == MIB


def append_4k(run: Run) -> None:
    """write a new file in requests of 4 KiB"""
    count = run.scaled(5000)
    data = noise(4 * KIB)
    fd = os.open(run.home / "log", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        with run.timed(count):
            for _ in range(count):
                os.write(fd, data)
    finally:
        os.close(fd)


def _random_offsets(run: Run, size: int) -> list[int]:
    count = min(run.scaled(4000), size // (4 * KIB))
    return [4 * KIB * block for block in random.Random(5).sample(range(size // (4 * KIB)), count)]


def read_random(run: Run) -> None:
    """read 4 KiB at random in a large file, content dropped by the kernel"""
    size = run.scaled(256) * MIB
    path = make_big(run.kept / "big", size)
    offsets = _random_offsets(run, size)
    run.settle()
    drop_content(path)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        with run.timed(len(offsets)):
            for offset in offsets:
                os.pread(fd, 4 * KIB, offset)
    finally:
        os.close(fd)


def write_random(run: Run) -> None:
    """write 4 KiB at random in a large file"""
    size = run.scaled(256) * MIB
    path = make_big(run.kept / "big", size)
    offsets = _random_offsets(run, size)
    data = noise(4 * KIB, 6)
    fd = os.open(path, os.O_WRONLY)
    try:
        with run.timed(len(offsets)):
            for offset in offsets:
                write_all(fd, data, offset)
    finally:
        os.close(fd)


def overwrite(run: Run) -> None:
    """overwrite a file that changed between 200 snapshots, 1 MiB requests, per MiB"""
    _overwrite(run, MIB, run.scaled(128))


def overwrite_4k(run: Run) -> None:
    """overwrite a part of such a file in requests of 4 KiB"""
    _overwrite(run, 4 * KIB, run.scaled(3000))


def _overwrite(run: Run, request: int, count: int) -> None:
    """The file is in pieces of all the snapshots, where there are any."""
    size = run.scaled(128) * MIB
    data = noise(request, 7)
    rng = random.Random(8)
    fd = os.open(make_big(run.kept / "overwritten", size), os.O_WRONLY)
    try:
        for _ in range(SNAPSHOTS):
            for _ in range(8):
                write_all(fd, data[: 4 * KIB], rng.randrange(size // (4 * KIB)) * 4 * KIB)
            run.snapshot()
        with run.timed(count):
            for number in range(count):
                write_all(fd, data, number * request)
    finally:
        os.close(fd)


# durability


def sync_writes(run: Run) -> None:
    """append 4 KiB and fsync"""
    count = run.scaled(200)
    data = noise(4 * KIB)
    fd = os.open(run.home / "journal", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        with run.timed(count):
            for _ in range(count):
                os.write(fd, data)
                os.fsync(fd)
    finally:
        os.close(fd)


def sync_files(run: Run) -> None:
    """write new files of 4 KiB, each with fsync"""
    names = run.names(200)
    data = noise(4 * KIB)
    with run.timed(len(names)):
        for name in names:
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)


def database(run: Run) -> None:
    """SQLite: one insert per transaction, rollback journal"""
    count = run.scaled(100)
    db = sqlite3.connect(run.home / "db", isolation_level=None)
    try:
        db.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        value = noise(100)
        with run.timed(count):
            for _ in range(count):
                db.execute("INSERT INTO t (v) VALUES (?)", (value,))
    finally:
        db.close()


# programs


def copy_tree(run: Run) -> None:
    """cp -a of a tree of small files, per object"""
    source, target = run.kept / "tree", run.home / "copy"
    files = run.scaled(2000)
    if not source.exists():
        make_tree(source, files)
    with run.timed(files):
        call("cp", "-a", source, target)


def remove_tree(run: Run) -> None:
    """rm -r of a tree of small files, per object"""
    files = run.scaled(2000)
    make_tree(run.home / "tree", files)
    with run.timed(files):
        call("rm", "-r", run.home / "tree")


def walk_tree(run: Run) -> None:
    """find -size in a tree, names dropped by the kernel, per object"""
    source = run.kept / "tree"
    files = run.scaled(2000)
    if not source.exists():
        make_tree(source, files)
    with run.timed(files, cold=True):
        call("find", source, "-size", "+1000000k")


def extract_tar(run: Run) -> None:
    """tar -x of small files, per object"""
    archive = run.scratch / "tree.tar"
    files = run.scaled(2000)
    if not archive.exists():
        source = run.scratch / "tree-for-tar"
        make_tree(source, files)
        with tarfile.open(archive, "w") as tar:
            tar.add(source, "tree")
        shutil.rmtree(source)
    with run.timed(files):
        call("tar", "-x", "-f", archive, "-C", run.home)


def clone_repository(run: Run) -> None:
    """git clone and git status, per file"""
    files = run.scaled(1000)
    source = _repository(run, files)
    with run.timed(files):
        call("git", "clone", "-q", "--no-hardlinks", source, run.home / "clone")
        call("git", "-C", run.home / "clone", "status", "--short")


def git_status(run: Run) -> None:
    """git status, names dropped by the kernel, per file"""
    files = run.scaled(1000)
    clone = run.home / "clone"
    call("git", "clone", "-q", "--no-hardlinks", _repository(run, files), clone)
    call("git", "-C", clone, "status", "--short")
    with run.timed(files, cold=True):
        call("git", "-C", clone, "status", "--short")


def _repository(run: Run, files: int) -> Path:
    if shutil.which("git") is None:
        raise Skipped("git is not installed")
    source = run.scratch / "repository"
    if not source.exists():
        make_tree(source, files)
        identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
        call("git", "init", "-q", source)
        call("git", "-C", source, "add", ".")
        call("git", "-C", source, *identity, "commit", "-q", "-m", "everything")
    return source


WORKLOADS: dict[str, Callable[[Run], None]] = {
    "create": create,
    "mkdir": make_directories,
    "stat": stat_warm,
    "stat-cold": stat_cold,
    "stat-missing": stat_missing,
    "readdir": list_names,
    "ls-l": list_long,
    "rename": rename,
    "replace": replace,
    "chmod": change_attributes,
    "unlink": unlink,
    "unlink-4k": unlink_small,
    "small-write": write_small,
    "small-read": read_small,
    "small-read-cold": read_small_cold,
    "seq-write": write_sequential,
    "seq-read": read_sequential,
    "seq-write-4k": append_4k,
    "random-read": read_random,
    "random-write": write_random,
    "overwrite": overwrite,
    "overwrite-4k": overwrite_4k,
    "fsync": sync_writes,
    "fsync-files": sync_files,
    "sqlite": database,
    "cp": copy_tree,
    "rm": remove_tree,
    "find": walk_tree,
    "tar": extract_tar,
    "git-clone": clone_repository,
    "git-status": git_status,
}
