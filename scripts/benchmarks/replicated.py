"""What is replicated: data sets that are made alike on all file systems, and changed.

A data set is a first state and changes of it; after each a copy is brought up to date.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nasfs.volume import BLOCK

MIB = 1 << 20
_WORDS = [b"%x " % (number * 2654435761 % (1 << 32)) for number in range(4096)]


class Tree(Protocol):
    """A file system that a data set is made in.  Paths are relative, without dots."""

    def mkdir(self, path: str) -> None: ...

    def create(self, path: str) -> None: ...

    def write(self, path: str, offset: int, data: bytes) -> None: ...

    def rename(self, old: str, new: str) -> None: ...


class HostTree:
    """Below a directory.  Times of files that change again differ by whole seconds."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._clock = int(os.stat(root).st_mtime)

    def new_round(self) -> None:
        """rsync's quick check looks at whole seconds."""
        self._clock += 10

    def mkdir(self, path: str) -> None:
        (self._root / path).mkdir()

    def create(self, path: str) -> None:
        (self._root / path).touch()

    def write(self, path: str, offset: int, data: bytes) -> None:
        fd = os.open(self._root / path, os.O_WRONLY)
        try:
            os.pwrite(fd, data, offset)
            os.utime(fd, (self._clock, self._clock))
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        (self._root / old).rename(self._root / new)


def text(chance: random.Random, count: int) -> bytes:
    """Bytes that shrink to about a third, like what people keep."""
    words = chance.choices(_WORDS, k=count // 8 + 1)
    return b"".join(words)[:count].ljust(count, b".")


def mixed(chance: random.Random, count: int) -> bytes:
    """Half of it text, half of it noise, by the megabyte, like what machines keep."""
    return text(chance, count) if chance.random() < 0.5 else chance.randbytes(count)


Step = Callable[[Tree, random.Random], None]


@dataclass(frozen=True, slots=True)
class DataSet:
    """What is made first, and what is changed then, each with its name."""

    name: str
    fill: Step
    changes: dict[str, Step]


def small_files(count: int) -> DataSet:
    """In four directories; a changed file is written anew."""
    quarter = max(count // 5, 1)

    def place(number: int) -> str:
        return f"d{min(number // quarter, 4)}/file-{number:06}"

    def fill(tree: Tree, chance: random.Random) -> None:
        for number in range(5):
            tree.mkdir(f"d{number}")
        for number in range(count):
            tree.create(place(number))
            tree.write(place(number), 0, text(chance, chance.randrange(200, 8000)))

    def change(tree: Tree, chance: random.Random) -> None:
        for number in sorted(chance.sample(range(count), min(100, count // 10))):
            tree.write(place(number), 0, text(chance, 8000))

    def rename(tree: Tree, chance: random.Random) -> None:
        tree.rename("d2", "renamed")

    return DataSet(
        f"{count:,} small files",
        fill,
        {"100 of them changed": change, f"{quarter:,} renamed with their directory": rename},
    )


def large_file(size: int) -> DataSet:
    def fill(tree: Tree, chance: random.Random) -> None:
        tree.create("large")
        for offset in range(0, size, MIB):
            tree.write("large", offset, mixed(chance, MIB))

    def change(tree: Tree, chance: random.Random) -> None:
        blocks = size // BLOCK
        for block in sorted(chance.sample(range(blocks), max(blocks // 100, 1))):
            tree.write("large", block * BLOCK, text(chance, BLOCK))

    return DataSet(f"file of {size // MIB:,} MiB", fill, {"1 % of its blocks changed": change})


def growing_log(size: int) -> DataSet:
    def fill(tree: Tree, chance: random.Random) -> None:
        tree.create("log")
        for offset in range(0, size, MIB):
            tree.write("log", offset, text(chance, MIB))

    def grow(tree: Tree, chance: random.Random) -> None:
        for line in range(1000):
            tree.write("log", size + line * 100, text(chance, 99) + b"\n")

    return DataSet(f"log of {size // MIB:,} MiB", fill, {"1,000 lines more": grow})


def data_sets(scale: float) -> list[DataSet]:
    """At scale 1: 50,000 files, 1 GiB, 256 MiB."""
    return [
        small_files(max(int(50_000 * scale), 50)),
        large_file(max(int(1024 * scale), 2) * MIB),
        growing_log(max(int(256 * scale), 2) * MIB),
    ]
