"""Frames and messages: round trips, any fragmentation, and bytes that nobody should send."""

from __future__ import annotations

import random
import re
import struct
import zlib
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import Failed, NasError, Refused
from replication import errors
from replication.compression import Compressor
from replication.endpoint import (
    Amount,
    Batch,
    DataBatch,
    DirentGone,
    DirentRow,
    Extent,
    GroupSpec,
    GroupStatus,
    InodeGone,
    InodeRow,
    PeerIdentity,
    Progress,
    RowBatch,
    SnapshotRef,
    VolumeSpec,
    VolumeStatus,
    XattrGone,
    XattrRow,
)
from replication.errors import LocalProtocolError, RemoteProtocolError
from replication.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD,
    Flag,
    Frame,
    FrameReader,
    Kind,
    Unpacker,
    pack,
)
from replication.refusal import to_error, to_refusal
from replication.wire import (
    PROTOCOL,
    Ack,
    Begin,
    Codec,
    Created,
    CreateReplication,
    Data,
    Door,
    Hello,
    Laned,
    LaneKind,
    Lanes,
    Message,
    Offer,
    Operate,
    Operated,
    Pair,
    Paired,
    PeerStatus,
    Ping,
    Refusal,
    Resume,
    Rows,
    Seal,
    Sealed,
    State,
    StatusQuery,
    amount_of,
    chain,
    chain_start,
    decode,
    encode,
    kind_of,
    pack_batch,
    unpack_batch,
)

REF = SnapshotRef("guid", "monday", -5, "snap-group")
IDENTITY = PeerIdentity("uuid", "east", "east:4000", "-----BEGIN CERTIFICATE-----")
PROGRESS = Progress("base", REF, Amount(1, 2), Amount(1, 1), b"cursor", bytes(32))
ROWS = RowBatch(
    (
        InodeRow(300, 1, 0o120777, 1, 2, 3, 0, 9, -1, 2, 3, 4, 0, b"target"),
        DirentRow(1, b"caf\xe9", 7, 300, 0o120000),
        XattrRow(300, b"user.x", b"\0\xff"),
        InodeGone(301),
        DirentGone(1, b"old"),
        XattrGone(300, b"user.y"),
    ),
    b"c1",
)
DATA = DataBatch((Extent(300, 0, 4, False), Extent(300, 4, 1 << 40, True)), b"abcd", b"c2")
MESSAGES: list[Message] = [
    Hello(PROTOCOL, "uuid", "west", "1.0"),
    Refusal("refused", "no", "try this", "subject", 1, 2),
    Ping(),
    Pair("secret", IDENTITY),
    Paired(IDENTITY),
    CreateReplication(GroupSpec("g", "n", 1, (VolumeSpec("v", "p", "n", 1, "thin"),), 3)),
    Created(),
    StatusQuery("g"),
    Operate("g", "drain", b"{}"),
    Operated(b""),
    PeerStatus(GroupStatus("g", 1, "passive", (VolumeStatus("v", (REF,)),))),
    Offer("g", 1, "v", (REF, REF)),
    Offer("g", 1, "v", (REF,), 1 << 40),
    State((REF,), PROGRESS),
    State((), None),
    Begin(None, REF, Amount()),
    Resume(PROGRESS),
    pack_batch(ROWS, bytes(32)),
    pack_batch(DATA, bytes(32)),
    Ack(Amount(5, 6), b"c", bytes(32)),
    Seal(bytes(32), Amount(5, 6)),
    Sealed("guid"),
    Lanes(2, LaneKind.CLEAR),
    Door(bytes(16)),
    Laned(1, bytes(32)),
]


def receive_all(codec: Codec, data: bytes) -> list[Message]:
    codec.feed(data)
    got = []
    while (message := codec.receive()) is not None:
        got.append(message)
    return got


def test_every_kind_of_message_is_in_these_tests() -> None:
    assert {kind_of(message) for message in MESSAGES} == set(Kind)


@given(
    st.lists(st.sampled_from(MESSAGES), max_size=8),
    st.lists(st.integers(1, 400), min_size=1),
    st.integers(0, 3),
)
def test_messages_survive_any_fragmentation(
    sent: list[Message], cuts: list[int], level: int
) -> None:
    theirs, compressor = Codec(), Compressor()
    wire = b"".join(encode(message, compressor, level) for message in sent)
    got: list[Message] = []
    while wire:
        for cut in cuts:
            got += receive_all(theirs, wire[:cut])
            wire = wire[cut:]
    assert got == sent
    assert theirs.idle


def decode_fully(codec: Codec, data: bytes) -> None:
    """What a node does with bytes: it may only fail with RemoteProtocolError."""
    try:
        for message in receive_all(codec, data):
            if isinstance(message, Rows | Data):
                unpack_batch(message)
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=200))
def test_random_bytes_are_a_protocol_error_or_incomplete(data: bytes) -> None:
    decode_fully(Codec(), data)


@given(st.sampled_from(Kind), st.binary(max_size=200), st.sampled_from(Flag))
def test_random_payloads_in_sound_frames_are_a_protocol_error(
    kind: Kind, payload: bytes, flag: Flag
) -> None:
    decode_fully(Codec(), Frame(kind, payload, flag).encode())


@given(st.sampled_from(MESSAGES), st.data())
def test_mutated_payloads_in_sound_frames_are_a_protocol_error(
    message: Message, data: st.DataObject
) -> None:
    payload = bytearray(encode(message)[HEADER_BYTES:])
    if payload:
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at:] = (
            data.draw(st.binary(max_size=12)) + payload[at + data.draw(st.integers(0, 5)) :]
        )
    decode_fully(Codec(), Frame(kind_of(message), bytes(payload)).encode())


@given(st.sampled_from(MESSAGES), st.data())
def test_one_changed_byte_never_passes(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    try:
        assert receive_all(Codec(), bytes(frame)) == []  # it waits for bytes of a longer frame
    except RemoteProtocolError:
        return
    assert 4 <= at < 8  # only a changed length can wait


@given(st.sampled_from(MESSAGES), st.data())
def test_a_truncated_frame_gives_nothing(message: Message, data: st.DataObject) -> None:
    frame = encode(message)
    codec = Codec()
    assert receive_all(codec, frame[: data.draw(st.integers(0, len(frame) - 1))]) == []


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x84" + b"\xa1x" + b"\x91" * 100_000,
        b"\x81\xa2\xff\xfe\x01",
        b"\xc1",
        msgspec.msgpack.encode({"protocol": 2**64 - 1}),
        msgspec.msgpack.encode({"protocol": -1}),
        msgspec.msgpack.encode({"protocol": "1", "node_uuid": "", "node_name": "", "release": ""}),
    ],
)
def test_hostile_payloads_are_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(Frame(Kind.HELLO, payload), Unpacker())


def test_unknown_fields_are_ignored_so_that_newer_releases_can_add_some() -> None:
    hello = msgspec.to_builtins(MESSAGES[0]) | {"colour": ["blue"]}
    assert decode(Frame(Kind.HELLO, msgspec.msgpack.encode(hello)), Unpacker()) == MESSAGES[0]


# frames


def header(magic: bytes = b"NR", kind: int = 1, flags: int = 0, length: int = 0) -> bytes:
    return struct.pack("!2sBBI", magic, kind, flags, length) + bytes(4)


@pytest.mark.parametrize(
    "damaged",
    [
        header(magic=b"GE"),
        header(kind=99),
        header(flags=2, kind=Kind.DATA),
        header(flags=1, kind=Kind.HELLO),
        header(length=MAX_PAYLOAD + 1),
    ],
)
def test_a_bad_header_is_refused_before_its_payload_is_awaited(damaged: bytes) -> None:
    reader = FrameReader()
    reader.feed(damaged)
    with pytest.raises(RemoteProtocolError):
        reader.next_frame()


def test_the_frame_is_what_the_document_says() -> None:
    frame = Frame(Kind.ACK, b"payload").encode()
    assert frame[:8] == b"NR\x26\x00\x00\x00\x00\x07"
    assert frame[8:12] == struct.pack("!I", zlib.crc32(frame[:8] + b"payload"))
    assert frame[12:] == b"payload"


@pytest.mark.parametrize("cut", [1_000, 70_000, 200_000, 1_000_000])
@pytest.mark.parametrize("straight", [True, False])
def test_large_frames_survive_any_fragmentation(cut: int, *, straight: bool) -> None:
    """*straight*: written to where the reader wants them, as far as it wants."""
    frames = [
        Frame(Kind.DATA, random.Random(size).randbytes(size)) for size in (300_000, 10, 70_000, 9)
    ]
    wire = b"".join(frame.encode() for frame in frames)
    reader, got = FrameReader(), []
    while wire:
        piece = wire[:cut]
        if straight and (room := reader.room()):
            piece = piece[: len(room)]
            room[: len(piece)] = piece
            reader.filled(len(piece))
        else:
            reader.feed(piece)
        wire = wire[len(piece) :]
        while (frame := reader.next_frame()) is not None:
            got.append(frame)
    assert got == frames
    assert reader.empty


def test_the_document_lists_every_kind_with_its_number() -> None:
    text = (Path(__file__).parent.parent / "docs" / "PROTOCOL.md").read_text()
    listed = {int(n): name for n, name in re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", text, re.M)}
    assert listed == {int(kind): kind.name for kind in Kind}
    assert f"protocol version {PROTOCOL}" in text


def test_too_large_a_payload_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        pack(Kind.DATA, (bytes(MAX_PAYLOAD), b"1"))


# compression


def test_only_what_shrinks_is_compressed() -> None:
    own = Compressor()
    noise = random.Random(1).randbytes(20_000)
    flags = 3  # where they are in a frame
    zeros = (bytes(32), bytes(20_000))
    assert pack(Kind.DATA, zeros, own, 1)[flags] == Flag.ZSTD
    assert pack(Kind.DATA, (noise,), own, 1) == Frame(Kind.DATA, noise).encode()
    assert pack(Kind.OFFER, zeros, own, 1)[flags] == Flag.NONE
    assert pack(Kind.DATA, zeros, own, 0)[flags] == Flag.NONE
    assert pack(Kind.DATA, zeros)[flags] == Flag.NONE


def test_a_decompression_bomb_is_refused_without_decompressing_it() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(MAX_PAYLOAD + 1))
    assert len(bomb) < 10_000
    with pytest.raises(RemoteProtocolError):
        Unpacker().unpack(Frame(Kind.DATA, bomb, Flag.ZSTD))


def test_a_compressed_frame_without_its_size_or_with_more_behind_it_is_refused() -> None:
    sizeless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    sound = zstandard.ZstdCompressor().compress(bytes(1000))
    for payload in (sizeless, sound + b"more", sound[:-1], b""):
        with pytest.raises(RemoteProtocolError):
            Unpacker().unpack(Frame(Kind.DATA, payload, Flag.ZSTD))


# batches and the chain


@pytest.mark.parametrize("batch", [ROWS, DATA])
def test_batches_come_back_as_they_were(batch: Batch) -> None:
    assert unpack_batch(pack_batch(batch, b"")) == batch


def test_amounts_are_rows_and_bytes_without_holes() -> None:
    assert amount_of(ROWS) + amount_of(DATA) == Amount(rows=6, bytes=4)


def test_the_chain_depends_on_snapshots_order_and_content() -> None:
    start = chain_start("base", "target")
    one, two = pack_batch(ROWS, start), pack_batch(DATA, start)
    assert one.digest == chain(start, one.body)
    digests = [
        start,
        chain_start(None, "target"),
        chain_start("base", "other"),
        one.digest,
        two.digest,
        chain(one.digest, two.body),
        chain(two.digest, one.body),
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 32 for digest in digests)


@pytest.mark.parametrize(
    "batch",
    [
        RowBatch((DirentRow(1, b"..", 7, 300, 0),), b""),
        RowBatch((DirentRow(1, b"a/b", 7, 300, 0),), b""),
        RowBatch((DirentRow(1, b"a\0", 7, 300, 0),), b""),
        RowBatch((DirentRow(1, b"", 7, 300, 0),), b""),
        RowBatch((DirentRow(1, b"n" * 256, 7, 300, 0),), b""),
        RowBatch((InodeGone(0),), b""),
        RowBatch((InodeGone(1 << 40),), b""),
        RowBatch((), b"c" * 5000),
        DataBatch((Extent(300, 0, 5, False),), b"abcd", b""),
        DataBatch((Extent(300, 0, 5, True),), b"abcde", b""),
        DataBatch((Extent(300, -1, 4, False),), b"abcd", b""),
        DataBatch((Extent(300, (1 << 63) - 2, 4, False),), b"abcd", b""),
    ],
)
def test_batches_that_no_file_system_can_hold_are_refused(batch: Batch) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack_batch(pack_batch(batch, b""))


# refusals


@pytest.mark.parametrize(
    ("error", "arrives_as"),
    [
        (errors.PeerBusy("later"), errors.PeerBusy),
        (errors.VersionMismatch(ours=1, theirs=2), errors.VersionMismatch),
        (errors.Fenced(3, 5), errors.Fenced),
        (errors.NotAuthenticated("who?", "pair"), errors.NotAuthenticated),
        (errors.DigestMismatch("monday"), errors.DigestMismatch),
        (errors.Diverged("home", "no"), errors.Diverged),
        (Refused("no", "do that"), errors.RefusedByPeer),
        (Failed("full", "make room"), errors.PeerFailed),
        (errors.RemoteProtocolError("what?"), errors.RemoteProtocolError),
    ],
)
def test_errors_travel_with_their_class_and_hint(error: NasError, arrives_as: type) -> None:
    (refusal,) = receive_all(Codec(), encode(to_refusal(error)))
    assert isinstance(refusal, Refusal)
    arrived = to_error(refusal)
    assert type(arrived) is arrives_as
    if not isinstance(error, errors.VersionMismatch):
        assert arrived.hint == error.hint
    if isinstance(arrived, errors.Fenced):
        assert (arrived.ours, arrived.theirs) == (3, 5)


def test_an_unknown_code_of_a_refusal_is_a_refusal() -> None:
    assert isinstance(to_error(Refusal("weather", "it rains")), errors.RefusedByPeer)
