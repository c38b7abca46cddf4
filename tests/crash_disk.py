"""What a disk may hold after a power cut: a log of operations, and the states it allows.

A run is recorded once, every operation on the disk in its order (`Log`): those on layer files and
the syncs through the media seam, those of SQLite through its VFS.  `Disk` then takes in one
operation after the other, and at any point `survivor` draws what a power cut there may leave:
everything that was synced, and of the rest

- of each page any of its versions since the last sync (of each sector, if torn),
- a size with or without the bytes that it promises (they read as zeros then),
- a truncate or a punch that has happened or has not,
- a file whose name was not synced, or one that an unlink has not removed.

No journaling file system does half of this.  What survives here survives on any.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from nasfs.volume.layers import DIRECTORIES, directory_name
from nasfs.volume.media import HostMedia

PAGE = 4096
SECTOR = 512


@dataclass(frozen=True, slots=True)
class Create:
    path: str


@dataclass(frozen=True, slots=True)
class Unlink:
    path: str


@dataclass(frozen=True, slots=True)
class Write:
    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Punch:
    path: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SyncFile:
    """The sync ended here.  It covers what was in the log when it began: `[0, since)`."""

    path: str
    since: int


@dataclass(frozen=True, slots=True)
class LostSync:
    """The host failed to write what was not synced, told it, and keeps it in memory as clean."""

    path: str


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    path: str
    since: int


@dataclass(frozen=True, slots=True)
class SyncAll:
    since: int


Change = Write | Truncate | Punch
Operation = Create | Unlink | Change | SyncFile | LostSync | SyncDirectory | SyncAll


class Log:
    """The operations of one run, in their order.  Also the watcher of SQLite's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []

    def __len__(self) -> int:
        return len(self.operations)

    def name(self, path: Path) -> str:
        name = os.path.relpath(path, self.root)
        return "" if name == "." else name

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)

    def sqlite_begins(self, operation: str, path: Path) -> int:
        return 0

    def sqlite_created(self, path: Path) -> None:
        self.add(Create(self.name(path)))

    def sqlite_wrote(self, path: Path, data: bytes, offset: int) -> None:
        self.add(Write(self.name(path), offset, data))

    def sqlite_truncated(self, path: Path, size: int) -> None:
        self.add(Truncate(self.name(path), size))

    def sqlite_synced(self, path: Path, *, name_too: bool) -> None:
        since = len(self)
        self.add(SyncFile(self.name(path), since))
        if name_too:
            self.add(SyncDirectory(self.name(path.parent), since))

    def sqlite_deleted(self, path: Path, *, synced: bool) -> None:
        self.add(Unlink(self.name(path)))
        if synced:
            self.add(SyncDirectory(self.name(path.parent), len(self)))


class RecordingMedia(HostMedia):
    """The host's disk, and everything done to it in the log.

    `meanwhile`, if set, is called once in the middle of the next sync: what it does stands for
    requests that are served while a thread syncs, and that sync does not cover it.
    """

    def __init__(self, log: Log) -> None:
        self.meanwhile: Callable[[], None] | None = None
        self.log = log
        self.paths: dict[int, str] = {}

    def open(self, path: str | Path, *, write: bool) -> int:
        path = Path(path)
        is_new = write and not path.exists()
        fd = super().open(path, write=write)
        self.paths[fd] = self.log.name(path)
        if is_new:
            self.log.add(Create(self.paths[fd]))
        return fd

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        super().write(fd, parts, offset)
        self.log.add(Write(self.paths[fd], offset, b"".join(parts)))

    def punch(self, fd: int, start: int, stop: int) -> None:
        super().punch(fd, start, stop)
        self.log.add(Punch(self.paths[fd], start, stop))

    def unlink(self, path: Path) -> None:
        was_there = path.exists()
        super().unlink(path)
        if was_there:
            self.log.add(Unlink(self.log.name(path)))

    def sync(self, fd: int) -> None:
        since = self._begin_sync()
        super().sync(fd)
        self.log.add(SyncFile(self.paths[fd], since))

    def sync_directory(self, path: Path) -> None:
        since = self._begin_sync()
        super().sync_directory(path)
        self.log.add(SyncDirectory(self.log.name(path), since))

    def sync_filesystem(self, directory: Path) -> None:
        since = self._begin_sync()
        self.log.add(SyncAll(since))  # the disk of a test is in memory, and shared: no syncfs

    def _begin_sync(self) -> int:
        since = len(self.log)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return since


class Content:
    """A sparse file in memory."""

    def __init__(self, pages: dict[int, bytes] | None = None, size: int = 0) -> None:
        self.pages = {} if pages is None else pages
        self.size = size

    def copy(self) -> Content:
        return Content(dict(self.pages), self.size)

    def apply(self, change: Change) -> None:
        match change:
            case Write(_, offset, data):
                self.write(offset, data)
            case Truncate(_, size):
                self.truncate(size)
            case Punch(_, start, stop):
                self.punch(start, stop)

    def write(self, offset: int, data: bytes) -> None:
        self.size = max(self.size, offset + len(data))
        for number, start, stop in grains(offset, len(data), PAGE):
            piece = data[start - offset : stop - offset]
            if len(piece) < PAGE:
                old = self.pages.get(number, bytes(PAGE))
                piece = old[: start % PAGE] + piece + old[start % PAGE + len(piece) :]
            self.pages[number] = piece

    def truncate(self, size: int) -> None:
        if size < self.size:
            self.punch(size, -(-self.size // PAGE) * PAGE)
        self.size = size

    def punch(self, start: int, stop: int) -> None:
        for number in [n for n in self.pages if start < (n + 1) * PAGE and n * PAGE < stop]:
            if start <= number * PAGE and (number + 1) * PAGE <= stop:
                del self.pages[number]
            else:
                first, last = max(start - number * PAGE, 0), min(stop - number * PAGE, PAGE)
                old = self.pages[number]
                self.pages[number] = old[:first] + bytes(last - first) + old[last:]


def grains(offset: int, length: int, grain: int) -> list[tuple[int, int, int]]:
    """(number, start, stop) of the pieces in which [offset, offset + length) reaches the disk."""
    stop = offset + length
    return [
        (number, max(offset, number * grain), min(stop, (number + 1) * grain))
        for number in range(offset // grain, -(-stop // grain))
    ]


class Luck(Enum):
    """How much of what was not synced survives."""

    NONE = "nothing"
    ALL = "everything"
    SOME = "some pages"
    TORN = "some sectors"


@dataclass(slots=True)
class _File:
    durable: Content = field(default_factory=Content)
    pending: list[tuple[int, Change]] = field(default_factory=list)

    def sync(self, since: int) -> None:
        for index, change in self.pending:
            if index < since:
                self.durable.apply(change)
        self.pending = [item for item in self.pending if item[0] >= since]

    def survivor(self, luck: Luck, chance: random.Random) -> Content:
        content = self.durable.copy()
        changes = [change for _, change in self.pending]
        if luck is Luck.NONE:
            return content
        if luck is Luck.ALL:
            for change in changes:
                content.apply(change)
            return content
        grain = SECTOR if luck is Luck.TORN else PAGE
        cuts = [change for change in changes if isinstance(change, Truncate)]
        happened = chance.randint(0, len(cuts))
        lost_from = min((cut.size for cut in cuts[happened:]), default=None)
        survives = self._versions(changes, grain, chance)
        promise = chance.random() < 0.5
        seen: defaultdict[int, int] = defaultdict(int)
        cut = 0
        for change in changes:
            match change:
                case Truncate(_, size):
                    cut += 1
                    if cut <= happened:
                        content.truncate(size)
                case Punch(_, start, stop):
                    if chance.random() < 0.5:
                        content.punch(start, stop)
                case Write(_, offset, data):
                    # Blocks that come after a truncate are new ones: not without the truncate.
                    is_late = cut > happened
                    for number, start, stop in grains(offset, len(data), grain):
                        seen[number] += 1
                        late = is_late and lost_from is not None and stop > lost_from
                        if seen[number] <= survives[number] and not late:
                            content.write(start, data[start - offset : stop - offset])
                    if promise and not is_late:
                        content.size = max(content.size, offset + len(data))
        return content

    def _versions(self, changes: list[Change], grain: int, chance: random.Random) -> dict[int, int]:
        """For each grain, how many of its writes have reached the disk."""
        counts: defaultdict[int, int] = defaultdict(int)
        for change in changes:
            if isinstance(change, Write):
                for number, _, _ in grains(change.offset, len(change.data), grain):
                    counts[number] += 1
        share = chance.choice([0.1, 0.5, 0.9])
        return {
            number: count if chance.random() < share else chance.randrange(count + 1)
            for number, count in counts.items()
        }


@dataclass(slots=True)
class _Directory:
    durable: dict[str, _File] = field(default_factory=dict)
    pending: list[tuple[int, str, _File | None]] = field(default_factory=list)

    def sync(self, since: int) -> None:
        for index, name, file in self.pending:
            if index < since:
                _enter(self.durable, name, file)
        self.pending = [item for item in self.pending if item[0] >= since]

    def survivor(self, luck: Luck, chance: random.Random) -> dict[str, _File]:
        entries = dict(self.durable)
        changes: defaultdict[str, list[_File | None]] = defaultdict(list)
        for _, name, file in self.pending:
            changes[name].append(file)
        for name, versions in changes.items():
            count = {Luck.NONE: 0, Luck.ALL: len(versions)}.get(luck)
            for file in versions[: chance.randint(0, len(versions)) if count is None else count]:
                _enter(entries, name, file)
        return entries


def _enter(entries: dict[str, _File], name: str, file: _File | None) -> None:
    if file is None:
        entries.pop(name, None)
    else:
        entries[name] = file


Image = dict[str, Content]
"""What is on a disk: the files of a volume, by path."""


class Disk:
    """A disk with a write cache, as a log of operations fills and empties it."""

    def __init__(self, image: Image) -> None:
        self._directories: defaultdict[str, _Directory] = defaultdict(_Directory)
        self._named: dict[str, _File] = {}
        self.applied = 0
        """Operations taken in so far."""
        for path, content in image.items():
            file = self._named[path] = _File(content.copy())
            self._directories[os.path.dirname(path)].durable[os.path.basename(path)] = file

    def take(self, operations: list[Operation], upto: int) -> None:
        """Take in the operations from where the last call stopped to *upto*."""
        for index in range(self.applied, upto):
            self._take(index, operations[index])
        self.applied = upto

    def _take(self, index: int, operation: Operation) -> None:
        match operation:
            case Create(path):
                self._named[path] = _File()
                self._name(index, path, self._named[path])
            case Unlink(path):
                del self._named[path]
                self._name(index, path, None)
            case Write() | Truncate() | Punch():
                self._named[operation.path].pending.append((index, operation))
            case SyncFile(path, since):
                if path in self._named:  # a file that was removed while it was synced is nobody's
                    self._named[path].sync(since)
            case LostSync(path):
                self._named[path].pending = []
            case SyncDirectory(path, since):
                self._directories[path].sync(since)
            case SyncAll(since):
                for directory in self._directories.values():
                    directory.sync(since)
                for file in self._named.values():
                    file.sync(since)

    def _name(self, index: int, path: str, file: _File | None) -> None:
        directory = self._directories[os.path.dirname(path)]
        directory.pending.append((index, os.path.basename(path), file))

    def survivor(self, luck: Luck, chance: random.Random) -> Image:
        """What the disk may hold if the power goes now."""
        return {
            f"{path}/{name}" if path else name: file.survivor(luck, chance)
            for path, directory in self._directories.items()
            for name, file in directory.survivor(luck, chance).items()
        }


def read_image(root: Path) -> Image:
    """The files of a volume that nobody has open."""
    image = {}
    for path in root.rglob("*"):
        if path.is_file() and path.name != "lock":
            content = Content()
            content.write(0, path.read_bytes())
            blank = bytes(PAGE)
            content.pages = {n: page for n, page in content.pages.items() if page != blank}
            image[os.path.relpath(path, root)] = content
    return image


def write_image(image: Image, root: Path) -> None:
    """Make *root* a volume's folder that holds these files and no others."""
    directories = [str(root), *(f"{root}/layers/{directory_name(i)}" for i in range(DIRECTORIES))]
    if root.exists():
        for directory in directories:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_file():
                        os.unlink(entry)
    else:
        for directory in directories:
            os.makedirs(directory)
    for name, content in image.items():
        fd = os.open(f"{root}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for number, page in content.pages.items():
                os.pwrite(fd, page, number * PAGE)
            os.ftruncate(fd, content.size)
        finally:
            os.close(fd)
