"""A file of numbered blocks under a writer: which versions of each may a snapshot hold?

Each block tells its place and version, and its content follows from them.  A snapshot must hold,
of each block, one whole version: none older than what was written when it was asked for, none
newer than what was begun when it was there.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
from pathlib import Path

import blake3

SIZE = 16 * 1024
COUNT = 512
RUN = 4
"""The most blocks that one write has."""

SPECIAL = (os.O_DIRECT, os.O_DSYNC)
"""How it is written, beside the usual way."""

HEAD = struct.Struct("<QQ")

Versions = tuple[int, ...]
"""Of each block."""


def content(place: int, version: int) -> bytes:
    """The whole block."""
    head = HEAD.pack(place, version)
    return head + blake3.blake3(head).digest(length=SIZE - HEAD.size)


def check(path: Path, oldest: Versions, newest: Versions) -> list[str]:
    """What does not hold."""
    found = path.read_bytes()
    if len(found) != COUNT * SIZE:
        return [f"{path}: {len(found)} bytes instead of {COUNT * SIZE}"]
    problems = []
    for place in range(COUNT):
        block = found[place * SIZE : (place + 1) * SIZE]
        at, version = HEAD.unpack_from(block)
        if at != place or block != content(place, version):
            problems.append(f"{path}: block {place} is none that was ever written")
        elif not oldest[place] <= version <= newest[place]:
            problems.append(
                f"{path}: block {place} has version {version},"
                f" not one from {oldest[place]} to {newest[place]}"
            )
    return problems


class Blocks:
    """The file, and its writer: one `step` is one write, by turns buffered, direct and synced."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.path = path
        self._chance = chance
        self._lock = threading.Lock()
        self._written = [0] * COUNT
        self._begun = [0] * COUNT
        path.write_bytes(b"".join(content(place, 0) for place in range(COUNT)))
        # Open all the time: closing a file would write back what only the kernel has.
        self._descriptors = [os.open(path, os.O_WRONLY | flag) for flag in (0, *SPECIAL)]

    def close(self) -> None:
        """Before unmounting."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def written(self) -> Versions:
        """What every snapshot that is asked for from now on holds at least."""
        with self._lock:
            return tuple(self._written)

    def begun(self) -> Versions:
        """What no snapshot that is there already holds more than."""
        with self._lock:
            return tuple(self._begun)

    def step(self) -> None:
        first = self._chance.randrange(COUNT)
        run = range(first, min(first + self._chance.randint(1, RUN), COUNT))
        with self._lock:
            for place in run:
                self._begun[place] += 1
            wanted = [content(place, self._begun[place]) for place in run]
        descriptor = self._chance.choice(self._descriptors)
        with mmap.mmap(-1, len(run) * SIZE) as buffer:  # aligned, as O_DIRECT asks
            buffer[:] = b"".join(wanted)
            if os.pwrite(descriptor, buffer, first * SIZE) != len(buffer):
                raise OSError(f"short write to {self.path}")
        with self._lock:
            for place in run:
                self._written[place] = self._begun[place]
