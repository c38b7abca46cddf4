"""Cutting the power for real, and judging what is found: shared by the engine's and the mount's.

A pool on a loop-mounted XFS that is shut down without a flush of its log: what was not synced is
gone.  Not to be run beside `unshare -m`, whose mount table would keep the file system.

The shutdown is not one instant, as a power cut is: now and then a sync that is under way returns
well, and what it synced is gone (a loop of write and fdatasync on the bare XFS shows it in one of
some twenty cuts).  So what was told after the cut began is not counted as acknowledged.

A writer is a process that tells on its standard output what it is about to do and what was
acknowledged, a JSON list a line.  Files are written whole, as one word over and over:

- `["write", NAME, WORD, COUNT]`, `["replace", NAME, WORD, COUNT]` (by rename) or
  `["unlink", NAME]`: it begins
- `["synced", NAME]`: everything told of this file is durable
- `["committed"]`: everything told is durable
- `["sealed", SNAPSHOT]`: everything told is durable, and in the snapshot, just so
- `["destroying", SNAPSHOT]`: it begins
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasfs.volume import ROOT_INO, FsError, View, Volume

ACKNOWLEDGED = ('["synced"', '["committed"', '["sealed"')


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


class PowerDisk:
    """An XFS of its own in a file, mounted at `path`, whose power can be cut."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "disk"
        self._image = directory / "image"

    def make(self, size: int) -> None:
        with self._image.open("wb") as file:
            file.truncate(size)
        self.path.mkdir()
        run("mkfs.xfs", "-q", str(self._image))
        self.attach()

    def attach(self) -> None:
        run("mount", "-o", "loop", str(self._image), str(self.path))

    def detach(self) -> None:
        run("umount", str(self.path))

    def cut(self) -> None:
        """What was not synced is lost.  Everybody gets EIO until the disk is attached again."""
        run("xfs_io", "-x", "-c", "shutdown", str(self.path))


@contextmanager
def power_disk(directory: Path, size: int = 1 << 30) -> Iterator[PowerDisk]:
    disk = PowerDisk(directory)
    disk.make(size)
    try:
        yield disk
    finally:
        disk.detach()


class Writer:
    """A process that runs a Python script and tells what it does.  The body kills it at the end."""

    def __init__(self, script: str, *arguments: str | Path) -> None:
        self.lines: list[str] = []
        """What was told; all of it after the body."""
        self.before_cut = 0
        """How many of the lines came before `wait_acknowledged` returned."""
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout

    def wait_acknowledged(self, count: int) -> None:
        """Return when so many things were acknowledged; the power is to be cut then."""
        for line in self._output:
            self.lines.append(line)
            count -= line.startswith(ACKNOWLEDGED)
            if count <= 0:
                self.before_cut = len(self.lines)
                return
        raise AssertionError("the writer ended by itself")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.lines += self._output
        self._output.close()
        self._process.wait()


def content(view: View, name: str) -> bytes | None:
    """A file's bytes; None if it is not there."""
    try:
        inode = view.lookup(ROOT_INO, name.encode())
    except FsError:
        return None
    return view.read(inode.ino, 0, inode.size)


@dataclass(frozen=True, slots=True)
class Written:
    """What a file is about to become."""

    data: bytes | None
    """None: it is to go."""
    at_once: bool
    """Old or new, and nothing between: by rename or unlink."""


class Told:
    """What the writers told, over all power cuts."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self._words: dict[str, set[bytes]] = {}
        """By file: everything that was ever about to be written to it."""
        self._durable: dict[str, bytes | None] = {}
        self._since: dict[str, list[Written]] = {}
        """By file: what it was about to become after the last acknowledgement, in this order."""
        self._snapshots: dict[str, dict[str, bytes | None]] = {}

    def read(self, writer: Writer) -> None:
        """Take in what one writer told."""
        latest = dict(self._durable)
        self._since = {}
        for number, line in enumerate(writer.lines):
            if not line.endswith("\n"):  # the writer was killed in the middle of it
                break
            if line.startswith(ACKNOWLEDGED):
                if number >= writer.before_cut:
                    continue
                self.acknowledged += 1
            kind, *rest = json.loads(line)
            self._take(kind, rest, latest)

    def _take(self, kind: str, rest: list[Any], latest: dict[str, bytes | None]) -> None:
        match kind, rest:
            case (("write" | "replace"), [name, word, count]):
                latest[name] = text(word, count)
                self._words.setdefault(name, set()).add(word.encode())
                self._will_be(name, Written(latest[name], at_once=kind == "replace"))
            case "unlink", [name]:
                latest[name] = None
                self._will_be(name, Written(None, at_once=True))
            case "synced", [name]:
                self._durable[name] = latest[name]
                self._since.pop(name, None)
            case "committed", []:
                self._durable, self._since = dict(latest), {}
            case "sealed", [snapshot]:
                self._durable, self._since = dict(latest), {}
                self._snapshots[snapshot] = dict(latest)
            case "destroying", [snapshot]:
                self._snapshots.pop(snapshot, None)
            case _:
                raise AssertionError(f"the writer told {kind} {rest}")

    def _will_be(self, name: str, written: Written) -> None:
        self._since.setdefault(name, []).append(written)

    def verify(self, volume: Volume) -> None:
        """Everything acknowledged is there, and nothing that was never written."""
        for name in self._words:
            self._verify_live(name, content(volume, name))
        names = {snapshot.name for snapshot in volume.snapshots()}
        assert self._snapshots.keys() <= names
        for snapshot in names:
            view = volume.view(volume.snapshot(snapshot).epoch)
            files = self._snapshots.get(snapshot)
            for name in self._words:
                found = content(view, name)
                if files is not None:
                    assert found == files.get(name), (snapshot, name)
                else:  # told to nobody, and all the same no file in it shows another's bytes
                    assert self._foreign(name, found) == [], (snapshot, name)

    def _verify_live(self, name: str, found: bytes | None) -> None:
        since = self._since.get(name, [])
        if all(written.at_once for written in since):
            possible = [self._durable.get(name), *(written.data for written in since)]
            if found not in possible:
                ways = " or ".join(map(outline, possible))
                raise AssertionError(f"{name} is {outline(found)}, not {ways}")
        else:
            assert self._foreign(name, found) == [], name

    def _foreign(self, name: str, found: bytes | None) -> list[bytes]:
        """What was never written to the file; [] if that can't be told.

        Words run together where an unsynced write met an older one, at the edge of a block; bytes
        of another file would be hundreds of foreign words.
        """
        words = self._words[name]
        pieces = [p for p in (found or b"").split() if p not in words]
        pieces = [p for p in pieces if not any(p in word or word in p for word in words)]
        return pieces if len(pieces) > 8 else []

    def accept(self, volume: Volume) -> None:
        """The next writer begins with what was found, which is durable."""
        self._durable = {name: content(volume, name) for name in self._words}
        self._since = {}


def outline(data: bytes | None) -> str:
    """Which words a content consists of, and how often each."""
    if data is None:
        return "not there"
    return f"{len(data)} bytes: {dict(Counter(data.split()).most_common(4))}"


def text(word: str, count: int) -> bytes:
    """The content of a file."""
    return (word + " ").encode() * count
