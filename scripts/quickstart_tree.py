"""The quickstart's real tree, what is changed in it, and the comparison of two of them."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

FILES_WANTED = 20_000
SOURCES = (
    "/usr/share",
    "/usr/lib/python3",
    "/usr/lib/python3.11",
    "/usr/include",
    "/usr/lib",
    "/etc",
)
MANY = 3_000
BLOCK = 4096


def choose_sources() -> list[Path]:
    """Real trees of this machine with at least `FILES_WANTED` files in all."""
    chosen: list[Path] = []
    total = 0
    for source in map(Path, SOURCES):
        if total >= FILES_WANTED:
            break
        if not source.is_dir() or any(other in source.parents for other in chosen):
            continue
        parts = sorted(p for p in source.iterdir() if p.is_dir() and not p.is_symlink())
        for part in parts:
            total += sum(len(files) for _, _, files in os.walk(part))
            chosen.append(part)
            if total >= FILES_WANTED:
                break
    return chosen


def corner_cases(top: Path) -> None:
    """What ordinary trees rarely hold."""
    top.mkdir()
    file = top / "owned by somebody"
    file.write_bytes(b"x" * 10_000)
    os.chown(file, 1234, 5678)
    os.chmod(file, 0o4751)
    os.setxattr(file, "user.comment", b"kept \x00 as it is")
    os.setxattr(file, "trusted.note", b"only root sees this")
    os.link(file, top / "another name")
    os.link(file, top / "a third name")
    os.symlink("nowhere/at all", top / "dangling")
    os.utime(file, ns=(-86_400_000_000_000, 4_300_000_000_123_456_789))
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
        sparse.seek(123 << 30)
        sparse.write(b"far out")
    (top / os.fsdecode(b"not \xff utf-8")).write_bytes(b"")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    many = top / "thousands"
    many.mkdir()
    for number in range(MANY):
        (many / f"{number:05}.txt").write_bytes(b"%d\n" % number)
    with (top / "image").open("wb") as image:
        image.truncate(256 << 20)
        for position in range(0, 256 << 20, 16 << 20):
            image.seek(position)
            image.write(os.urandom(1 << 20))


def inodes(mount: Path) -> int:
    """Inodes in a mounted volume."""
    found = os.statvfs(mount)
    return found.f_files - found.f_ffree


def fill(mount: Path, say: Callable[[str], None]) -> tuple[int, int]:
    """Copy real trees into the volume; files and bytes in it then.

    A machine with few files gives them more than once, under other names.
    """
    sources, number = choose_sources(), 0
    while number == 0 or inodes(mount) < FILES_WANTED:
        for source in sources:
            say(f"{source}, {inodes(mount)} inodes so far")
            target = mount / f"{number:03}-{source.name}"
            subprocess.run(["cp", "-a", "--", source, target], check=True)
            number += 1
    corner_cases(mount / "corner cases")
    files = [os.path.join(where, name) for where, _, names in os.walk(mount) for name in names]
    return len(files), sum(os.lstat(file).st_blocks * 512 for file in files)


def change(mount: Path) -> str:
    """Edit, append, rename, delete, add; says what it did."""
    corner = mount / "corner cases"
    with (corner / "image").open("r+b") as image:
        image.seek(7 * BLOCK)
        image.write(os.urandom(BLOCK))
    with (corner / "another name").open("ab") as file:
        file.write(b"appended")
    os.rename(corner / "thousands", mount / "renamed thousands")
    edited = removed = 0
    ordinary = sorted(p for p in mount.iterdir() if p.name[:3].isdecimal())
    files = [os.path.join(where, name) for top in ordinary for where, _, names in os.walk(top)
             for name in names]  # fmt: skip
    for number, path in enumerate(files[:: max(len(files) // 600, 1)]):
        if os.path.islink(path):
            continue
        if number % 3 == 0:
            os.unlink(path)
            removed += 1
        else:
            with open(path, "ab") as file:
                file.write(b"\nedited\n")
            edited += 1
    os.removexattr(corner / "a third name", "user.comment")
    os.chmod(corner / "sparse", 0o400)
    added = mount / "added"
    added.mkdir()
    for number in range(200):
        (added / f"{number}").write_bytes(os.urandom(3000))
    return (
        f"{edited} files edited, {removed} deleted, 200 added, "
        f"a directory of {MANY} renamed, 1 block of a 256 MiB file written"
    )


# the comparison


def walk(top: bytes) -> Iterator[bytes]:
    """All paths below *top*, relative, itself included."""
    yield b"."
    for where, directories, files in os.walk(top):
        below = os.path.relpath(where, top)
        for name in (*directories, *files):
            yield os.path.normpath(os.path.join(below, name))


FIELDS = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size",
          "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blocks")  # fmt: skip


def differences(one: Path, other: Path) -> tuple[int, int, list[str]]:
    """Paths and bytes compared, and every difference in words."""
    top, second = os.fsencode(one), os.fsencode(other)
    paths, others = sorted(walk(top)), sorted(walk(second))
    found = [f"only in one: {path!r}" for path in set(paths) ^ set(others)]
    compared = 0
    for path in paths:
        a, b = os.path.join(top, path), os.path.join(second, path)
        try:
            left, right = os.lstat(a), os.lstat(b)
        except FileNotFoundError:
            continue
        for name in FIELDS:
            if getattr(left, name) != getattr(right, name):
                values = f"{getattr(left, name)} and {getattr(right, name)}"
                found.append(f"{path!r}: {name} is {values}")
        names = os.listxattr(a, follow_symlinks=False)
        if sorted(names) != sorted(os.listxattr(b, follow_symlinks=False)):
            found.append(f"{path!r}: other extended attributes")
        elif any(
            os.getxattr(a, name, follow_symlinks=False)
            != os.getxattr(b, name, follow_symlinks=False)
            for name in names
        ):
            found.append(f"{path!r}: another value of an extended attribute")
        if stat.S_ISLNK(left.st_mode) and os.readlink(a) != os.readlink(b):
            found.append(f"{path!r}: another target")
        if stat.S_ISREG(left.st_mode) and left.st_size < 1 << 32:
            compared += left.st_size
            if not same_content(a, b):
                found.append(f"{path!r}: other content")
        elif stat.S_ISREG(left.st_mode) and not same_far_out(a, b):
            found.append(f"{path!r}: other content")
    return len(paths), compared, found


def same_content(a: bytes, b: bytes) -> bool:
    with open(a, "rb") as left, open(b, "rb") as right:
        while True:
            one, two = left.read(1 << 20), right.read(1 << 20)
            if one != two:
                return False
            if not one:
                return True


def same_far_out(a: bytes, b: bytes) -> bool:
    """The sparse file: 1 TiB of holes, compared where it was written and around."""
    places = (0, (123 << 30) - 8192, 123 << 30, (123 << 30) + 8192, (1 << 40) - 8192)
    with open(a, "rb") as left, open(b, "rb") as right:
        for place in places:
            left.seek(place)
            right.seek(place)
            if left.read(8192) != right.read(8192):
                return False
    return True
