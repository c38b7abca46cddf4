"""readdir(3): every name that is there all the time is seen once, whatever else happens."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.posix.calls import KINDS, make

pytestmark = pytest.mark.mount

_libc = ctypes.CDLL(None, use_errno=True)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_ulong),
        ("offset", ctypes.c_long),
        ("length", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.telldir.restype = ctypes.c_long


class Stream:
    """A directory stream of the C library, with its positions."""

    def __init__(self, path: Path) -> None:
        self._stream = ctypes.c_void_p(_libc.opendir(os.fsencode(path)))

    def read(self) -> str | None:
        entry = _libc.readdir(self._stream)
        return os.fsdecode(entry.contents.name) if entry else None

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def names(self) -> Iterator[str]:
        while (name := self.read()) is not None:
            yield name

    def close(self) -> None:
        _libc.closedir(self._stream)


@contextmanager
def stream(path: Path) -> Iterator[Stream]:
    opened = Stream(path)
    try:
        yield opened
    finally:
        opened.close()


def fill(work: Path, count: int) -> list[str]:
    names = [f"{number:05d}-{'n' * (number % 50)}" for number in range(count)]
    for name in names:
        os.mknod(work / name)
    return names


def test_itself_and_the_one_above_come_with_their_numbers(work: Path) -> None:
    path = make("directory", work / "d")
    make("file", path / "x")
    with stream(path) as found:
        entries = dict.fromkeys(found.names())
    assert sorted(entries) == [".", "..", "x"]
    with os.scandir(path) as scanned:
        assert {entry.name: entry.inode() for entry in scanned} == {"x": (path / "x").stat().st_ino}


def test_entries_tell_their_kind(work: Path) -> None:
    for kind in KINDS:
        make(kind, work / kind)
    with os.scandir(work) as scanned:
        entries = {entry.name: entry for entry in scanned}
    assert {name for name, entry in entries.items() if entry.is_dir(follow_symlinks=False)} == {
        "directory"
    }
    assert {name for name, entry in entries.items() if entry.is_file(follow_symlinks=False)} == {
        "file"
    }
    assert {name for name, entry in entries.items() if entry.is_symlink()} == {"symlink"}
    for name, entry in entries.items():
        assert entry.inode() == os.lstat(work / name).st_ino


def test_positions_can_be_returned_to(work: Path) -> None:
    expected = {*fill(work, 500), ".", ".."}
    with stream(work) as found:
        positions, names = [], []
        while True:
            positions.append(found.tell())
            name = found.read()
            if name is None:
                break
            names.append(name)
        assert set(names) == expected
        assert len(names) == len(expected)
        order = list(range(len(names)))
        random.Random(1).shuffle(order)
        for index in order:
            found.seek(positions[index])
            assert found.read() == names[index]
            following = names[index + 1] if index + 1 < len(names) else None
            assert found.read() == following
        found.rewind()
        assert list(found.names()) == names


def test_positions_stay_when_entries_before_and_behind_them_go(work: Path) -> None:
    names = fill(work, 300)
    with stream(work) as found:
        listed, positions = [], {}
        while True:
            position = found.tell()
            name = found.read()
            if name is None:
                break
            listed.append(name)
            positions[name] = position
        files = [name for name in listed if name in set(names)]
        for name in files[::2]:
            (work / name).unlink()
        for name in files[1::2]:
            found.seek(positions[name])
            assert found.read() == name


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_is_seen_once_while_others_come_and_go(work: Path, seed: int) -> None:
    rng = random.Random(seed)
    staying = set(fill(work, 2_000))
    passing = [f"passing-{number}" for number in range(500)]
    for name in passing:
        os.mknod(work / name)
    alive, made = list(passing), len(passing)
    seen: list[str] = []
    with stream(work) as found:
        for name in found.names():
            seen.append(name)
            match rng.randrange(4):
                case 0 if alive:
                    (work / alive.pop(rng.randrange(len(alive)))).unlink()
                case 1:
                    alive.append(f"passing-{made}")
                    os.mknod(work / alive[-1])
                    made += 1
                case 2 if alive:
                    old = alive.pop(rng.randrange(len(alive)))
                    alive.append(f"passing-{made}")
                    os.rename(work / old, work / alive[-1])
                    made += 1
                case _:
                    pass
            assert len(seen) < 20_000  # new ones may come into sight, but not without an end
    kept = [name for name in seen if name in staying]
    assert len(kept) == len(set(kept)) == len(staying)


def test_a_listing_that_removes_what_it_sees_removes_everything(work: Path) -> None:
    fill(work, 3_000)
    with os.scandir(work) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(work) == []


def test_a_name_that_is_made_again_is_not_seen_for_ever(work: Path) -> None:
    fill(work, 100)
    count = 0
    with stream(work) as found:
        for name in found.names():
            if name.startswith("."):
                continue
            (work / name).unlink()
            os.mknod(work / name)
            count += 1
            if count > 10_000:
                break
    assert count <= 10_000


def test_a_stream_that_is_rewound_sees_what_came_since(work: Path) -> None:
    fill(work, 10)
    with stream(work) as found:
        before = set(found.names())
        make("file", work / "new")
        (work / "00000-").unlink()
        found.rewind()
        assert set(found.names()) == (before | {"new"}) - {"00000-"}


def test_two_streams_do_not_disturb_each_other(work: Path) -> None:
    expected = sorted([*fill(work, 200), ".", ".."])
    with stream(work) as one, stream(work) as two:
        first, second = [], []
        for _ in range(len(expected)):
            first.append(one.read())
            second.append(two.read())
        assert one.read() is two.read() is None
    assert sorted(map(str, first)) == sorted(map(str, second)) == expected


def test_an_empty_one_and_one_of_thousands_are_listed_fully(work: Path) -> None:
    assert os.listdir(work) == []
    names = fill(work, 5_000)
    assert sorted(os.listdir(work)) == names
    assert work.stat().st_nlink == 2
