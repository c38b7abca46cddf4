"""The receiving end: serves one connection of the partner, or of who wants to become it.

What arrives is applied at once, committed every few MiB or about every second, and acknowledged
only then; on a quick link more of it is committed at once, because each commit waits for the disk.
The last of it is committed, and acknowledged, with the seal.  Whatever breaks, the part that was
not committed is dropped with the sink; the next connection goes on from the last acknowledgement.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from msgspec.structs import replace

from nasfs.errors import NasError, Refused

from .ahead import receiving
from .connection import Connection, greeting
from .endpoint import Progress, Sink, Site
from .errors import (
    DigestMismatch,
    Diverged,
    NotAuthenticated,
    PeerUnreachable,
    RemoteProtocolError,
)
from .lane_door import pass_on
from .lanes import LaneKeys
from .pair import check_identity
from .roles import check_term
from .session import Side
from .transport import TIMEOUT_S, Credentials, accept
from .wire import (
    Ack,
    Begin,
    Created,
    CreateReplication,
    Data,
    Message,
    Offer,
    Operate,
    Operated,
    Pair,
    Paired,
    PeerStatus,
    Resume,
    Rows,
    Seal,
    Sealed,
    State,
    StatusQuery,
    amount_of,
    chain,
    chain_start,
    unpack_batch,
)

COMMIT_BYTES = 8 * 1024 * 1024
"""Uncompressed bytes of batches after which a receiver commits and acknowledges."""
COMMIT_REST_S = 0.05
"""It does not do so more often (seconds), so that a quick link does not wait for the disk."""
COMMIT_MOST = 32 * 1024 * 1024
"""Bytes after which it does in any case: less than a sender's window."""
COMMIT_S = 1.0
"""Seconds after which it does, however little there is."""


def serve_connection(
    sock: socket.socket,
    site: Site,
    tls: Credentials,
    *,
    clock: Callable[[], float] = time.monotonic,
    timeout: float = TIMEOUT_S,
) -> None:
    """Do what the client asks until it goes away; owns and closes *sock*.

    A lane is passed on to who waits for it.

    Raises:
        NasError: why the conversation ended early, for the log; the client was told already.
            A client that just goes away while nothing is under way is no error.
    """
    if pass_on(sock, timeout):
        return
    peer = site.peer()
    stream = accept(sock, tls, peer.certificate if peer else None, timeout=timeout)
    with Connection(stream, Side.SERVER) as connection:
        if peer and connection.authenticated:
            connection.lane_keys = LaneKeys(tls, peer.certificate)
        try:
            theirs = connection.greet(greeting(site.identity))
            if connection.authenticated and peer and theirs.node_uuid != peer.uuid:
                raise NotAuthenticated(f"{theirs.node_name} is not the partner {peer.name}")
            _Service(connection, site, clock, peer.certificate if peer else None).run()
        except PeerUnreachable:
            if not connection.at_rest:
                raise
        except NasError as error:
            connection.refuse(error)
            raise


class _Service:
    """One connection that was greeted; *pinned*: the certificate that it was checked against."""

    def __init__(
        self,
        connection: Connection,
        site: Site,
        clock: Callable[[], float],
        pinned: str | None,
    ) -> None:
        self._connection = connection
        self._site = site
        self._clock = clock
        self._pinned = pinned

    def run(self) -> None:
        message = self._connection.receive()
        while True:
            if not (self._connection.authenticated or isinstance(message, Pair)):
                raise NotAuthenticated(
                    "a node without the certificate of the partner may only pair",
                    hint="pair the two nodes first: nasfs pair invite",
                )
            self._check_partner(message)
            if isinstance(message, Offer):
                message = self._serve_volume(message)
            else:
                self._answer(message)
                message = self._connection.receive()

    def _check_partner(self, message: Message) -> None:
        """A connection may be older than the end of a pair."""
        if isinstance(message, Pair):
            return
        peer = self._site.peer()
        if peer is None or peer.certificate != self._pinned:
            raise NotAuthenticated("it is not the partner of this node any more")

    def _answer(self, message: Message) -> None:
        match message:
            case Pair(secret=secret, identity=candidate):
                self._site.accept_pairing(secret, check_identity(candidate))
                self._connection.send(Paired(self._site.identity))
            case CreateReplication(spec=spec):
                self._site.create_replication(spec)
                self._connection.send(Created())
            case Operate(group=group, operation=operation, body=body):
                self._connection.send(Operated(self._site.operate(group, operation, body)))
            case StatusQuery(group=group):
                self._connection.send(PeerStatus(self._site.group_status(group)))
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not a request")

    def _serve_volume(self, offer: Offer) -> Message:
        """Take deltas of one volume; the message that is no longer about it."""
        self._check_term(offer)
        sink = self._site.open_sink(offer.group, offer.term, offer.volume)
        with contextlib.closing(sink):
            if offer.size:
                sink.resize(offer.size)
            self._connection.send(State(tuple(sink.snapshots()), sink.progress()))
            while True:
                message = self._connection.receive()
                if not isinstance(message, Begin):
                    return message
                self._check_term(offer)
                self._take_delta(sink, offer, message)

    def _check_term(self, offer: Offer) -> None:
        check_term(offer.group, self._site.group_term(offer.group), offer.term)

    def _take_delta(self, sink: Sink, offer: Offer, begin: Begin) -> None:
        """From Begin to Sealed."""
        progress = _begin(sink, begin)
        self._connection.send(Resume(progress))
        intake = _Intake(sink, progress, self._clock)
        size = begin.total.bytes - progress.done.bytes
        with receiving(self._connection, size) as receive:
            while not isinstance(message := receive(intake.patience()), Seal):
                if isinstance(message, Rows | Data):
                    intake.apply(message)
                if intake.is_due():
                    self._acknowledge(intake)
        _check_seal(sink, intake.progress, message)
        self._check_term(offer)  # a failover may have begun meanwhile
        sink.seal(begin.target)
        self._connection.send(Sealed(begin.target.guid))

    def _acknowledge(self, intake: _Intake) -> None:
        if intake.commit():
            done = intake.progress
            self._connection.send(Ack(done.done, done.cursor, done.digest))


def _begin(sink: Sink, begin: Begin) -> Progress:
    """Where the delta goes on: after what is committed of it, or at its beginning."""
    snapshots = sink.snapshots()
    newest = snapshots[-1].guid if snapshots else None
    if begin.base != newest:
        raise Diverged(sink.volume_uuid, "the delta does not begin at this node's newest snapshot")
    if any(snapshot.guid == begin.target.guid for snapshot in snapshots):
        raise Refused(f"snapshot {begin.target.name} is here already")
    known = sink.progress()
    if (
        known is not None
        and known.base == begin.base
        and known.target.guid == begin.target.guid
        and known.total == begin.total
    ):
        return known
    return _restart(sink, begin)


def _restart(sink: Sink, begin: Begin) -> Progress:
    digest = chain_start(begin.base, begin.target.guid)
    progress = Progress(begin.base, begin.target, begin.total, digest=digest)
    sink.begin(progress)
    return progress


def _check_seal(sink: Sink, progress: Progress, seal: Seal) -> None:
    """Raises DigestMismatch, and forgets the delta: some of what was committed is not right."""
    if seal.digest == progress.digest and seal.total == progress.done == progress.total:
        return
    _restart(sink, Begin(progress.base, progress.target, progress.total))
    raise DigestMismatch(
        progress.target.name,
        hint="it is not published; the transfer of this snapshot starts again from its base",
    )


class _Intake:
    """Applies batches of one delta and knows when to commit."""

    def __init__(self, sink: Sink, progress: Progress, clock: Callable[[], float]) -> None:
        self.progress = progress
        """After the latest batch; durable up to the last commit."""
        self._sink = sink
        self._clock = clock
        self._pending = 0
        self._since = clock()

    def apply(self, message: Rows | Data) -> None:
        """Raises DigestMismatch if it is not what the sender meant to send next."""
        before = self.progress
        digest = chain(before.digest, message.body)
        if digest != message.digest:
            raise DigestMismatch(before.target.name)
        batch = unpack_batch(message)
        if not self._pending:
            self._since = self._clock()
        self._sink.apply(batch)
        self._pending += len(message.body)
        done = before.done + amount_of(batch)
        self.progress = replace(before, done=done, cursor=batch.cursor, digest=digest)

    def patience(self) -> float | None:
        """Seconds until a commit is due; None while there is nothing to commit."""
        if not self._pending:
            return None
        if self._pending >= COMMIT_MOST:
            return 0.0
        waits = COMMIT_REST_S if self._pending >= COMMIT_BYTES else COMMIT_S
        return max(0.0, self._since + waits - self._clock())

    def is_due(self) -> bool:
        return self.patience() == 0.0

    def commit(self) -> bool:
        """Make it durable.  False if there was nothing."""
        if not self._pending:
            return False
        self._sink.commit(self.progress)
        self._pending = 0
        return True
