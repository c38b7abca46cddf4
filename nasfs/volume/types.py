"""The values that cross the engine's border: inodes, entries, snapshots, runs of blocks.

Names, xattrs and symlink targets are bytes; times are nanoseconds since 1970 UTC (they may be
negative); sizes and offsets are bytes unless a name says blocks.
"""

from __future__ import annotations

import stat
from enum import Enum
from typing import NewType

import msgspec

Ino = NewType("Ino", int)
Epoch = NewType("Epoch", int)
Layer = NewType("Layer", int)
"""The epoch in which a block was written; 0 is a hole."""

BLOCK = 4096
"""Bytes in a block, the unit of redirect-on-write."""

REGION_BLOCKS = 1024
"""Blocks in a region (4 MiB), the unit of a leaf row."""

ROOT_INO = Ino(1)
FIRST_INO = Ino(256)
"""Numbers below it are not given to files: the root, and what a mount invents for itself."""

INO_BITS = 40
"""Inode numbers stay below 2**40, so that a mount can put a snapshot's number above them."""

NAME_MAX = 255
TARGET_MAX = 4095
LINK_MAX = 65_000
XATTR_VALUE_MAX = 65_536
XATTR_NAME_MAX = 255
SIZE_MAX = BLOCK * ((1 << 32) - 1) * 1024
"""The largest file, in bytes: regions are counted in 32 bits."""


class Inode(msgspec.Struct, frozen=True, gc=False):
    """One row of the table ``inode``, in the order of its columns."""

    ino: Ino
    born: Epoch
    generation: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    parent: int
    """A directory's parent; 0 for everything else."""
    target: bytes | None
    """A symlink's target."""
    layer: Layer
    """Level 2 of the block map: blocks [0, layer_end) without a leaf row are in this layer."""
    layer_end: int
    leaves: int
    """How many leaf rows there are (denormalised)."""
    blocks: int
    """How many blocks are mapped to a layer (denormalised); st_blocks is 8 times that."""

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


FIRST_COOKIE = 16
"""Of the first entry that is made; lower ones are for what a mount adds to its listings."""


class Dirent(msgspec.Struct, frozen=True, gc=False):
    """One row of the table ``dirent``, in the order of its columns."""

    parent: Ino
    name: bytes
    born: Epoch
    cookie: int
    """Rises with every entry ever made in the volume: the readdir cookie."""
    ino: Ino
    kind: int
    """The file type bits of the inode's mode (``stat.S_IFMT``)."""


class SnapshotState(Enum):
    """What the row of a snapshot says of it."""

    SEALED = 0
    DESTROYING = 1
    """No longer offered; reclaim is giving back what only it could see."""
    PENDING = 2
    """Sealed and not offered yet: the other volumes of its snap group have to be sealed, too."""


class Snapshot(msgspec.Struct, frozen=True):
    """A sealed epoch.  The GUID is its identity; name and time are labels."""

    epoch: Epoch
    name: str
    guid: str
    time_ns: int
    snap_group: str
    """GUID of the snap group it belongs to; empty for a snapshot of the volume alone."""
    state: SnapshotState
    blocks: int = 0
    """Blocks of data that it sees."""


class Hold(msgspec.Struct, frozen=True):
    """Why a snapshot may not be destroyed, and who says so."""

    owner: str
    reason: str


class Run(msgspec.Struct, frozen=True, gc=False):
    """Blocks [start, stop) of an inode are in this layer (0: they are a hole)."""

    start: int
    stop: int
    layer: Layer


class VolumeStats(msgspec.Struct, frozen=True):
    """What a volume holds; sizes in bytes."""

    size: int
    used: int
    """Bytes in layers that the live view or a snapshot can reach."""
    live: int
    """The part of `used` that the live view reaches."""
    available: int
    """Bytes that can still be written."""
    inodes: int


class Access(Enum):
    """How a volume is opened."""

    READ_ONLY = "ro"
    READ_WRITE = "rw"
