"""Frames: bytes in, frames out, however the network cut them.  No I/O, no messages.

The layout is specified in docs/PROTOCOL.md and is the same in every version of the protocol, so
that two releases can at least tell each other why they don't understand.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import zstandard

from .compression import Buffer, Compressor
from .errors import LocalProtocolError, RemoteProtocolError

MAGIC = b"NR"
MAX_PAYLOAD = 8 * 1024 * 1024
"""Bytes of a payload at most, on the wire and decompressed."""

_HEADER = struct.Struct("!2sBBI")  # magic, kind, flags, payload length
_CRC = struct.Struct("!I")  # CRC-32 of the header before it and of the payload's beginning
CHECKED_BYTES = 4096
"""Of a payload the CRC covers so much: it tells a foreign or misplaced frame.  TLS and the chain of
digests guard the rest."""
HEADER_BYTES = _HEADER.size + _CRC.size
_WORTH_COMPRESSING = 512
_LARGE = 64 * 1024
"""From so many bytes on, a payload is collected in a buffer of its own."""


class Kind(IntEnum):
    """What a frame carries; numbers are never reused."""

    HELLO = 1
    REFUSAL = 2
    PING = 3
    PAIR = 16
    PAIRED = 17
    CREATE = 18
    CREATED = 19
    STATUS_QUERY = 20
    STATUS = 21
    OPERATE = 22
    OPERATED = 23
    OFFER = 32
    STATE = 33
    BEGIN = 34
    RESUME = 35
    ROWS = 36
    DATA = 37
    ACK = 38
    SEAL = 39
    SEALED = 40
    LANES = 41
    DOOR = 42
    LANED = 43


class Flag(IntFlag):
    NONE = 0
    ZSTD = 1


COMPRESSIBLE = frozenset({Kind.ROWS, Kind.DATA})
_KINDS = frozenset(int(kind) for kind in Kind)


@dataclass(frozen=True, slots=True)
class Frame:
    """A kind and its payload as it travels (still compressed, if the flag says so)."""

    kind: Kind
    payload: Buffer
    flags: Flag = Flag.NONE

    def encode(self) -> bytes:
        return join_frame(self.kind, (self.payload,), self.flags)


def join_frame(kind: Kind, parts: Sequence[Buffer], flags: Flag = Flag.NONE) -> bytes:
    """The bytes of a frame whose payload is in parts, which are copied once."""
    header = _HEADER.pack(MAGIC, kind, flags, sum(map(len, parts)))
    crc, left = zlib.crc32(header), CHECKED_BYTES
    for part in parts:
        checked = memoryview(part)[:left]
        crc = zlib.crc32(checked, crc)
        left -= len(checked)
    return b"".join((header, _CRC.pack(crc), *parts))


class FrameReader:
    """Collects bytes and gives whole, undamaged frames.

    Bytes are fed; those of a large payload may be written where `room` says, so that they are
    never copied.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header = b""
        """Of the large frame whose payload is being collected."""
        self._large = bytearray()
        self._have = 0

    def feed(self, data: Buffer) -> None:
        if self._header:
            view = memoryview(data)
            room = self.room()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            self._have += count
            data = view[count:]
        self._buffer += data

    def room(self) -> memoryview:
        """Where the next bytes may be written, see `filled`; empty: they have to be fed."""
        return memoryview(self._large)[self._have :]

    def filled(self, count: int) -> None:
        """So many bytes were written to the beginning of `room`."""
        self._have += count

    @property
    def empty(self) -> bool:
        """Whether the bytes so far end with a frame."""
        return not (self._buffer or self._header)

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes are fed.

        Raises:
            RemoteProtocolError: not our magic, unknown kind or flag, too large, damaged.  The
                reader stays where it is: nothing behind such bytes can be trusted.
        """
        if self._header:
            return self._next_large()
        if len(self._buffer) < HEADER_BYTES:
            return None
        magic, number, flags, length = _HEADER.unpack_from(self._buffer)
        kind = _check_header(magic, number, flags, length)
        end = HEADER_BYTES + length
        if length >= _LARGE:
            self._begin_large(length)
            return self._next_large()
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            header = bytes(view[:HEADER_BYTES])
            payload = bytes(view[HEADER_BYTES:end])
        _check_crc(kind, header, payload)
        del self._buffer[:end]
        return Frame(kind, payload, Flag(flags))

    def _begin_large(self, length: int) -> None:
        """The frame at the beginning of the buffer gets one of its own."""
        end = HEADER_BYTES + length
        with memoryview(self._buffer) as view:
            self._header = bytes(view[:HEADER_BYTES])
            self._large = bytearray(length)
            self._have = len(view[HEADER_BYTES:end])
            self._large[: self._have] = view[HEADER_BYTES:end]
        del self._buffer[:end]

    def _next_large(self) -> Frame | None:
        if self._have < len(self._large):
            return None
        _, number, flags, _ = _HEADER.unpack_from(self._header)
        kind = Kind(number)
        _check_crc(kind, self._header, self._large)
        payload = self._large
        self._header, self._large, self._have = b"", bytearray(), 0
        return Frame(kind, payload, Flag(flags))


def _check_crc(kind: Kind, header: bytes, payload: Buffer) -> None:
    """Raises RemoteProtocolError."""
    crc = zlib.crc32(memoryview(payload)[:CHECKED_BYTES], zlib.crc32(header[: _HEADER.size]))
    if (crc,) != _CRC.unpack_from(header, _HEADER.size):
        raise RemoteProtocolError(f"damaged {kind.name} frame")


def _check_header(magic: bytes, number: int, flags: int, length: int) -> Kind:
    if magic != MAGIC:
        raise RemoteProtocolError(f"not a frame: it begins with {magic!r}")
    if number not in _KINDS:
        raise RemoteProtocolError(f"unknown kind of frame: {number}")
    kind = Kind(number)
    if flags not in (Flag.NONE, Flag.ZSTD) or (flags and kind not in COMPRESSIBLE):
        raise RemoteProtocolError(f"flags {flags:#x} are not allowed on {kind.name}")
    if length > MAX_PAYLOAD:
        raise RemoteProtocolError(f"{kind.name} frame of {length} bytes")
    return kind


def pack(
    kind: Kind, parts: Sequence[Buffer], compressor: Compressor | None = None, level: int = 0
) -> bytes:
    """A frame; compressed if that is asked for, allowed for the kind, and saves a sixteenth.

    Args:
        parts: of the payload.

    Raises:
        LocalProtocolError: the payload is too large.
    """
    length = sum(map(len, parts))
    if length > MAX_PAYLOAD:
        raise LocalProtocolError(f"{kind.name} payload of {length} bytes")
    if compressor is not None and level and kind in COMPRESSIBLE and length >= _WORTH_COMPRESSING:
        packed = compressor.compress(parts, level)
        if packed is not None:
            return join_frame(kind, (packed,), Flag.ZSTD)
    return join_frame(kind, parts)


class Unpacker:
    """Gives payloads of frames, with one decompressor.  For one thread at a time."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def unpack(self, frame: Frame) -> Buffer:
        """The payload as it was before compression.

        Raises:
            RemoteProtocolError: not zstandard, damaged, without its size, or too large.
        """
        if not frame.flags & Flag.ZSTD:
            return frame.payload
        try:
            size = zstandard.frame_content_size(frame.payload)
            # The size is checked first: the library trusts it and allocates that much.
            if not 0 <= size <= MAX_PAYLOAD:
                raise RemoteProtocolError(f"{frame.kind.name} frame decompresses to {size} bytes")
            return self._decompressor.decompress(
                frame.payload, max_output_size=MAX_PAYLOAD, allow_extra_data=False
            )
        except zstandard.ZstdError as exc:
            raise RemoteProtocolError(f"{frame.kind.name} frame: {exc}") from exc
