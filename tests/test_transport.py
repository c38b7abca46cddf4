"""Who may speak to whom over TLS, and what silence means."""

from __future__ import annotations

import datetime
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nasfs.errors import ConfigError
from replication import connection as connection_module
from replication.client import create_replication, open_connection, peer_status
from replication.connection import Connection, greeting
from replication.endpoint import Amount, GroupSpec
from replication.errors import (
    NotAuthenticated,
    PeerUnreachable,
    RemoteProtocolError,
    VersionMismatch,
)
from replication.session import Side
from replication.transport import Credentials, TlsStream, accept, connect, parse_address
from replication.wire import (
    PROTOCOL,
    Begin,
    Codec,
    Hello,
    Message,
    Offer,
    Refusal,
    Resume,
    State,
    encode,
)
from tests.replication_world import GROUP, Node, Pair, error_of, snapshot


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "stranger", "stranger")
    yield made
    made.stop()


# certificates


def test_paired_nodes_understand_each_other(pair: Pair) -> None:
    with pair.connect() as connection:
        assert connection.authenticated
        assert peer_status(connection, GROUP).term == 1
        assert connection.wire_bytes > 0
        assert connection.wire_bytes_received > 0
    assert pair.b.outcome() is None


def test_a_client_with_another_certificate_fails_on_both_ends(pair: Pair, stranger: Node) -> None:
    error = error_of(
        lambda: open_connection(pair.a.identity, stranger.credentials, pair.b.identity)
    )
    assert isinstance(error, NotAuthenticated)
    assert "pair" in error.hint
    assert isinstance(pair.b.outcome(), NotAuthenticated)


def test_a_rejected_client_is_told_even_if_it_was_talking(pair: Pair, stranger: Node) -> None:
    """With TLS 1.3 the client is done before the server has looked at its certificate."""
    stream = connect(pair.b.address, stranger.credentials, pair.b.identity.certificate)
    stream.send(bytes(8 * 1024 * 1024))
    assert isinstance(error_of(stream.receive), NotAuthenticated)
    stream.close()


def test_a_server_with_another_certificate_fails_on_both_ends(pair: Pair, stranger: Node) -> None:
    impostor = msgspec.structs.replace(
        pair.b.identity, certificate=stranger.credentials.certificate.read_text()
    )
    error = error_of(lambda: open_connection(pair.a.identity, pair.a.credentials, impostor))
    assert isinstance(error, NotAuthenticated)
    assert isinstance(pair.b.outcome(), NotAuthenticated)


def test_a_node_without_a_partner_believes_nobody(pair: Pair) -> None:
    pair.b.partner = None
    assert isinstance(error_of(pair.connect), NotAuthenticated)
    assert isinstance(pair.b.outcome(), NotAuthenticated)


def test_the_right_certificate_with_the_wrong_uuid_is_not_the_partner(pair: Pair) -> None:
    pair.a.identity = msgspec.structs.replace(pair.a.identity, uuid="somebody-else")
    with pair.connect() as connection:
        assert isinstance(error_of(lambda: peer_status(connection, GROUP)), NotAuthenticated)
    assert isinstance(pair.b.outcome(), NotAuthenticated)


@pytest.mark.parametrize(
    "request_",
    [
        lambda connection: peer_status(connection, GROUP),
        lambda connection: create_replication(connection, GroupSpec(GROUP, "g", 1, (), 1)),
        lambda connection: (
            connection.send(Offer(GROUP, 1, "volume-1", ())),
            connection.receive(),
        ),
    ],
)
def test_a_client_without_a_certificate_may_only_pair(
    pair: Pair, request_: Callable[[Connection], object]
) -> None:
    stream = connect(pair.b.address, None, pair.b.identity.certificate)
    with Connection(stream, Side.CLIENT) as connection:
        connection.greet(greeting(pair.a.identity))
        assert isinstance(error_of(lambda: request_(connection)), NotAuthenticated)
    assert isinstance(pair.b.outcome(), NotAuthenticated)
    assert pair.b.created == []


def signed_by_a_pinned_authority(directory: Path) -> tuple[str, Credentials]:
    """A certificate that may sign others (PEM), and credentials that it signed."""

    def build(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, ca: bool) -> bytes:
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
            key.public_key(),
            x509.random_serial_number(),
            datetime.datetime(2000, 1, 1),
            datetime.datetime(2999, 1, 1),
        ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pinned = build("authority", "authority", authority, ca=True)
    credentials = Credentials(directory / "leaf.crt", directory / "leaf.key")
    credentials.certificate.write_bytes(build("leaf", "authority", key, ca=False))
    credentials.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pinned.decode(), credentials


def test_a_certificate_that_the_pinned_one_signed_is_not_the_pinned_one(
    pair: Pair, tmp_path: Path
) -> None:
    pinned, leaf = signed_by_a_pinned_authority(tmp_path)
    assert pair.b.partner
    pair.b.partner = msgspec.structs.replace(pair.b.partner, certificate=pinned)
    error_of(lambda: open_connection(pair.a.identity, leaf, pair.b.identity))
    assert isinstance(pair.b.outcome(), NotAuthenticated)


# versions


@pytest.mark.parametrize("theirs", [0, PROTOCOL - 1, PROTOCOL + 1, 1000])
def test_another_version_is_told_on_both_ends(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, theirs: int
) -> None:
    identity = pair.a.identity
    stream = connect(pair.b.address, pair.a.credentials, pair.b.identity.certificate)
    with Connection(stream, Side.CLIENT) as connection:
        error = error_of(lambda: connection.greet(Hello(theirs, identity.uuid, "a", "9.9")))
    assert isinstance(error, VersionMismatch)
    assert (error.ours, error.theirs) == (theirs, PROTOCOL)
    error_there = pair.b.outcome()
    assert isinstance(error_there, VersionMismatch)
    assert (error_there.ours, error_there.theirs) == (PROTOCOL, theirs)
    assert "same release" in error_there.hint


# silence and noise


def test_nobody_there_is_unreachable(stranger: Node) -> None:
    stranger.stop()
    error = error_of(lambda: connect(stranger.address, None, None))
    assert isinstance(error, PeerUnreachable)
    assert error.exit_code == 4
    assert error.transient


def test_a_server_that_never_answers_is_unreachable(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        error = error_of(lambda: pair.connect(address=address, timeout=0.05))
    assert isinstance(error, PeerUnreachable)


def test_a_client_that_falls_silent_gives_the_volume_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module.Connection, "_keep_alive", lambda self: None)
    pair.b.timeout = 0.05
    with pair.connect() as connection:
        connection.send(Offer(GROUP, 1, "volume-1", ()))
        connection.expect(State)
        assert pair.b.outcome() is None  # nothing was under way: it has just gone
    with pair.connect() as connection:
        connection.send(Offer(GROUP, 1, "volume-1", ()))
        connection.expect(State)
        connection.send(Begin(None, snapshot("one"), Amount()))
        connection.expect(Resume)
        assert isinstance(pair.b.outcome(), PeerUnreachable)
    assert not pair.b.replica.busy.locked()


def test_a_peer_that_works_for_long_is_not_taken_for_dead(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = 0.2
    pair.b.timeout = timeout
    connection = pair.connect(timeout=timeout)
    frame = 13  # a Ping: a header and an empty map

    def work(spec: GroupSpec) -> None:
        """Until the client heard as many signs of life as fill two of its time-outs."""
        enough = connection.wire_bytes_received + 8 * frame
        waiting, patience = threading.Event(), 500
        while connection.wire_bytes_received < enough and (patience := patience - 1):
            waiting.wait(0.01)

    monkeypatch.setattr(pair.b, "create_replication", work)
    with connection:
        create_replication(connection, GroupSpec(GROUP, "g", 1, (), 1))
    assert pair.b.outcome() is None


def test_a_client_that_does_not_speak_tls_is_told_apart(stranger: Node) -> None:
    near, far = socket.socketpair()
    with near:
        near.sendall(b"GET / HTTP/1.0\r\n\r\n" * 20)
        error = error_of(lambda: accept(far, stranger.credentials, None, timeout=0.5))
    assert isinstance(error, RemoteProtocolError)


def test_a_client_that_goes_away_during_the_handshake_is_unreachable(stranger: Node) -> None:
    near, far = socket.socketpair()
    near.close()
    error = error_of(lambda: accept(far, stranger.credentials, None, timeout=0.5))
    assert isinstance(error, PeerUnreachable)


def test_a_sender_stuck_in_a_full_pipe_gives_up(pair: Pair, stranger: Node) -> None:
    """Nobody reads and nothing is heard."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[object] = []

        def serve() -> None:
            accepted.append(accept(listener.accept()[0], pair.b.credentials, None))

        server = threading.Thread(target=serve)
        server.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        stream = connect(address, None, pair.b.identity.certificate, timeout=5)
        server.join()
        stream.timeout = 0.05
        error = error_of(lambda: stream.send(bytes(64 * 1024 * 1024)))
        assert isinstance(error, PeerUnreachable)
        stream.close()
        accepted[0].close()  # type: ignore[attr-defined]


def test_all_that_has_come_is_taken_at_once(pair: Pair) -> None:
    """Not a record of TLS at a time, which is 16 KiB at most; and the end is told afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far: list[TlsStream] = []

        def serve() -> None:
            far.append(accept(listener.accept()[0], pair.b.credentials, None))

        server = threading.Thread(target=serve)
        server.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        stream = connect(address, None, pair.b.identity.certificate)
        server.join()
        data = bytes(range(256)) * 256
        far[0].send(data)
        far[0].close()
        end = select.poll()
        end.register(stream._sock.fileno(), select.POLLRDHUP)
        assert end.poll(30_000), "by then all of it is here"
        received = stream.receive()
        assert received is not None
        assert bytes(received) == data
        end_of_it = stream.receive()
        assert end_of_it is not None
        assert not end_of_it
        stream.close()


def test_a_refusal_can_be_read_after_sending_what_was_under_way(pair: Pair) -> None:
    """The server reads on for a while: a close with unread bytes would be a reset."""
    stream = connect(pair.b.address, pair.a.credentials, pair.b.identity.certificate)
    codec = Codec()
    stream.send(encode(greeting(pair.a.identity)))
    stream.send(encode(Offer("unknown-group", 1, "volume-1", ())))
    got: list[Message] = []
    while not any(isinstance(message, Refusal) for message in got):
        stream.send(bytes(4 * 1024 * 1024))
        if data := stream.receive(0):
            codec.feed(data)
        while message := codec.receive():
            got.append(message)
    stream.send(bytes(8 * 1024 * 1024))
    stream.close()


# addresses


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("east:4000", ("east", 4000)),
        ("[::1]:1", ("::1", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize(
    "text", ["", "east", "east:", ":1", "east:0", "east:65536", "east:x", "[]:1"]
)
def test_bad_addresses(text: str) -> None:
    assert isinstance(error_of(lambda: parse_address(text)), ConfigError)
