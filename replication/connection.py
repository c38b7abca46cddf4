"""A conversation with the peer: messages over a stream, in the order that `session` allows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from importlib import metadata
from types import TracebackType
from typing import TypeVar

from nasfs.errors import NasError

from .compression import Compressor, Depth
from .endpoint import PeerIdentity
from .errors import PeerUnreachable, RemoteProtocolError, ReplicationError, VersionMismatch
from .refusal import to_error, to_refusal
from .session import AT_REST, Session, Side, State
from .transport import TlsStream
from .wire import PROTOCOL, Codec, Data, Hello, Message, Ping, Refusal, Rows, encode, kind_of

LINGER_S = 2.0
"""How long the peer gets to read a refusal before the connection closes (seconds)."""

M = TypeVar("M", bound=Message)


class Connection:
    """Messages to and from one peer.

    One thread may send while another receives.  A heartbeat thread, from `greet` to `close`,
    says Ping when nothing else was said for a quarter of the time-out, so that a side that works
    for long (it rolls back, it compares) is not taken for dead.

    Args:
        level: of zstandard for rows and data that are sent, 0 (none) to 19, or `compression.AUTO`.

    Attributes:
        depth: the level now.
        counted: of `wire_bytes`, what earlier transfers on this connection have told as theirs.
    """

    def __init__(self, stream: TlsStream, side: Side, *, level: int = 0) -> None:
        self.depth = Depth(level)
        self.counted = 0
        self._stream = stream
        self._codec = Codec()
        self._compressors = threading.local()
        self._session = Session(side)
        self._sending = threading.Lock()
        self._state = threading.Lock()
        self._closing = threading.Event()
        self._heartbeat = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)
        self._spoke = time.monotonic()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def peer(self) -> str:
        return self._stream.peer

    @property
    def authenticated(self) -> bool:
        """The peer proved to own the pinned certificate."""
        return self._stream.authenticated

    @property
    def certificate(self) -> bytes | None:
        """What the peer showed (DER), if anything."""
        return self._stream.certificate

    @property
    def wire_bytes(self) -> int:
        """Bytes sent so far, frames and all, before encryption."""
        return self._stream.sent

    @property
    def wire_bytes_received(self) -> int:
        return self._stream.received

    @property
    def silent_s(self) -> float:
        """So long nothing was read from the peer; somebody has to read (`receive_within`)."""
        return self._stream.silent_s

    @property
    def timeout_s(self) -> float:
        """After so long a silence, the peer counts as unreachable."""
        return self._stream.timeout

    def share_link(self, throttle: Callable[[int], None]) -> None:
        """Ask *throttle* before bytes go; it may block, and break the connection by raising."""
        self._stream.throttle = throttle

    @property
    def at_rest(self) -> bool:
        """Nothing is under way: the client may go away now."""
        return self._session.state in AT_REST and self._codec.idle

    def greet(self, ours: Hello) -> Hello:
        """Exchange greetings, before anything else.

        Raises:
            VersionMismatch: both sides find out, whichever is newer.
            NotAuthenticated: the server did not like our certificate.
        """
        if self._session.side is Side.CLIENT:
            # The server may have closed already; what it last said tells why, so we go and read.
            with contextlib.suppress(PeerUnreachable):
                self.send(ours)
            theirs = self.expect(Hello)
        else:
            theirs = self.expect(Hello)
            self.send(ours)
        if theirs.protocol != ours.protocol:
            raise VersionMismatch(ours=ours.protocol, theirs=theirs.protocol)
        self._heartbeat.start()
        return theirs

    def send(self, message: Message) -> int:
        """Send one message; the bytes that it took.

        Raises:
            PeerUnreachable: the connection is broken.
            LocalProtocolError: not now, or too large.
        """
        return self.send_packed(message, self.pack(message))

    def pack(self, message: Message) -> bytes:
        """The message as it would travel; may be called in any thread, before its turn."""
        if not isinstance(message, Rows | Data):
            return encode(message)
        if not hasattr(self._compressors, "own"):
            self._compressors.own = Compressor()
        return encode(message, self._compressors.own, self.depth.level)

    def send_packed(self, message: Message, frame: bytes) -> int:
        """Send a message that was packed before; raises like `send`."""
        with self._sending:
            return self._send(message, frame)

    def _send(self, message: Message, frame: bytes) -> int:
        with self._state:
            self._session.sent(kind_of(message))
        self._stream.send(frame)
        self._spoke = time.monotonic()
        return len(frame)

    def receive(self) -> Message:
        """The next message that is not a Ping.

        Raises:
            PeerUnreachable: the connection is broken or silent for too long.
            RemoteProtocolError: what came is malformed, or not allowed now.
            NasError: the peer refused; the class says why.
        """
        while True:
            if (message := self._next()) is not None:
                return message
            self._fill(None)

    def receive_within(self, seconds: float | None) -> Message | None:
        """Like `receive`, but None if no whole message came in time (None: no such limit)."""
        if seconds is None:
            return self.receive()
        ends = time.monotonic() + seconds
        while True:
            if (message := self._next()) is not None:
                return message
            if not self._fill(max(0.0, ends - time.monotonic())):
                return None

    def expect(self, type_: type[M]) -> M:
        """The next message, which is of that type; raises like `receive`."""
        message = self.receive()
        if not isinstance(message, type_):
            raise RemoteProtocolError(f"{kind_of(message).name} instead of {type_.__name__}")
        return message

    def _next(self) -> Message | None:
        while (message := self._codec.receive()) is not None:
            with self._state:
                self._session.received(kind_of(message))
            if isinstance(message, Refusal):
                raise to_error(message)
            if not isinstance(message, Ping):
                return message
        return None

    def _fill(self, wait: float | None) -> bool:
        room = self._codec.room()
        data = self._stream.receive(wait, room or None)
        if data is None:
            return False
        if not data:
            raise PeerUnreachable(self.peer, "it closed the connection")
        if room:
            self._codec.filled(len(data))
        else:
            self._codec.feed(data)
        return True

    def _keep_alive(self) -> None:
        pause = self._stream.timeout / 4
        while not self._closing.wait(pause):
            # Whoever holds the lock is sending: that is a sign of life as well.
            if time.monotonic() - self._spoke < pause or not self._sending.acquire(blocking=False):
                continue
            try:
                if self._session.state is not State.CLOSED:
                    self._send(Ping(), encode(Ping()))
            except ReplicationError:
                return  # the owner finds out by itself, and knows what to do
            finally:
                self._sending.release()

    def refuse(self, error: NasError) -> None:
        """Tell the peer why this is the end, as far as it still listens, and close."""
        if self._session.state is not State.CLOSED:
            with contextlib.suppress(ReplicationError):
                self.send(to_refusal(error))
            self._close(linger=LINGER_S)
        self.close()

    def abort(self) -> None:
        """Break the connection off: a thread that waits on it wakes up with PeerUnreachable."""
        self._stream.abort()

    def close(self) -> None:
        self._close(linger=0.0)

    def _close(self, *, linger: float) -> None:
        self._closing.set()
        if self._heartbeat.is_alive():
            if not linger:
                self._stream.abort()  # it may be in the middle of a send
            self._heartbeat.join()
        self._stream.close(linger=linger)


def greeting(identity: PeerIdentity) -> Hello:
    """This node's Hello."""
    return Hello(PROTOCOL, identity.uuid, identity.name, release())


def release() -> str:
    """The installed release of nasfs, for people."""
    try:
        return metadata.version("nasfs")
    except metadata.PackageNotFoundError:
        return "not installed"
