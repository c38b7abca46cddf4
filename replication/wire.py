"""Messages: what two nodes say to each other, typed and validated.  No I/O.

Every message is a msgpack map, except `Rows` and `Data`: their payload is the chain digest
(32 bytes) and then a batch in its canonical encoding, so that what is digested is exactly what
is decoded.  Every malformed input becomes `RemoteProtocolError`.  See docs/PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from blake3 import blake3

from .compression import Buffer, Compressor
from .endpoint import (
    Amount,
    Batch,
    Count,
    Cursor,
    DataBatch,
    Digest,
    DirentRow,
    Extent,
    GroupSpec,
    GroupStatus,
    Id,
    Label,
    PeerIdentity,
    Progress,
    RowBatch,
    SnapshotRef,
)
from .errors import RemoteProtocolError
from .frames import Frame, FrameReader, Kind, Unpacker, pack

PROTOCOL: Final = 3
"""Raised by every change that an older node cannot ignore."""

DIGEST_BYTES: Final = 32
Sentence = Annotated[str, msgspec.Meta(max_length=4096)]


class Hello(msgspec.Struct, frozen=True):
    """The first message of each side; its first four fields are the same in every version."""

    protocol: Count
    node_uuid: Label
    node_name: Label
    release: Label


class Refusal(msgspec.Struct, frozen=True):
    """No, and why; the last message of a connection.  `refusal` knows the codes."""

    code: Label
    message: Sentence
    hint: Sentence = ""
    subject: Label = ""
    """A volume or a snapshot, where the code is about one."""
    number: Count = 0
    """A term or a version of the protocol: the one of who refuses."""
    other: Count = 0
    """The one that was offered."""


class Ping(msgspec.Struct, frozen=True):
    """I am alive.  Needs no answer."""


class Pair(msgspec.Struct, frozen=True):
    """Be my partner; the only request of a node without a pinned certificate."""

    secret: Label
    identity: PeerIdentity


class Paired(msgspec.Struct, frozen=True):
    identity: PeerIdentity


class CreateReplication(msgspec.Struct, frozen=True):
    spec: GroupSpec


class Created(msgspec.Struct, frozen=True):
    """The passive volumes and group exist, durably."""


class StatusQuery(msgspec.Struct, frozen=True):
    group: Id


class PeerStatus(msgspec.Struct, frozen=True):
    status: GroupStatus


class Operate(msgspec.Struct, frozen=True):
    """Do what I ask about a group; the two sites know the operations and their bodies."""

    group: Id
    operation: Label
    body: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


class Operated(msgspec.Struct, frozen=True):
    """It is done, durably, and this came of it."""

    body: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


class Offer(msgspec.Struct, frozen=True):
    """I want to bring this volume up to date; these snapshots I have, oldest first."""

    group: Id
    term: Count
    volume: Id
    snapshots: tuple[SnapshotRef, ...]
    size: Count = 0
    """Bytes that the volume may use; 0 (an older sender): not told, so it stays what it is."""


class State(msgspec.Struct, frozen=True):
    """These snapshots I have, oldest first, and this part of an unfinished delta."""

    snapshots: tuple[SnapshotRef, ...]
    progress: Progress | None


class Begin(msgspec.Struct, frozen=True):
    """The delta from `base` (None: from nothing) to `target` comes next."""

    base: Id | None
    target: SnapshotRef
    total: Amount


class Resume(msgspec.Struct, frozen=True):
    """Go on from here."""

    progress: Progress


class Rows(msgspec.Struct, frozen=True):
    """A `RowBatch` in canonical encoding, and the chain digest after it."""

    digest: bytes
    body: bytes


class Data(msgspec.Struct, frozen=True):
    """A `DataBatch` in canonical encoding, and the chain digest after it."""

    digest: bytes
    body: Buffer


class Ack(msgspec.Struct, frozen=True):
    """Everything up to here is durable: it will never be asked for again."""

    done: Amount
    cursor: Cursor
    digest: Digest


class Seal(msgspec.Struct, frozen=True):
    """That was all: the digest over everything, and how much it was."""

    digest: Digest
    total: Amount


class Sealed(msgspec.Struct, frozen=True):
    """The snapshot is published, durably."""

    guid: Id


class _DataIn(msgspec.Struct, frozen=True):
    """A `DataBatch` as it arrives: its body stays where it is."""

    extents: tuple[Extent, ...]
    body: memoryview
    cursor: Cursor


Message = (
    Hello
    | Refusal
    | Ping
    | Pair
    | Paired
    | CreateReplication
    | Created
    | StatusQuery
    | PeerStatus
    | Operate
    | Operated
    | Offer
    | State
    | Begin
    | Resume
    | Rows
    | Data
    | Ack
    | Seal
    | Sealed
)

_TYPES: Final[Mapping[Kind, type[Message]]] = {
    Kind.HELLO: Hello,
    Kind.REFUSAL: Refusal,
    Kind.PING: Ping,
    Kind.PAIR: Pair,
    Kind.PAIRED: Paired,
    Kind.CREATE: CreateReplication,
    Kind.CREATED: Created,
    Kind.STATUS_QUERY: StatusQuery,
    Kind.STATUS: PeerStatus,
    Kind.OPERATE: Operate,
    Kind.OPERATED: Operated,
    Kind.OFFER: Offer,
    Kind.STATE: State,
    Kind.BEGIN: Begin,
    Kind.RESUME: Resume,
    Kind.ROWS: Rows,
    Kind.DATA: Data,
    Kind.ACK: Ack,
    Kind.SEAL: Seal,
    Kind.SEALED: Sealed,
}
_KIND_OF: Final = {message: kind for kind, message in _TYPES.items()}
_DECODERS: Final = {
    kind: msgspec.msgpack.Decoder(type_)
    for kind, type_ in _TYPES.items()
    if kind not in (Kind.ROWS, Kind.DATA)
}
_ROW_BATCH: Final = msgspec.msgpack.Decoder(RowBatch)
_DATA_BATCH: Final = msgspec.msgpack.Decoder(_DataIn)
_ENCODER: Final = msgspec.msgpack.Encoder()
# ValueError covers msgspec's own and broken UTF-8; deep nesting and absurd lengths are the others.
_MALFORMED = (ValueError, RecursionError, OverflowError, MemoryError)


def kind_of(message: Message) -> Kind:
    return _KIND_OF[type(message)]


class Codec:
    """Bytes to messages, for one connection and one thread at a time."""

    def __init__(self) -> None:
        self._unpacker = Unpacker()
        self._reader = FrameReader()

    def feed(self, data: Buffer) -> None:
        self._reader.feed(data)

    def room(self) -> memoryview:
        """Where the next bytes may be written, see `filled`; empty: they have to be fed."""
        return self._reader.room()

    def filled(self, count: int) -> None:
        """So many bytes were written to the beginning of `room`."""
        self._reader.filled(count)

    def receive(self) -> Message | None:
        """The next whole message, or None until more bytes are fed.

        Raises:
            RemoteProtocolError: whatever is wrong with the bytes.
        """
        frame = self._reader.next_frame()
        return None if frame is None else decode(frame, self._unpacker)

    @property
    def idle(self) -> bool:
        """Whether the bytes so far end with a message."""
        return self._reader.empty


def encode(message: Message, compressor: Compressor | None = None, level: int = 0) -> bytes:
    """One frame, compressed if that is asked for and pays.

    Raises:
        LocalProtocolError: it is too large.
    """
    if isinstance(message, Rows | Data):
        return pack(kind_of(message), (message.digest, message.body), compressor, level)
    return pack(kind_of(message), (_ENCODER.encode(message),), compressor, level)


def decode(frame: Frame, unpacker: Unpacker) -> Message:
    """The message in a frame.  Raises RemoteProtocolError."""
    payload = unpacker.unpack(frame)
    if frame.kind in (Kind.ROWS, Kind.DATA):
        if len(payload) < DIGEST_BYTES:
            raise RemoteProtocolError(f"{frame.kind.name} frame without a digest")
        view = memoryview(payload)
        digest, body = bytes(view[:DIGEST_BYTES]), view[DIGEST_BYTES:]
        return Rows(digest, bytes(body)) if frame.kind is Kind.ROWS else Data(digest, body)
    try:
        message: Message = _DECODERS[frame.kind].decode(payload)
    except _MALFORMED as exc:
        raise RemoteProtocolError(f"malformed {frame.kind.name}: {exc}") from exc
    return message


# batches and their chain


def chain_start(base: str | None, target: str) -> bytes:
    """The digest before the first batch: it binds the chain to its two snapshots (GUIDs)."""
    return blake3(_ENCODER.encode((base, target))).digest()


def chain(digest: bytes, body: Buffer) -> bytes:
    """The digest after a batch: of the digest before it and its canonical encoding."""
    hasher = blake3(digest)
    hasher.update(body)
    return hasher.digest()


def pack_batch(batch: Batch, digest: bytes) -> Rows | Data:
    """The message for a batch that follows *digest*."""
    body = _ENCODER.encode(batch)
    after = chain(digest, body)
    return Rows(after, body) if isinstance(batch, RowBatch) else Data(after, body)


def unpack_batch(message: Rows | Data) -> Batch:
    """The batch in a message.

    Raises:
        RemoteProtocolError: malformed, a name that no directory can hold, or extents that
            contradict the bytes.
    """
    batch: Batch
    try:
        if isinstance(message, Rows):
            batch = _ROW_BATCH.decode(message.body)
        else:
            found = _DATA_BATCH.decode(message.body)
            batch = DataBatch(found.extents, found.body, found.cursor)
    except _MALFORMED as exc:
        raise RemoteProtocolError(f"malformed batch: {exc}") from exc
    if isinstance(batch, RowBatch):
        _check_names(batch)
    else:
        _check_extents(batch)
    return batch


def amount_of(batch: Batch) -> Amount:
    if isinstance(batch, RowBatch):
        return Amount(rows=len(batch.rows))
    return Amount(bytes=len(batch.body))


def _check_names(batch: RowBatch) -> None:
    for row in batch.rows:
        if isinstance(row, DirentRow) and (
            row.name in (b".", b"..") or b"/" in row.name or b"\0" in row.name
        ):
            raise RemoteProtocolError(f"a directory cannot hold {row.name!r}")


def _check_extents(batch: DataBatch) -> None:
    carried = 0
    for extent in batch.extents:
        if extent.offset + extent.length >= 1 << 63:
            raise RemoteProtocolError("an extent ends beyond every file")
        if not extent.hole:
            carried += extent.length
    if carried != len(batch.body):
        raise RemoteProtocolError(f"extents of {carried} bytes with {len(batch.body)} bytes")
