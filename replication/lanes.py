"""Bulk lanes: connections beside the one that talks, for the file data of a large delta.  Sending.

A delta's batches go out in one order.  The connection says, in that order, on which lane the next
one comes (`Laned`), so that the receiver needs no other order; each lane has a thread at either
end.  A lane is a TLS connection like the first one, or a bare TCP connection: then the first one,
which is always TLS, carries a digest of what comes over it.  See docs/PROTOCOL.md, section 9.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from .compression import Buffer
from .errors import PeerUnreachable, ReplicationError
from .frames import HEADER_BYTES
from .transport import Credentials, TlsStream, bare_stream, client_handshake, open_socket
from .wire import Door, Laned, LaneKind, Lanes

if TYPE_CHECKING:
    from .connection import Connection

AUTO_LANES = 0
MOST_LANES = 8
LONG_S = 0.010
"""From such a round trip on (seconds), one TCP connection seldom fills a fast link."""
LONG_LANES = 4
WORTH_BYTES = 8 * 1024 * 1024
"""A delta with so many bytes of file data is worth lanes, and a thread that receives."""

PREAMBLE = b"NSLN"
"""How a lane begins, before any TLS: this, the token, the number of the lane (1 byte)."""
TOKEN_BYTES = 16
LOOK_S = 0.2
"""How often a thread that waits looks whether it is still wanted (seconds)."""


@dataclass(frozen=True, slots=True)
class LaneKeys:
    """What a lane's handshake needs; *address*: where the client connects."""

    credentials: Credentials
    pinned: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class LanePlan:
    """How a group wants its bulk data to travel: 1 to 8 lanes, or `AUTO_LANES`."""

    count: int = 1
    kind: LaneKind = LaneKind.SEALED


def choose(plan: LanePlan, size: int, round_trip_s: float) -> int:
    """How many lanes beside the connection a delta gets; 0: its data goes over the connection."""
    if size < WORTH_BYTES:
        return 0
    count = plan.count
    if count == AUTO_LANES:
        count = LONG_LANES if round_trip_s >= LONG_S else 1
    return count if count > 1 or plan.kind is LaneKind.CLEAR else 0


def frame_digest(kind: int, flags: int, payload: Buffer) -> bytes:
    """Of a frame as it travels in the clear."""
    hasher = blake3(bytes((kind, flags)))
    hasher.update(payload)
    return hasher.digest()


class OutLanes:
    """The sending ends.  `send` is for one thread; `close` may come from another."""

    def __init__(
        self, streams: dict[int, TlsStream], kind: LaneKind, on_failure: Callable[[], None]
    ) -> None:
        """*on_failure*: wakes up who waits for something else meanwhile."""
        self._streams = streams
        self._on_failure = on_failure
        self._kind = kind
        self._free: queue.Queue[int] = queue.Queue()
        self._frames: dict[int, queue.Queue[bytes | None]] = {
            number: queue.Queue() for number in streams
        }
        self.failure: BaseException | None = None
        """What broke a lane."""
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"lane {number}", daemon=True)
            for number in streams
        ]
        for _ in range(2):  # one frame on its way, one that waits behind it
            for number in streams:
                self._free.put(number)
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def sent(self) -> int:
        """Bytes, before encryption."""
        return sum(stream.sent for stream in self._streams.values())

    def send(self, connection: Connection, frame: bytes) -> None:
        """Over the lane that is free first; waits while none is.

        Raises:
            what broke a lane; what `Connection.send` raises.
        """
        number = self._wait_free()
        digest = b""
        if self._kind is LaneKind.CLEAR:
            digest = frame_digest(frame[2], frame[3], memoryview(frame)[HEADER_BYTES:])
        connection.send(Laned(number, digest))
        self._frames[number].put(frame)

    def drain(self) -> None:
        """Until the lanes have sent everything.  Raises like `send`."""
        for _ in range(2 * len(self._streams)):
            self._wait_free()

    def _wait_free(self) -> int:
        while True:
            if self.failure is not None:
                raise self.failure
            with contextlib.suppress(queue.Empty):
                return self._free.get(timeout=LOOK_S)

    def _run(self, number: int) -> None:
        stream, frames = self._streams[number], self._frames[number]
        try:
            while (frame := frames.get()) is not None:
                stream.send(frame)
                self._free.put(number)
        except BaseException as exc:  # carried to the thread that sends, and raised there
            if not self._closed.is_set():
                self.failure = self.failure or exc
                self._on_failure()

    def close(self) -> None:
        """Broken off, if something is still under way."""
        self._closed.set()
        for number, stream in self._streams.items():
            self._frames[number].put(None)
            stream.abort()
        for thread in self._threads:
            thread.join()
        for stream in self._streams.values():
            stream.close()


@contextlib.contextmanager
def out_lanes(connection: Connection, plan: LanePlan, size: int) -> Iterator[OutLanes | None]:
    """Lanes for a delta whose Resume has come; None: its data goes over the connection.

    So it does if no lane can be made: a firewall may allow few connections.
    """
    count = choose(plan, size, connection.round_trip_s)
    if not count or connection.lane_keys is None:
        yield None
        return
    connection.send(Lanes(count, plan.kind))
    token = connection.expect(Door).token
    streams = _open_all(connection, connection.lane_keys, token, count, plan.kind)
    if not streams:
        yield None
        return
    lanes = OutLanes(streams, plan.kind, connection.abort)
    connection.lanes = lanes
    try:
        yield lanes
    except PeerUnreachable:
        if lanes.failure is not None:  # which broke off all the rest
            raise lanes.failure from None
        raise
    finally:
        lanes.close()
        connection.forget_lanes()


def _open_all(
    connection: Connection, keys: LaneKeys, token: bytes, count: int, kind: LaneKind
) -> dict[int, TlsStream]:
    timeout = connection.timeout_s * (count + 1)  # they share a link that may be slow

    def one(number: int) -> TlsStream | None:
        try:
            raw = open_socket(keys.address, connection.timeout_s)
            return _begin(raw, keys, PREAMBLE + token + bytes((number,)), kind, timeout)
        except ReplicationError:
            return None

    with ThreadPoolExecutor(count) as workers:
        found = dict(enumerate(workers.map(one, range(count))))
    streams = {number: stream for number, stream in found.items() if stream is not None}
    for stream in streams.values():
        stream.throttle = connection.throttle
    return streams


def _begin(
    raw: socket.socket, keys: LaneKeys, preamble: bytes, kind: LaneKind, timeout: float
) -> TlsStream:
    try:
        raw.sendall(preamble)
    except OSError as exc:
        raw.close()
        raise PeerUnreachable(keys.address, str(exc)) from exc
    if kind is LaneKind.CLEAR:
        return bare_stream(raw, keys.address, timeout=timeout)
    return client_handshake(raw, keys.credentials, keys.address, keys.pinned, timeout=timeout)
