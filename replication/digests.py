"""What two sites tell each other of a snapshot's contents, to find what differs.  Pure.

The questions travel as the bodies of `wire.Operate`, the answers in `wire.Operated`; none is longer
than `ANSWER_BYTES` and a bit.  `nasfs.volume.digest` says how contents are cut into parts.  What a
damaged volume tells must be told, so few values are checked here: they are compared and printed.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from .endpoint import Id

OPERATION = "digest"
"""The name of the operation."""

ANSWER_BYTES = 256 * 1024
"""About so long an answer may become."""

DIGEST = 16
"""Bytes of a digest."""
ZERO = bytes(DIGEST)
"""Of a block that is zeros or a hole, of a file without data, a directory without entries."""
UNREADABLE = b"\xff" * DIGEST
"""In the place of a block's digest."""

BLOCK = 4096
GROUP_BLOCKS = 16_384
SMALL_BLOCKS = 64

FIELDS = (
    "generation", "mode", "uid", "gid", "nlink", "rdev", "size", "atime", "mtime", "ctime",
    "btime", "parent",
)  # fmt: skip
"""The numbers of an inode's row, in this order."""

GENERATION, MODE, SIZE = map(FIELDS.index, ("generation", "mode", "size"))

Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST, max_length=DIGEST)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
Place = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 48)]


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The rows and small files of a page of inode numbers (`ino` 0), or a group of a file."""

    page: Number
    ino: Number
    group: Number
    digest: Digest

    @property
    def key(self) -> tuple[int, int, int]:
        return self.page, self.ino, self.group


class InodeFact(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An inode's row."""

    numbers: Annotated[tuple[int, ...], msgspec.Meta(min_length=12, max_length=12)]
    """See `FIELDS`."""
    target: bytes | None

    @property
    def size(self) -> int:
        return self.numbers[SIZE]


class EntryFact(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry of a directory."""

    name: bytes
    cookie: int
    ino: int
    kind: int


class XattrFact(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An extended attribute, with the digest of its value."""

    name: bytes
    digest: Digest


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """What there is of one inode number."""

    ino: Number
    inode: InodeFact | None
    xattrs: tuple[XattrFact, ...] = ()
    entries: Digest = ZERO
    data: Digest = ZERO
    """Of a small file."""


class AskParts(msgspec.Struct, frozen=True, tag="parts"):
    """The parts behind a key: as many as take about a second."""

    after: tuple[Number, Place, Place] | None


class AskFacts(msgspec.Struct, frozen=True, tag="facts"):
    """Of the inode numbers of a page, behind one of them."""

    page: Number
    after: Place


class AskEntries(msgspec.Struct, frozen=True, tag="entries"):
    """Of a directory, behind a name."""

    ino: Number
    after: bytes


class AskBlocks(msgspec.Struct, frozen=True, tag="blocks"):
    """Digests of at most `GROUP_BLOCKS` blocks of a file."""

    ino: Number
    first: Number
    stop: Number


class AskPath(msgspec.Struct, frozen=True, tag="path"):
    ino: Number


class Question(msgspec.Struct, frozen=True):
    """About one sealed snapshot of a volume."""

    volume: Id
    snapshot: Id
    """Its GUID."""
    ask: AskParts | AskFacts | AskEntries | AskBlocks | AskPath


class PartsAnswer(msgspec.Struct, frozen=True):
    parts: tuple[Part, ...]
    end: bool
    """There are no more."""


class FactsAnswer(msgspec.Struct, frozen=True):
    facts: tuple[Facts, ...]
    end: bool


class EntriesAnswer(msgspec.Struct, frozen=True):
    entries: tuple[EntryFact, ...]
    end: bool


class BlocksAnswer(msgspec.Struct, frozen=True):
    digests: bytes
    """Joined; shorter if the file ends before."""


class PathAnswer(msgspec.Struct, frozen=True):
    path: bytes | None


Answer = PartsAnswer | FactsAnswer | EntriesAnswer | BlocksAnswer | PathAnswer
