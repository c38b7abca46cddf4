"""Frames: bytes in, frames out, however the network cut them.  No I/O, no messages.

The layout is specified in docs/PROTOCOL.md and is the same in every version of the protocol, so
that two releases can at least tell each other why they don't understand.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import zstandard

from .compression import Compressor
from .errors import LocalProtocolError, RemoteProtocolError

MAGIC = b"NR"
MAX_PAYLOAD = 8 * 1024 * 1024
"""Bytes of a payload at most, on the wire and decompressed."""

_HEADER = struct.Struct("!2sBBI")  # magic, kind, flags, payload length
_CRC = struct.Struct("!I")  # CRC-32 of the header before it and of the payload
HEADER_BYTES = _HEADER.size + _CRC.size
_WORTH_COMPRESSING = 512


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


class Flag(IntFlag):
    NONE = 0
    ZSTD = 1


COMPRESSIBLE = frozenset({Kind.ROWS, Kind.DATA})
_KINDS = frozenset(int(kind) for kind in Kind)


@dataclass(frozen=True, slots=True)
class Frame:
    """A kind and its payload as it travels (still compressed, if the flag says so)."""

    kind: Kind
    payload: bytes
    flags: Flag = Flag.NONE

    def encode(self) -> bytes:
        header = _HEADER.pack(MAGIC, self.kind, self.flags, len(self.payload))
        crc = zlib.crc32(self.payload, zlib.crc32(header))
        return b"".join((header, _CRC.pack(crc), self.payload))


class FrameReader:
    """Collects bytes and gives whole, undamaged frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        self._buffer += data

    @property
    def empty(self) -> bool:
        """Whether the bytes so far end with a frame."""
        return not self._buffer

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes are fed.

        Raises:
            RemoteProtocolError: not our magic, unknown kind or flag, too large, damaged.  The
                reader stays where it is: nothing behind such bytes can be trusted.
        """
        if len(self._buffer) < HEADER_BYTES:
            return None
        magic, number, flags, length = _HEADER.unpack_from(self._buffer)
        kind = _check_header(magic, number, flags, length)
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            payload = bytes(view[HEADER_BYTES:end])
            crc = zlib.crc32(payload, zlib.crc32(view[: _HEADER.size]))
        if (crc,) != _CRC.unpack_from(self._buffer, _HEADER.size):
            raise RemoteProtocolError(f"damaged {kind.name} frame")
        del self._buffer[:end]
        return Frame(kind, payload, Flag(flags))


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


def pack(kind: Kind, payload: bytes, compressor: Compressor | None = None, level: int = 0) -> Frame:
    """A frame; compressed if that is asked for, allowed for the kind, and saves a sixteenth.

    Raises:
        LocalProtocolError: the payload is too large.
    """
    if len(payload) > MAX_PAYLOAD:
        raise LocalProtocolError(f"{kind.name} payload of {len(payload)} bytes")
    if (
        compressor is not None
        and level
        and kind in COMPRESSIBLE
        and len(payload) >= _WORTH_COMPRESSING
    ):
        packed = compressor.compress(payload, level)
        if packed is not None:
            return Frame(kind, packed, Flag.ZSTD)
    return Frame(kind, payload)


class Unpacker:
    """Gives payloads of frames, with one decompressor.  For one thread at a time."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def unpack(self, frame: Frame) -> bytes:
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
