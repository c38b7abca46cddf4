"""TLS 1.3 over sockets between two nodes that pinned each other's certificate.

`TlsStream` pumps bytes.  The socket never blocks inside OpenSSL: one lock guards every call into
it, because a connection must not be read and written by two threads at once (OpenSSL's
documentation, "thread safety"), and waiting happens in poll(2) outside the lock.  So one thread
can send while another gets acknowledgements.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from nasfs.errors import ConfigError

from .errors import NotAuthenticated, PeerUnreachable, RemoteProtocolError, ReplicationError

TIMEOUT_S = 20.0
"""Without a single byte for so long, the peer counts as unreachable (seconds)."""

_CHUNK = 256 * 1024
_SHARE = 16 * 1024
"""Bytes asked for at a time where the link is shared: few, so that a slow one is exact; more and
more, up to a whole chunk, while each is gone at once."""
_QUICK_S = 0.002
_RTT = struct.Struct("=148xI")  # struct tcp_info of <linux/tcp.h>, up to tcpi_min_rtt
_LINGER_BYTES = 64 * 1024 * 1024
_WRONG_CERTIFICATE = frozenset(
    {
        "CERTIFICATE_VERIFY_FAILED",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_DECRYPT_ERROR",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    }
)
_REPAIR = "the two nodes must be paired again: nasfs pair remove, then nasfs pair invite"


class Credentials(msgspec.Struct, frozen=True):
    """Where a node's own certificate and private key are (PEM files)."""

    certificate: Path
    key: Path


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT.  Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"{text!r} is not an address", hint="addresses are written HOST:PORT")
    return host, int(port)


# contexts


def client_context(credentials: Credentials | None, pinned: str | None) -> ssl.SSLContext:
    """For who connects.

    Args:
        credentials: None: come without a certificate (pairing).
        pinned: the only certificate (PEM) to believe; None: the caller compares a fingerprint.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, credentials, pinned, ssl.CERT_REQUIRED)


def server_context(credentials: Credentials, pinned: str | None) -> ssl.SSLContext:
    """For who listens; a client without a certificate gets in and may only pair."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials, pinned, ssl.CERT_OPTIONAL)
    context.num_tickets = 0  # never resumed; unread tickets would turn a close into a reset
    if pinned is None:
        context.verify_mode = ssl.CERT_OPTIONAL  # and no certificate is believed
    return context


def _context(
    protocol: int, credentials: Credentials | None, pinned: str | None, verify: ssl.VerifyMode
) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # addresses change; the certificate itself is compared
    context.verify_mode = ssl.CERT_NONE
    if credentials is not None:
        try:
            context.load_cert_chain(credentials.certificate, credentials.key)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"cannot use the key {credentials.key} with {credentials.certificate}: {exc}"
            ) from exc
    if pinned is not None:
        context.load_verify_locations(cadata=pinned)
        context.verify_mode = verify
    return context


# handshakes


def connect(
    address: str,
    credentials: Credentials | None,
    pinned: str | None,
    *,
    timeout: float = TIMEOUT_S,
) -> TlsStream:
    """A stream to the node that listens at *address* (HOST:PORT).

    Raises:
        PeerUnreachable: nobody there, or no answer in time.
        NotAuthenticated: the certificate is not the pinned one.
    """
    return client_handshake(
        open_socket(address, timeout), credentials, address, pinned, timeout=timeout
    )


def open_socket(address: str, timeout: float) -> socket.socket:
    """A TCP connection to HOST:PORT.  Raises PeerUnreachable."""
    try:
        return socket.create_connection(parse_address(address), timeout=timeout)
    except OSError as exc:
        raise PeerUnreachable(address, _reason(exc)) from exc


def client_handshake(
    raw: socket.socket,
    credentials: Credentials | None,
    address: str,
    pinned: str | None,
    *,
    timeout: float,
) -> TlsStream:
    """`connect`, over a socket that is connected already."""
    return _handshake(raw, client_context(credentials, pinned), address, pinned, timeout)


def bare_stream(raw: socket.socket, peer: str, *, timeout: float) -> TlsStream:
    """A stream without TLS, for bytes that are authenticated elsewhere."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return TlsStream(raw, peer, authenticated=False, certificate=None, timeout=timeout)


def accept(
    raw: socket.socket,
    credentials: Credentials,
    pinned: str | None,
    *,
    timeout: float = TIMEOUT_S,
) -> TlsStream:
    """A stream over a socket that was accepted; `authenticated` says what it may do.

    Raises:
        PeerUnreachable: the client went away.
        NotAuthenticated: its certificate is not the pinned one, or it does not believe ours.
        RemoteProtocolError: it does not speak TLS 1.3.
    """
    try:
        host, port = raw.getpeername()[:2]
        name = f"{host}:{port}"
    except (OSError, ValueError):
        name = "of an unknown address"  # it is gone already, or not a network socket
    return _handshake(raw, server_context(credentials, pinned), name, pinned, timeout)


def _handshake(
    raw: socket.socket, context: ssl.SSLContext, peer: str, pinned: str | None, timeout: float
) -> TlsStream:
    server_side = context.protocol == ssl.PROTOCOL_TLS_SERVER
    raw.settimeout(timeout)
    if raw.family in (socket.AF_INET, socket.AF_INET6):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock = context.wrap_socket(raw, server_side=server_side, do_handshake_on_connect=False)
    except OSError as exc:
        raw.close()
        raise PeerUnreachable(peer, _reason(exc)) from exc
    try:
        sock.do_handshake()
        theirs = sock.getpeercert(binary_form=True)
        # The chain was verified against the pinned certificate; the bytes are compared as well,
        # because that certificate could have signed others.
        if pinned is not None and theirs is not None and theirs != ssl.PEM_cert_to_DER_cert(pinned):
            raise NotAuthenticated(f"{peer} shows another certificate than at pairing", _REPAIR)
    except (OSError, NotAuthenticated) as exc:
        _linger(sock, min(timeout, 2.0))
        sock.close()
        raise _translate(exc, peer, greeting=True) from exc
    authenticated = pinned is not None and theirs is not None
    return TlsStream(sock, peer, authenticated=authenticated, certificate=theirs, timeout=timeout)


def _translate(exc: Exception, peer: str, *, greeting: bool = False) -> ReplicationError:
    """The one place where errors of sockets and TLS become ours.

    In a handshake (*greeting*), bytes that make no sense come from something else than a node;
    later, from a line that broke or damages what it carries.
    """
    if isinstance(exc, ReplicationError):
        return exc
    if isinstance(exc, ssl.SSLError) and exc.reason in _WRONG_CERTIFICATE:
        if "ALERT" in exc.reason:
            text = f"{peer} does not accept this node's certificate"
        else:
            text = f"{peer} shows another certificate than at pairing"
        return NotAuthenticated(text, _REPAIR)
    gone = ssl.SSLEOFError | ssl.SSLZeroReturnError
    if greeting and isinstance(exc, ssl.SSLError) and not isinstance(exc, gone):
        return RemoteProtocolError(f"TLS: {exc.reason or exc}")
    return PeerUnreachable(peer, _reason(exc))


def _reason(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__


def _linger(sock: socket.socket, seconds: float) -> None:
    """Let the peer read our last words: a close with unread bytes would reset the connection."""
    ends = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)  # the one of SSLSocket forgets its TLS state
        left = _LINGER_BYTES
        while left > 0 and (wait := ends - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN)
            if not poll.poll(wait * 1000):
                return
            got = len(_raw_receive(sock))
            if not got:
                return
            left -= got


def _raw_receive(sock: socket.socket) -> bytes:
    with socket.socket(fileno=socket.dup(sock.fileno())) as below:
        return below.recv(_CHUNK, socket.MSG_DONTWAIT)


class TlsStream:
    """Bytes to and from an authenticated (or pairing) peer.

    Attributes:
        authenticated: the peer proved to own the pinned certificate.
        certificate: what the peer showed (DER), if anything.
        sent, received: bytes before encryption, which adds about 0.2 %.
    """

    def __init__(
        self,
        sock: ssl.SSLSocket | socket.socket,
        peer: str,
        *,
        authenticated: bool,
        certificate: bytes | None,
        timeout: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.peer = peer
        self.authenticated = authenticated
        self.certificate = certificate
        self.timeout = timeout
        self.sent = 0
        self.received = 0
        self.throttle: Callable[[int], None] | None = None
        """Called with the bytes that are about to go; may block, and break off by raising."""
        self._sock = sock
        self._clock = clock
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(_CHUNK))
        self._heard = clock()
        self._share = _SHARE
        sock.setblocking(False)

    @property
    def silent_s(self) -> float:
        """Seconds since the last bytes were read."""
        return self._clock() - self._heard

    @property
    def round_trip_s(self) -> float:
        """To the peer and back, the shortest that TCP has measured (seconds); 0: it can't tell."""
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size)
        except OSError:
            return 0.0
        return float(_RTT.unpack(info)[0]) / 1e6 if len(info) == _RTT.size else 0.0

    def send(self, data: bytes) -> None:
        """All of *data*; one thread at a time.

        Raises:
            PeerUnreachable: broken, or the peer neither took nor sent a byte for `timeout`.
        """
        view = memoryview(data)
        if self.throttle is None:
            self._send(view)
            return
        while view:
            piece, view = view[: self._share], view[self._share :]
            began = self._clock()
            self.throttle(len(piece))
            self._send(piece)
            quick = self._clock() - began < _QUICK_S
            self._share = min(2 * self._share, _CHUNK) if quick else _SHARE

    def _send(self, view: memoryview) -> None:
        moved = self._clock()
        while view:
            wants = select.POLLOUT
            with self._lock:
                try:
                    count = self._sock.send(view[:_CHUNK])
                except (ssl.SSLWantWriteError, BlockingIOError):
                    count = 0
                except ssl.SSLWantReadError:
                    count, wants = 0, select.POLLIN
                except (OSError, ValueError) as exc:
                    raise _translate(exc, self.peer) from exc
            if count:
                self.sent += count
                view = view[count:]
                moved = self._clock()
                continue
            # A peer that is alive but slow to take is still heard, by the thread that receives.
            left = max(moved, self._heard) + self.timeout - self._clock()
            if left <= 0:
                raise PeerUnreachable(self.peer, f"nothing for {self.timeout:g} seconds")
            self._wait(wants, left)

    def receive(
        self, wait: float | None = None, into: memoryview | None = None
    ) -> memoryview | None:
        """Some bytes, valid until the next call; empty at the end of the stream.

        Args:
            wait: seconds; None: the stream's time-out.
            into: where to write them (not empty); None: into a buffer of the stream's own.

        Returns:
            None if *wait* was given and nothing came.

        Raises:
            PeerUnreachable: broken, or nothing came for `timeout`.
        """
        buffer = self._buffer if into is None else into
        until = self._clock() + (self.timeout if wait is None else wait)
        while True:
            wants = select.POLLIN
            with self._lock:
                try:
                    count = self._take(buffer)
                    self.received += count
                    self._heard = self._clock()
                    return buffer[:count]
                except (ssl.SSLWantReadError, BlockingIOError):
                    pass
                except ssl.SSLWantWriteError:
                    wants = select.POLLOUT
                except (OSError, ValueError) as exc:
                    raise _translate(exc, self.peer) from exc
            if self._wait(wants, until - self._clock()):
                continue
            if wait is not None:
                return None
            raise PeerUnreachable(self.peer, f"nothing for {self.timeout:g} seconds")

    def _take(self, buffer: memoryview) -> int:
        """As much as is there; raises if that is nothing yet.

        TLS gives a record at a time, 16 KiB: a turn of everything around this for each would take
        longer than decrypting it.
        """
        count = self._sock.recv_into(buffer)
        while 0 < count < len(buffer):
            try:
                more = self._sock.recv_into(buffer[count:])
            except OSError:  # nothing more yet; what is broken will say so again
                break
            if not more:
                break
            count += more
        return count

    def _wait(self, wants: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._sock.fileno(), wants)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def abort(self) -> None:
        """Break the connection off: whoever waits on it in another thread wakes up."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self, *, linger: float = 0.0) -> None:
        """Give the socket up; with *linger* (seconds), after the peer had time to read."""
        if self._sock.fileno() < 0:
            return
        if linger:
            _linger(self._sock, linger)
        self._sock.close()
