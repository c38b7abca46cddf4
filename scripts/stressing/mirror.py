"""The same random operations on the volume and on a plain directory: nobody may see a difference.

Now and then the whole tree is noted and a snapshot taken: that one must show it so for ever.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

NAMES = "abcdefgh"
DEPTH = 3
FILE_BYTES = 300_000
ATTRIBUTES = ("user.one", "user.two")

Picture = dict[str, tuple[object, ...]]


def picture(top: Path) -> Picture:
    """Of each path below *top*: kind, owner, links, size, attributes and content."""
    found: Picture = {}
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = Path(directory, name)
            found[str(path.relative_to(top))] = _look(path)
    return found


def _look(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    about: list[object] = [status.st_mode, status.st_uid, status.st_gid]
    if stat.S_ISLNK(status.st_mode):
        return (*about, os.readlink(path))
    about.append([(name, os.getxattr(path, name)) for name in sorted(os.listxattr(path))])
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()
        about += [status.st_nlink, status.st_size, digest]
    return tuple(about)


def differences(one: Picture, other: Picture) -> list[str]:
    return [
        f"{path}: {one.get(path)} and {other.get(path)}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]


class Mirror:
    """Two trees that are changed in step."""

    def __init__(self, volume: Path, reference: Path, chance: random.Random) -> None:
        self.volume = volume
        self.reference = reference
        self._chance = chance
        self._operations: list[Callable[[], Callable[[Path], object]]] = [
            self._write, self._write, self._write, self._write_mapped, self._read, self._read,
            self._truncate, self._unlink, self._make_directory, self._remove_directory,
            self._rename, self._rename, self._link, self._symlink, self._set_attribute,
            self._remove_attribute, self._change_mode, self._change_owner,
        ]  # fmt: skip
        volume.mkdir()
        reference.mkdir()

    def step(self) -> None:
        """One operation on both; they must give the same, be it an error.  Raises Exception."""
        choose = self._chance.choice(self._operations)
        operation = choose()
        here, there = (_outcome(operation, top) for top in (self.volume, self.reference))
        if here != there:
            raise AssertionError(f"{choose.__name__}: {here!r}, on the other disk {there!r}")

    def differences(self) -> list[str]:
        return differences(picture(self.volume), picture(self.reference))

    # each chooses its arguments, and gives what is done in both trees

    def _path(self) -> str:
        parts = [self._chance.choice(NAMES) for _ in range(self._chance.randint(1, DEPTH))]
        return "/".join(parts)

    def _write(self) -> Callable[[Path], object]:
        path = self._path()
        data = self._chance.randbytes(self._chance.choice([1, 100, 4096, 10_000, 70_000]))
        offset = self._chance.randrange(FILE_BYTES)
        flags = self._chance.choice([0, 0, os.O_APPEND, os.O_TRUNC, os.O_EXCL, os.O_DSYNC])

        def write(top: Path) -> int:
            descriptor = os.open(top / path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
            try:
                return os.pwrite(descriptor, data, offset)
            finally:
                os.close(descriptor)

        return write

    def _write_mapped(self) -> Callable[[Path], object]:
        path = self._path()
        data = self._chance.randbytes(self._chance.choice([1, 100, 4096, 10_000]))
        share = self._chance.random()

        def write(top: Path) -> int:
            with (top / path).open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                if size <= len(data):
                    return 0
                with mmap.mmap(file.fileno(), size) as mapped:
                    offset = int(share * (size - len(data)))
                    mapped[offset : offset + len(data)] = data
                    mapped.flush()
                return offset

        return write

    def _read(self) -> Callable[[Path], object]:
        path, offset = self._path(), self._chance.randrange(FILE_BYTES)
        direct = self._chance.choice([0, 0, os.O_DIRECT])

        def read(top: Path) -> bytes:
            descriptor = os.open(top / path, os.O_RDONLY | direct)
            try:
                with mmap.mmap(-1, 65_536) as buffer:
                    count = os.preadv(descriptor, [buffer], offset & ~0xFFF)
                    return buffer[:count]
            finally:
                os.close(descriptor)

        return read

    def _truncate(self) -> Callable[[Path], object]:
        path, size = self._path(), self._chance.randrange(FILE_BYTES)
        return lambda top: os.truncate(top / path, size)

    def _unlink(self) -> Callable[[Path], object]:
        path = self._path()
        return lambda top: os.unlink(top / path)

    def _make_directory(self) -> Callable[[Path], object]:
        path = self._path()
        return lambda top: os.mkdir(top / path)

    def _remove_directory(self) -> Callable[[Path], object]:
        path = self._path()
        return lambda top: os.rmdir(top / path)

    def _rename(self) -> Callable[[Path], object]:
        old, new = self._path(), self._path()
        return lambda top: os.rename(top / old, top / new)

    def _link(self) -> Callable[[Path], object]:
        old, new = self._path(), self._path()
        return lambda top: os.link(top / old, top / new, follow_symlinks=False)

    def _symlink(self) -> Callable[[Path], object]:
        target, path = self._path(), self._path()
        return lambda top: os.symlink(target, top / path)

    def _set_attribute(self) -> Callable[[Path], object]:
        path, name = self._path(), self._chance.choice(ATTRIBUTES)
        value = self._chance.randbytes(self._chance.choice([0, 10, 1000]))
        return lambda top: os.setxattr(top / path, name, value)

    def _remove_attribute(self) -> Callable[[Path], object]:
        path, name = self._path(), self._chance.choice(ATTRIBUTES)
        return lambda top: os.removexattr(top / path, name)

    def _change_mode(self) -> Callable[[Path], object]:
        path, mode = self._path(), self._chance.choice([0o600, 0o644, 0o755, 0o2775, 0o1777])
        return lambda top: os.chmod(top / path, mode)

    def _change_owner(self) -> Callable[[Path], object]:
        path, uid, gid = self._path(), self._chance.randrange(3), self._chance.randrange(3)
        return lambda top: os.chown(top / path, uid, gid, follow_symlinks=False)


def _outcome(operation: Callable[[Path], object], top: Path) -> object:
    try:
        return operation(top)
    except OSError as exc:
        if exc.errno == errno.ENOTEMPTY:  # rename(2) may say either, and XFS says the other
            return os.strerror(errno.EEXIST)
        return os.strerror(exc.errno or 0)
    except ValueError as exc:  # an empty file cannot be mapped
        return str(exc)
