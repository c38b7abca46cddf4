"""The sending end: brings one volume of the peer up to date, however often the link breaks.

The calling thread reads the source; while a delta is under way, threads compress and send what it
read (`pipeline`), and another one takes acknowledgements, so that the link is never idle for a
round trip.  At most a window of unacknowledged bytes is in flight.  Whatever breaks, the next
connection asks the peer what it has and goes on from there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from functools import partial

import msgspec

from .connection import Connection
from .endpoint import Amount, Progress, SnapshotRef, Source
from .errors import (
    DigestMismatch,
    LocalProtocolError,
    PeerUnreachable,
    RemoteProtocolError,
    ReplicationError,
)
from .lanes import LanePlan, out_lanes
from .pipeline import Pipeline, Stopped
from .plan import SendDelta, plan_deltas
from .wire import (
    Ack,
    Begin,
    Data,
    Offer,
    Resume,
    Rows,
    Seal,
    Sealed,
    State,
    amount_of,
    chain_start,
    pack_batch,
)

WINDOW_BYTES = 48 * 1024 * 1024
"""Uncompressed bytes of batches that may be on the way without an acknowledgement: what a receiver
commits at once at most, and enough to go on with while it does."""
ONE_LANE = LanePlan()
"""Everything over the connection itself."""
WIDEST = 2
"""That window counts for each lane, but not more often than this."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Between two attempts: doubled each time, from the first to the longest; reset by progress."""


class Phase(Enum):
    CONNECTING = "connecting"
    COMPARING = "comparing"
    SENDING = "sending"
    SEALING = "sealing"
    WAITING = "waiting"
    DONE = "done"


class Account(msgspec.Struct, frozen=True):
    """How the replication of a volume stands.

    `total` and `done` are of the snapshot under way, `done` counts what is durable at the peer
    (from earlier attempts, too); all else is of this call of `replicate`.
    """

    volume: str
    phase: Phase = Phase.CONNECTING
    reason: str = ""
    """Why it waits; empty in every other phase."""
    snapshot: SnapshotRef | None = None
    total: Amount = Amount()
    done: Amount = Amount()
    sent: Amount = Amount()
    resent: Amount = Amount()
    """The part of `sent` that was on its way when a connection broke, and was sent again."""
    packed: int = 0
    """Bytes of batches sent, before compression."""
    packed_wire: int = 0
    """The same after it."""
    wire_bytes: int = 0
    """All bytes sent, frames and messages, before encryption."""
    level: int = 0
    """Of compression, now; 0: none."""
    attempts: int = 0
    """Connections so far."""
    snapshots_sent: int = 0
    snapshots_left: int = 0

    @property
    def ratio(self) -> float:
        """Bytes before compression for each byte after it."""
        return self.packed / self.packed_wire if self.packed_wire else 1.0


def replicate(
    source: Source,
    connect: Callable[[], Connection],
    group: str,
    term: int,
    *,
    targets: Collection[str] | None = None,
    window: int = WINDOW_BYTES,
    patience: float | None = None,
    throttle: Callable[[int], None] | None = None,
    lanes: LanePlan = ONE_LANE,
    leave: Callable[[Connection], None] = Connection.close,
    on_progress: Callable[[Account], None] = lambda account: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Account:
    """Send the snapshots of *source* that the peer lacks, in order; the final account.

    After a transient error it waits and tries again.  Killed at any moment, it can simply be
    called again, by any process.

    Args:
        connect: a new connection to the peer, greeted (`client.open_connection`; the level of
            compression is the connection's).
        group, term: the group's UUID, and the term in which this node is its primary.
        targets: GUIDs to which to restrict it; None: every snapshot of a snap group.
        patience: seconds without any progress after which a transient error is raised after
            all; None: never.
        throttle: called with the number of bytes that are about to go to the peer, a few KiB at a
            time, by any of the threads that send; blocks until they may, but for less than the
            peer's time-out.  What it raises ends the call, at the edge of such a piece.
        lanes: over how many connections the data of a large delta goes, and how it is guarded.
        leave: gets the connection on which everything went well, and nothing is under way; the
            peer has the volume open on it until the next request, or its end.
        on_progress: called in the calling thread, after every batch and change of phase.
        sleep: interruptible by raising from it.

    Raises:
        Diverged, Fenced, RefusedByPeer, PeerFailed, NotAuthenticated, VersionMismatch,
        DigestMismatch: not transient; nothing of the peer was lost.
        NasError: whatever the source raises.
    """
    sender = _Sender(source, group, term, targets, window, throttle, lanes, leave, on_progress)
    pause, since, steady = FIRST_PAUSE_S, clock(), sender.milestone
    while True:
        try:
            return sender.attempt(connect)
        except ReplicationError as error:
            if sender.milestone != steady:
                pause, since, steady = FIRST_PAUSE_S, clock(), sender.milestone
            else:
                sender.give_up_lanes()
            if not error.transient or (patience is not None and clock() - since >= patience):
                raise
            sender.report(phase=Phase.WAITING, reason=f"{error}; next attempt in {pause:g} s")
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


class _Sender:
    """One call of `replicate`: the account, and what is known of the peer's progress."""

    def __init__(
        self,
        source: Source,
        group: str,
        term: int,
        targets: Collection[str] | None,
        window: int,
        throttle: Callable[[int], None] | None,
        lanes: LanePlan,
        leave: Callable[[Connection], None],
        on_progress: Callable[[Account], None],
    ) -> None:
        self._source = source
        self._group = group
        self._term = term
        self._targets = targets
        self._window = window
        self._throttle = throttle
        self._lanes = lanes
        self._leave = leave
        self._on_progress = on_progress
        self._account = Account(volume=source.volume_uuid)
        self._earlier_wire_bytes = 0
        self._flight: _Flight | None = None
        """The delta under way when a connection broke: tells what is sent again."""
        self._pipeline: Pipeline | None = None
        self._earlier = self._account
        """As it was when that delta began, in its present connection."""

    @property
    def milestone(self) -> tuple[int, Amount]:
        """Changes with everything that became durable at the peer."""
        return self._account.snapshots_sent, self._account.done

    def give_up_lanes(self) -> None:
        """An attempt came to nothing: whatever was the reason, it was not for want of lanes."""
        self._lanes = ONE_LANE

    def report(self, **changes: object) -> None:
        self._account = msgspec.structs.replace(self._account, **changes)
        self._on_progress(self._account)

    def attempt(self, connect: Callable[[], Connection]) -> Account:
        """One connection's worth of work; raises where it breaks."""
        attempts = self._account.attempts + 1
        self.report(phase=Phase.CONNECTING, reason="", attempts=attempts)
        connection = connect()
        self._earlier_wire_bytes = self._account.wire_bytes - connection.counted
        try:
            if self._throttle is not None:
                connection.share_link(self._throttle)
            try:
                self._bring_up_to_date(connection)
            finally:
                self._take_stock(connection)
                connection.counted = connection.wire_bytes
        except BaseException:
            connection.close()
            raise
        self._leave(connection)
        self.report(phase=Phase.DONE)
        return self._account

    def _bring_up_to_date(self, connection: Connection) -> None:
        self.report(phase=Phase.COMPARING)
        ours = self._source.snapshots()
        volume = self._source.volume_uuid
        size = self._source.size  # read after them: it has room for each
        connection.send(Offer(self._group, self._term, volume, tuple(ours), size))
        theirs = connection.expect(State)
        self._note_lost_seal(theirs)
        deltas = plan_deltas(volume, ours, theirs.snapshots, self._targets)
        for number, delta in enumerate(deltas):
            self._send_delta(connection, delta, len(deltas) - number)
            sent = self._account.snapshots_sent + 1
            self.report(snapshots_sent=sent, snapshots_left=len(deltas) - number - 1)

    def _note_lost_seal(self, theirs: State) -> None:
        """The peer published the snapshot under way, and only its answer was lost."""
        flight = self._flight
        if flight and any(snapshot.guid == flight.target.guid for snapshot in theirs.snapshots):
            self._flight = None
            self.report(done=flight.sent.done, snapshots_sent=self._account.snapshots_sent + 1)

    def _send_delta(self, connection: Connection, delta: SendDelta, left: int) -> None:
        base = delta.base.guid if delta.base else None
        self.report(phase=Phase.COMPARING, snapshot=delta.target, snapshots_left=left)
        total = self._source.total(base, delta.target.guid)
        connection.send(Begin(base, delta.target, total))
        progress = connection.expect(Resume).progress
        resent = _check_resumption(progress, base, delta.target, self._flight)
        self.report(resent=self._account.resent + resent)
        self._flight = flight = _Flight(progress, self._window)
        self._pipeline = pipeline = Pipeline(connection, flight)
        self._earlier = self._account
        self.report(phase=Phase.SENDING, total=total, done=progress.done)
        size = total.bytes - progress.done.bytes
        with (
            out_lanes(connection, self._lanes, size) as lanes,
            _acknowledgements(connection, flight),
            pipeline,
        ):
            if lanes is not None:
                flight.widen(len(lanes))
            digest = progress.digest
            for batch in self._source.read_delta(base, delta.target.guid, progress.cursor):
                message = pack_batch(batch, digest)
                digest = message.digest
                pipeline.put(
                    message, partial(flight.launch, batch.cursor, amount_of(batch), message)
                )
                self._take_stock(connection)
                self.report()
            pipeline.drain()
            if lanes is not None:
                lanes.drain()
            self._take_stock(connection)
            self.report(phase=Phase.SEALING)
            connection.send(Seal(flight.sent.digest, flight.sent.done))
            flight.wait_until_sealed()
        self._take_stock(connection)
        self._flight = None

    def _take_stock(self, connection: Connection) -> None:
        changes: dict[str, object] = {
            "wire_bytes": self._earlier_wire_bytes + connection.wire_bytes,
            "level": connection.depth.level,
        }
        flight, pipeline, earlier = self._flight, self._pipeline, self._earlier
        if flight is not None and pipeline is not None:
            changes |= {
                "done": flight.acknowledged.done,
                "sent": earlier.sent + flight.launched,
                "packed": earlier.packed + pipeline.packed,
                "packed_wire": earlier.packed_wire + pipeline.packed_wire,
            }
        self._account = msgspec.structs.replace(self._account, **changes)


class _Flight:
    """What of a delta is on its way; shared by the sending thread and the one that listens."""

    def __init__(self, progress: Progress, window: int) -> None:
        self.target = progress.target
        self.sent = progress
        """The position after the last batch that was sent."""
        self.launched = Amount()
        """What was sent in this connection."""
        self.acknowledged = progress
        self._window = window
        self._changed = threading.Condition()
        self._unacknowledged: deque[tuple[Progress, int]] = deque()
        self._bytes = 0
        self._sealed = False
        self._stopped = False
        self.failure: Exception | None = None

    def launch(self, cursor: bytes, amount: Amount, message: Rows | Data) -> None:
        """A batch is about to be sent."""
        size = len(message.body)
        with self._changed:
            self.launched += amount  # even if it gets only half way
            self.sent = msgspec.structs.replace(
                self.sent, done=self.sent.done + amount, cursor=cursor, digest=message.digest
            )
            self._unacknowledged.append((self.sent, size))
            self._bytes += size

    def has_room(self, size: int) -> bool:
        """So many bytes more fit into the window, or nothing at all is in it."""
        return not self._bytes or self._bytes + size <= self._window

    def widen(self, lanes: int) -> None:
        """Each lane has its own part on the way."""
        self._window *= min(lanes, WIDEST)

    def wait_for_room(self, size: int) -> None:
        """Raises what ended the acknowledgements, or `Stopped`."""
        self._wait(lambda: self.has_room(size))

    def wait_until_sealed(self) -> None:
        self._wait(lambda: self._sealed)

    def _wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self.failure is not None or ready())
            if self._stopped:
                raise Stopped
            if self.failure is not None:
                raise self.failure

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def land(self, ack: Ack) -> None:
        """Everything up to there is durable.

        Raises:
            DigestMismatch: the peer counts or digests otherwise than we do.
            RemoteProtocolError: it acknowledges what we have not sent.
        """
        with self._changed:
            while self._unacknowledged:
                position, size = self._unacknowledged.popleft()
                self._bytes -= size
                if position.cursor == ack.cursor:
                    if (position.done, position.digest) != (ack.done, ack.digest):
                        raise DigestMismatch(self.target.name)
                    self.acknowledged = position
                    self._changed.notify_all()
                    return
        raise RemoteProtocolError("it acknowledges what was not sent")

    def land_all(self) -> None:
        """The snapshot is published, so everything that was sent is durable."""
        with self._changed:
            self._unacknowledged.clear()
            self._bytes = 0
            self.acknowledged = self.sent

    def finish(self, *, failure: Exception | None) -> None:
        """No more acknowledgements will come: sealed, or failed."""
        with self._changed:
            self._sealed = failure is None
            self.failure = failure
            self._changed.notify_all()

    def find(self, cursor: bytes) -> Progress | None:
        """What we know of the position behind which the peer wants to go on."""
        known = [self.acknowledged, *(position for position, _ in self._unacknowledged)]
        return next((position for position in known if position.cursor == cursor), None)


def _check_resumption(
    progress: Progress, base: str | None, target: SnapshotRef, flight: _Flight | None
) -> Amount:
    """How much was sent in vain in an earlier connection.

    Raises:
        RemoteProtocolError: the peer answers for another delta.
        DigestMismatch: it has not what we sent.
    """
    if (progress.base, progress.target.guid) != (base, target.guid):
        raise RemoteProtocolError("it resumes another delta")
    if not progress.cursor and progress.digest != chain_start(base, target.guid):
        raise DigestMismatch(target.name)
    if flight is None or flight.target.guid != target.guid:
        return Amount()
    known = flight.find(progress.cursor)
    if known is not None and (known.done, known.digest) != (progress.done, progress.digest):
        raise DigestMismatch(target.name)
    return Amount(
        max(0, flight.sent.done.rows - progress.done.rows),
        max(0, flight.sent.done.bytes - progress.done.bytes),
    )


@contextlib.contextmanager
def _acknowledgements(connection: Connection, flight: _Flight) -> Iterator[None]:
    """While inside, a thread takes acknowledgements; it is gone afterwards.

    What the peer said last explains a broken connection better than the break does, so that is
    what is raised.
    """
    listener = threading.Thread(
        target=_listen, args=(connection, flight), name="acknowledgements", daemon=True
    )
    listener.start()
    try:
        yield
    except (PeerUnreachable, LocalProtocolError) as error:
        if isinstance(error, LocalProtocolError):  # perhaps only because a refusal closed it
            connection.abort()
        listener.join()
        if flight.failure is not None and not isinstance(flight.failure, PeerUnreachable):
            raise flight.failure from None
        raise
    except BaseException:
        connection.abort()
        listener.join()
        raise
    listener.join()


def _listen(connection: Connection, flight: _Flight) -> None:
    try:
        while True:
            match connection.receive():
                case Ack() as ack:
                    flight.land(ack)
                case Sealed(guid=guid) if guid == flight.target.guid:
                    flight.land_all()
                    flight.finish(failure=None)
                    return
                case message:
                    raise RemoteProtocolError(f"{type(message).__name__} during a delta")
    except Exception as exc:  # carried to the thread that sends, and raised there
        flight.finish(failure=exc)
        connection.abort()
