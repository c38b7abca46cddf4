"""Bulk lanes, the receiving ends: where they arrive, and a thread that reads each of them.

Every connection to a node is served by a process of its own.  One that begins like a lane is
passed on, before any TLS, to the process that has made the door with its token: a socket in the
abstract name space (unix(7)), which only processes of the same user may use.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import socket
import struct
import threading
from dataclasses import dataclass

from .errors import NotAuthenticated, PeerUnreachable, RemoteProtocolError
from .frames import Frame, FrameReader, Kind, Unpacker
from .lanes import LOOK_S, MOST_LANES, PREAMBLE, TOKEN_BYTES, LaneKeys, frame_digest
from .transport import TIMEOUT_S, TlsStream, accept, bare_stream
from .wire import Data, Laned, LaneKind, decode

_PREAMBLE_BYTES = len(PREAMBLE) + TOKEN_BYTES + 1
_CREDENTIALS = struct.Struct("iII")  # struct ucred: process, user, group
FRAMES = 2
"""Of each lane, so many wait for their turn at most."""


def pass_on(sock: socket.socket, timeout: float = TIMEOUT_S) -> bool:
    """Whether a new connection is a lane; then it went to its door, or is closed: nobody's."""
    sock.settimeout(timeout)
    try:
        if sock.recv(len(PREAMBLE), socket.MSG_PEEK) != PREAMBLE:
            return False
        preamble = b""
        while len(preamble) < _PREAMBLE_BYTES:
            piece = sock.recv(_PREAMBLE_BYTES - len(preamble))
            if not piece:
                raise ConnectionResetError
            preamble += piece
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.settimeout(timeout)
            door.connect(_name(preamble[len(PREAMBLE) : -1]))
            socket.send_fds(door, [preamble[-1:]], [sock.fileno()])
    except OSError:  # it went away, or there is no such door (any more)
        sock.close()
        return True
    sock.close()
    return True


def _name(token: bytes) -> str:
    return f"\0nasfs-lane-{token.hex()}"


@dataclass(frozen=True, slots=True)
class _Arrived:
    frame: Frame
    digest: bytes
    """Of the frame; empty on a sealed lane."""


class LaneDoor:
    """Takes in up to *count* lanes of one delta.  `take` is for one thread.

    Attributes:
        token: names it; the peer gets it over TLS.
    """

    def __init__(self, keys: LaneKeys, count: int, kind: LaneKind, timeout: float) -> None:
        """Raises RemoteProtocolError if that many are too many."""
        if not 0 < count <= MOST_LANES:
            raise RemoteProtocolError(f"{count} lanes")
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self._keys = keys
        self._kind = kind
        self._timeout = timeout
        self._long_timeout = timeout * (count + 1)
        self._arrived: list[queue.Queue[_Arrived | BaseException]] = [
            queue.Queue(FRAMES) for _ in range(count)
        ]
        self._expected = set(range(count))
        self._unpacker = Unpacker()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(_name(self.token))
        self._listener.listen(count)
        self._listener.settimeout(LOOK_S)
        self._start(self._let_in)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="lane", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def take(self, laned: Laned, timeout: float) -> Data:
        """The batch that comes next, from the lane that it is said to come on.

        Raises:
            PeerUnreachable: the lane broke, or did not come; what came is not what was sent.
            RemoteProtocolError: there is no such lane; it carries something else.
        """
        if not 0 <= laned.lane < len(self._arrived):
            raise RemoteProtocolError(f"no lane {laned.lane}")
        found: _Arrived | BaseException | None = None
        waited = 0.0
        while found is None:
            with contextlib.suppress(queue.Empty):
                found = self._arrived[laned.lane].get(timeout=LOOK_S)
            waited += LOOK_S
            if self._closed.is_set() or (laned.lane in self._expected and waited > timeout):
                raise PeerUnreachable("the partner", f"lane {laned.lane} did not come")
        if isinstance(found, BaseException):
            raise found
        if found.digest != laned.digest:
            raise PeerUnreachable("the partner", "what came over a lane is not what was sent")
        message = decode(found.frame, self._unpacker)
        if not isinstance(message, Data):
            raise RemoteProtocolError(f"{type(message).__name__} on a lane")
        return message

    def _let_in(self) -> None:
        while self._expected and not self._closed.is_set():
            try:
                envoy, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with envoy:
                self._let_in_one(envoy)

    def _let_in_one(self, envoy: socket.socket) -> None:
        envoy.settimeout(self._timeout)
        try:
            raw = envoy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(raw)[1] != os.geteuid():
                return
            number, received, _, _ = socket.recv_fds(envoy, 1, 1)
        except OSError:
            return
        for descriptor in received:
            lane = socket.socket(fileno=descriptor)
            if number and number[0] in self._expected:
                self._expected.discard(number[0])
                self._start(self._read, lane, number[0])
            else:
                lane.close()

    def _read(self, raw: socket.socket, number: int) -> None:
        try:
            stream = self._handshake(raw)
        except BaseException as exc:  # carried to the thread that takes, and raised there
            self._hand_over(number, exc)
            return
        try:
            reader = FrameReader()
            while (frame := self._next(stream, reader)) is not None:
                digest = b""
                if self._kind is LaneKind.CLEAR:
                    digest = frame_digest(frame.kind, frame.flags, frame.payload)
                self._hand_over(number, _Arrived(frame, digest))
        except BaseException as exc:
            self._hand_over(number, exc)
        finally:
            stream.close()

    def _handshake(self, raw: socket.socket) -> TlsStream:
        if self._kind is LaneKind.CLEAR:
            return bare_stream(raw, "the partner", timeout=self._long_timeout)
        keys = self._keys
        stream = accept(raw, keys.credentials, keys.pinned, timeout=self._long_timeout)
        if not stream.authenticated:
            stream.close()
            raise NotAuthenticated("a lane came without the certificate of the partner")
        return stream

    def _next(self, stream: TlsStream, reader: FrameReader) -> Frame | None:
        """None: nobody wants it any more."""
        while not self._closed.is_set():
            frame = reader.next_frame()
            if frame is not None:
                if frame.kind is not Kind.DATA:
                    raise RemoteProtocolError(f"{frame.kind.name} on a lane")
                return frame
            room = reader.room()
            data = stream.receive(LOOK_S, room or None)
            if data is None:
                if not reader.empty and stream.silent_s > stream.timeout:
                    raise PeerUnreachable(stream.peer, f"nothing for {stream.timeout:g} seconds")
            elif not data:
                raise PeerUnreachable(stream.peer, "it closed a lane")
            elif room:
                reader.filled(len(data))
            else:
                reader.feed(data)
        return None

    def _hand_over(self, number: int, what: _Arrived | BaseException) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._arrived[number].put(what, timeout=LOOK_S)
                return

    def close(self) -> None:
        """The threads are gone on return, and so are the lanes."""
        self._closed.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()
