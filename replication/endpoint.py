"""The seam to a site: all that a sender, a receiver or a planner ever sees of one.

A `Source` reads deltas out of a volume, a `Sink` takes them in, a `Site` is the node around
them.  `replication.local` puts Source and Sink on top of ``nasfs.volume``; the node provides
its Site; tests put faults in between.  A *cursor* is the source's own note of a position in a
delta: opaque here, durable at the sink, given back to the source to go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Protocol

import msgspec

# What a peer may send at all: whoever decodes these types from the wire gets nothing else.
Ino = Annotated[int, msgspec.Meta(ge=1, lt=1 << 40)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Cookie = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""Others have to follow it."""
Small = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Name = Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)]
Target = Annotated[bytes, msgspec.Meta(min_length=1, max_length=4095)]
Value = Annotated[bytes, msgspec.Meta(max_length=65_536)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Label = Annotated[str, msgspec.Meta(max_length=255)]
Cursor = Annotated[bytes, msgspec.Meta(max_length=4096)]
Digest = Annotated[bytes, msgspec.Meta(max_length=32)]


class SnapshotRef(msgspec.Struct, frozen=True):
    """A snapshot as both sites know it.  The GUID is its identity."""

    guid: Id
    name: Label
    time_ns: Nanoseconds
    snap_group: Label


class InodeRow(msgspec.Struct, frozen=True, array_like=True, tag="i", gc=False):
    """An inode is, from now on, this.  Where its blocks lie is each site's own affair."""

    ino: Ino
    generation: Count
    mode: Small
    uid: Small
    gid: Small
    nlink: Small
    rdev: Count
    size: Count
    atime_ns: Nanoseconds
    mtime_ns: Nanoseconds
    ctime_ns: Nanoseconds
    btime_ns: Nanoseconds
    parent: Count
    target: Target | None


class DirentRow(msgspec.Struct, frozen=True, array_like=True, tag="d", gc=False):
    """A directory holds, from now on, this entry."""

    parent: Ino
    name: Name
    cookie: Cookie
    ino: Ino
    kind: Small


class XattrRow(msgspec.Struct, frozen=True, array_like=True, tag="x", gc=False):
    """An inode has, from now on, this extended attribute."""

    ino: Ino
    name: Name
    value: Value


class InodeGone(msgspec.Struct, frozen=True, array_like=True, tag="I", gc=False):
    ino: Ino


class DirentGone(msgspec.Struct, frozen=True, array_like=True, tag="D", gc=False):
    parent: Ino
    name: Name


class XattrGone(msgspec.Struct, frozen=True, array_like=True, tag="X", gc=False):
    ino: Ino
    name: Name


Row = InodeRow | DirentRow | XattrRow | InodeGone | DirentGone | XattrGone


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes [offset, offset + length) of an inode; a hole carries no bytes in the body."""

    ino: Ino
    offset: Count
    length: Count
    hole: bool


class RowBatch(msgspec.Struct, frozen=True):
    """Rows in the order of the delta, and the position behind them."""

    rows: tuple[Row, ...]
    cursor: Cursor


class DataBatch(msgspec.Struct, frozen=True):
    """Extents in the order of the delta, their bytes joined in `body`, the position behind."""

    extents: tuple[Extent, ...]
    body: bytes | memoryview
    cursor: Cursor


Batch = RowBatch | DataBatch


class Amount(msgspec.Struct, frozen=True):
    """How much of a delta: rows, and bytes of file data (uncompressed; holes count nothing)."""

    rows: Count = 0
    bytes: Count = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.rows + other.rows, self.bytes + other.bytes)


class Progress(msgspec.Struct, frozen=True):
    """What a sink has durably taken of one delta.

    `digest` is the chain digest over all batches so far (see ``wire``); empty cursor: nothing.
    """

    base: Id | None
    target: SnapshotRef
    total: Amount
    done: Amount = Amount()
    cursor: Cursor = b""
    digest: Digest = b""


class Source(Protocol):
    """A volume on the sending site."""

    @property
    def volume_uuid(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes that the volume may use now; every snapshot that was listed before fits in it."""
        ...

    def snapshots(self) -> list[SnapshotRef]:
        """All sealed snapshots, oldest first."""
        ...

    def total(self, base: str | None, target: str) -> Amount:
        """Exactly what `read_delta` will yield in all, without reading any file data."""
        ...

    def read_delta(self, base: str | None, target: str, cursor: bytes) -> Iterator[Batch]:
        """The delta between two snapshots (GUIDs) from *cursor* on; b"" is its beginning.

        Batches are the same for the same cursor, whenever they are read: the order is fixed by
        the two snapshots.  A row batch has about 1,000 rows, a data batch about 1 MiB; no
        batch may be larger than 4 MiB (extended attributes can be large).
        """
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """A volume on the receiving site, owned by this sink alone while it is open."""

    @property
    def volume_uuid(self) -> str: ...

    def snapshots(self) -> list[SnapshotRef]: ...

    def resize(self, size: int) -> None:
        """Take the size of the sender's volume, but never less than what is here; durable."""
        ...

    def progress(self) -> Progress | None:
        """The unfinished delta that this volume holds a part of, as of the last commit."""
        ...

    def begin(self, progress: Progress) -> None:
        """Start a delta; rolls the live view back to `progress.base` first, if it is not that.

        A rollback is durable on return; the progress itself with the first commit.
        """
        ...

    def apply(self, batch: Batch) -> None:
        """Take one batch into the live view; durable only after `commit`."""
        ...

    def commit(self, progress: Progress) -> None:
        """Make all that was applied durable, together with *progress*, in one step."""
        ...

    def seal(self, target: SnapshotRef) -> None:
        """Publish the snapshot and forget the progress, in one durable step."""
        ...

    def close(self) -> None:
        """Give the volume up.  What was not committed is dropped."""
        ...


class VolumeSpec(msgspec.Struct, frozen=True):
    """A volume of a group, as the peer shall have it."""

    uuid: Id
    pool: Label
    name: Label
    size: Count
    provision: Label


class GroupSpec(msgspec.Struct, frozen=True):
    """A replication as the active node proposes it to its peer."""

    uuid: Id
    name: Label
    term: Count
    volumes: tuple[VolumeSpec, ...]
    max_snapshots: Count


class PeerIdentity(msgspec.Struct, frozen=True):
    """A node as its peer knows it; the certificate (PEM) is pinned at pairing."""

    uuid: Id
    name: Label
    address: Label
    certificate: Annotated[str, msgspec.Meta(max_length=16_384)]


class VolumeStatus(msgspec.Struct, frozen=True):
    """A volume of a group as a node holds it."""

    uuid: Id
    snapshots: tuple[SnapshotRef, ...]


class GroupStatus(msgspec.Struct, frozen=True):
    """A group as a node knows it: what a partner may ask at any time."""

    uuid: Id
    term: Count
    role: Label
    volumes: tuple[VolumeStatus, ...]
    time_ns: Nanoseconds = 0
    """What its clock says; 0: it does not tell."""
    keep_most: Count = 0
    """So many snap groups it keeps at most; 0: it does not tell."""
    keep_least: Count = 0
    """So many it wants to have at least."""
    staged: Label = ""
    """The digest of the shares and accounts of the group that it has; empty: it does not tell."""


class Site(Protocol):
    """The node around a receiving connection."""

    @property
    def identity(self) -> PeerIdentity: ...

    def peer(self) -> PeerIdentity | None:
        """The one partner, if this node is paired."""
        ...

    def operate(self, group: str, operation: str, body: bytes) -> bytes:
        """Do what the partner asks about a group, and answer; durable on return.

        Being asked the same again, after an answer was lost, ends in the same state.
        """
        ...

    def accept_pairing(self, secret: str, candidate: PeerIdentity) -> None:
        """Use up the one-time code and remember the partner, in one durable step.

        Raises:
            NotAuthenticated: no such code, or it is used up or too old.
            Refused: this node has another partner already.
        """
        ...

    def create_replication(self, spec: GroupSpec) -> None:
        """Make the passive volumes and the passive group; the same spec again changes nothing.

        Raises:
            Refused: a volume of that name exists and is not this one, or the pool is unknown.
        """
        ...

    def group_term(self, group_uuid: str) -> int:
        """The highest term this node knows of the group.  Raises Refused if it knows none."""
        ...

    def group_status(self, group_uuid: str) -> GroupStatus:
        """Term, role and snapshots of a group.  Raises Refused if this node knows none."""
        ...

    def open_sink(self, group_uuid: str, term: int, volume_uuid: str) -> Sink:
        """The passive volume, taken over from an earlier connection if need be.

        Raises:
            Fenced: this node knows a higher term.
            PeerBusy: somebody else holds the volume and does not let go.
        """
        ...
