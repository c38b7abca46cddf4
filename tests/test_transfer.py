"""Whole transfers over real TLS on loopback, whole and cut to pieces."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nasfs.errors import Failed
from replication import receiver, sender
from replication.client import create_replication, operate, peer_status
from replication.connection import Connection
from replication.endpoint import (
    Amount,
    Batch,
    GroupSpec,
    Progress,
    RowBatch,
    Sink,
    SnapshotRef,
    Source,
    VolumeSpec,
)
from replication.errors import (
    DigestMismatch,
    Diverged,
    Fenced,
    PeerFailed,
    PeerUnreachable,
    RefusedByPeer,
)
from replication.sender import Account, Phase
from replication.session import State as SessionState
from replication.wire import (
    Ack,
    Begin,
    Data,
    Message,
    Offer,
    Resume,
    Rows,
    Seal,
    State,
    chain_start,
    pack_batch,
)
from tests.replication_world import (
    GROUP,
    VOLUME,
    CuttingProxy,
    History,
    Pair,
    Replica,
    ReplicaSink,
    error_of,
    random_files,
    row_of,
    snapshot,
)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


@pytest.fixture
def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledge every few batches, so that small transfers are resumed in the middle."""
    monkeypatch.setattr(receiver, "COMMIT_MOST", 128 * 1024)


def two_snapshots() -> History:
    history = History()
    files = random_files(1, 30, 100_000)
    history.add("one", files)
    files[256] = b"changed"
    files[999] = b"new" * 1000
    history.add("two", files)
    return history


def assert_equal(history: History, pair: Pair) -> None:
    assert pair.b.replica.states == history.states


def no_sleep() -> Callable[[float], None]:
    """Does not wait; ends a sender that would try for ever."""
    left = iter(range(300))

    def sleep(seconds: float) -> None:
        assert next(left, None) is not None, "it tries for ever"

    return sleep


def replicate(
    source: Source, connect: Callable[[], Connection], group: str, term: int, **options: Any
) -> Account:
    return sender.replicate(source, connect, group, term, **({"sleep": no_sleep()} | options))


def test_all_snapshots_arrive_and_are_equal(pair: Pair) -> None:
    history = two_snapshots()
    account = replicate(history, pair.connect, GROUP, 1)
    assert_equal(history, pair)
    assert account.phase is Phase.DONE
    assert account.snapshots_sent == 2
    assert account.snapshots_left == 0
    assert account.attempts == 1
    assert account.done == account.total
    assert account.resent.bytes == 0
    assert account.ratio > 1.5
    assert account.packed_wire < account.wire_bytes < account.packed
    assert pair.b.outcome() is None


def test_the_size_travels_with_the_offer_and_an_older_sender_tells_none(pair: Pair) -> None:
    history = two_snapshots()
    history.size = 5 << 30
    replicate(history, pair.connect, GROUP, 1)
    assert pair.b.replica.size == 5 << 30
    old = msgspec.msgpack.encode({"group": GROUP, "term": 1, "volume": VOLUME, "snapshots": []})
    assert msgspec.msgpack.decode(old, type=Offer).size == 0
    with pair.connect() as connection:
        connection.send(Offer(GROUP, 1, VOLUME, ()))
        connection.expect(State)
    assert pair.b.replica.size == 5 << 30


def test_a_second_run_has_nothing_to_do(pair: Pair) -> None:
    history = two_snapshots()
    replicate(history, pair.connect, GROUP, 1)
    account = replicate(history, pair.connect, GROUP, 1)
    assert account.snapshots_sent == 0
    assert account.packed == 0
    assert account.wire_bytes < 1000


def test_a_snapshot_without_changes_is_published_too(pair: Pair) -> None:
    history = History()
    history.add("empty", {})
    history.add("empty-again", {})
    replicate(history, pair.connect, GROUP, 1)
    assert_equal(history, pair)


def test_targets_restrict_what_is_sent(pair: Pair) -> None:
    history = two_snapshots()
    replicate(history, pair.connect, GROUP, 1, targets=["guid-one"])
    assert [ref.name for ref in pair.b.replica.snapshots()] == ["one"]


def test_incompressible_and_uncompressed_data_arrive_as_well(pair: Pair) -> None:
    history = History()
    history.add("noise", {300: random.Random(2).randbytes(1_000_000)})
    account = replicate(history, lambda: pair.connect(level=0), GROUP, 1)
    assert_equal(history, pair)
    assert account.ratio < 1.01


def test_the_window_bounds_what_is_unacknowledged(
    pair: Pair, small_commits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "COMMIT_S", 0.01)
    on_the_way: list[int] = []

    def note(account: Account) -> None:
        if account.phase is Phase.SENDING:
            done = account.done.bytes + sum(size for size in published[: account.snapshots_sent])
            on_the_way.append(account.sent.bytes - done)

    history = two_snapshots()
    published = [history.total(None, "guid-one").bytes]
    account = replicate(history, pair.connect, GROUP, 1, window=300_000, on_progress=note)
    assert_equal(history, pair)
    assert account.snapshots_sent == 2
    assert 100_000 < max(on_the_way) <= 300_000


def test_every_byte_is_asked_for_before_it_goes(pair: Pair) -> None:
    asked: list[int] = []
    history = two_snapshots()

    def throttle(size: int) -> None:
        asked.append(size)
        time.sleep(0.002)  # a link that is shared

    account = replicate(history, pair.connect, GROUP, 1, throttle=throttle)
    assert_equal(history, pair)
    greeting = account.wire_bytes - sum(asked)
    assert 0 < greeting < 200, "all but the greeting, which comes with the connection"
    assert max(asked) <= 16 * 1024


class WindowClosed(Exception):
    pass


def test_a_closing_window_breaks_off_at_a_chunk_and_the_next_goes_on(
    pair: Pair, small_commits: None
) -> None:
    asked: list[int] = []

    def closing(count: int) -> None:
        asked.append(count)
        if sum(asked) > 500_000:
            raise WindowClosed

    history = two_snapshots()
    with pytest.raises(WindowClosed):
        replicate(history, pair.connect, GROUP, 1, throttle=closing)
    assert pair.b.outcome() is not None
    assert pair.b.replica.progress is not None
    account = replicate(history, pair.connect, GROUP, 1)
    assert_equal(history, pair)
    assert account.sent.bytes < history.total(None, "guid-one").bytes


# broken connections


class CuttingConnection(Connection):
    """Breaks off right before or right after frame number *cut_at*."""

    cut_at = 0
    after = False
    hit = False

    def send_packed(self, message: Message, frame: bytes) -> int:
        if self.cut_at == 0 and not self.after:
            self._cut()
        size = super().send_packed(message, frame)
        if self.cut_at == 0:
            self._cut()
        self.cut_at -= 1
        return size

    def _cut(self) -> None:
        self.hit = True
        self.abort()
        raise PeerUnreachable(self.peer, "cut")


def connect_cutting(pair: Pair, cut_at: int, *, after: bool) -> CuttingConnection:
    connection = pair.connect()
    connection.__class__ = CuttingConnection
    assert isinstance(connection, CuttingConnection)
    connection.cut_at, connection.after = cut_at, after
    return connection


@pytest.mark.parametrize("after", [False, True])
def test_cut_at_every_frame_it_resumes_and_ends_equal(
    pair: Pair, small_commits: None, after: bool
) -> None:
    history = History()
    files = random_files(3, 6, 150_000)
    history.add("one", files)
    files[256] = b"changed"
    history.add("two", files)
    for cut_at in range(1000):
        pair.b.replica.__init__()  # type: ignore[misc]  # a new, empty replica
        made: list[Connection] = []

        def connect(cut_at: int = cut_at, made: list[Connection] = made) -> Connection:
            # Only the first connection is cut.
            made.append(pair.connect() if made else connect_cutting(pair, cut_at, after=after))
            return made[-1]

        account = replicate(history, connect, GROUP, 1)
        assert_equal(history, pair)
        first = made[0]
        assert isinstance(first, CuttingConnection)
        if not first.hit:
            assert cut_at > 10
            assert account.attempts == 1
            return
        assert account.attempts >= 2


@pytest.mark.parametrize("seed", range(3))
def test_cut_at_random_bytes_many_times_it_resumes_and_ends_equal(
    pair: Pair, small_commits: None, seed: int
) -> None:
    history = two_snapshots()
    rng = random.Random(seed)
    budgets: list[tuple[int | None, int | None]] = [
        (rng.randrange(200_000), None) if rng.random() < 0.7 else (None, rng.randrange(1_000))
        for _ in range(40)
    ]
    proxy = CuttingProxy(pair.b.address, [*budgets, (None, None)])
    waits: list[Account] = []

    def note(account: Account) -> None:
        if account.phase is Phase.WAITING:
            waits.append(account)

    account = replicate(
        history,
        lambda: pair.connect(address=proxy.address),
        GROUP,
        1,
        on_progress=note,
    )
    proxy.close()
    assert_equal(history, pair)
    assert proxy.cuts >= 10
    assert len(waits) == account.attempts - 1 >= 10
    assert all(wait.reason for wait in waits)
    # ReplicaSink.apply asserts that nothing acknowledged is ever applied again.
    total = sum(
        history.total(a, b).bytes for a, b in [(None, "guid-one"), ("guid-one", "guid-two")]
    )
    assert account.sent.bytes - account.resent.bytes <= total


def test_what_was_sent_again_is_counted(pair: Pair, small_commits: None) -> None:
    history = two_snapshots()
    made = [0]

    def connect_once_cut() -> Connection:
        made[0] += 1
        return connect_cutting(pair, 12, after=True) if made[0] == 1 else pair.connect()

    account = replicate(history, connect_once_cut, GROUP, 1)
    total = sum(
        history.total(a, b).bytes for a, b in [(None, "guid-one"), ("guid-one", "guid-two")]
    )
    assert account.sent.bytes == total + account.resent.bytes
    assert account.resent.bytes <= 1024 * 1024


class DyingSink(ReplicaSink):
    """Its process dies right after a commit or a seal, before the peer hears of it."""

    dies_at = "commit"
    deaths = 0

    def commit(self, progress: Progress) -> None:
        super().commit(progress)
        self._perhaps_die("commit")

    def seal(self, target: SnapshotRef) -> None:
        super().seal(target)
        self._perhaps_die("seal")

    def _perhaps_die(self, where: str) -> None:
        if DyingSink.dies_at == where and DyingSink.deaths == 0:
            DyingSink.deaths += 1
            raise ConnectionAbortedError


@pytest.mark.parametrize("where", ["commit", "seal"])
def test_the_last_acknowledgement_may_be_lost(pair: Pair, small_commits: None, where: str) -> None:
    DyingSink.dies_at, DyingSink.deaths = where, 0

    def dying(sink: Sink) -> Sink:
        return DyingSink(pair.b.replica)

    pair.b.wrap_sink = dying
    history = two_snapshots()
    account = replicate(history, pair.connect, GROUP, 1)
    assert DyingSink.deaths == 1
    assert account.attempts == 2
    assert account.snapshots_sent == 2
    assert_equal(history, pair)


def test_another_process_goes_on_where_the_first_was_killed(
    pair: Pair, small_commits: None
) -> None:
    history = two_snapshots()

    class Killed(BaseException):
        pass

    def kill(account: Account) -> None:
        if account.done.bytes > 1_000_000:
            raise Killed

    with pytest.raises(Killed):
        replicate(history, pair.connect, GROUP, 1, on_progress=kill)
    pair.b.outcome()
    account = replicate(history, pair.connect, GROUP, 1)
    assert_equal(history, pair)
    assert account.sent.bytes < 2_100_000


def test_an_unfinished_delta_whose_target_is_gone_is_replaced(
    pair: Pair, small_commits: None
) -> None:
    history = two_snapshots()
    replicate(history, pair.connect, GROUP, 1, targets=["guid-one"])
    pair.b.replica.__init__()  # type: ignore[misc]  # a new, empty replica
    pair.b.wrap_sink = lambda sink: FullSink(pair.b.replica, room=10)
    error_of(lambda: replicate(history, pair.connect, GROUP, 1))
    assert pair.b.replica.progress
    assert pair.b.replica.progress.target.name == "one"
    assert pair.b.replica.progress.done.bytes > 0
    pair.b.wrap_sink = lambda sink: sink
    del history.states[0]
    replicate(history, pair.connect, GROUP, 1)
    assert_equal(history, pair)


def test_pauses_grow_and_patience_ends(pair: Pair) -> None:
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    def connect() -> Connection:
        raise PeerUnreachable("b", "no route")

    error = error_of(
        lambda: replicate(
            History(), connect, GROUP, 1, patience=100, sleep=sleep, clock=lambda: now[0]
        )
    )
    assert isinstance(error, PeerUnreachable)
    assert pauses == [1, 2, 4, 8, 16, 32, 60]


def test_a_busy_peer_is_asked_again(pair: Pair) -> None:
    history = two_snapshots()
    pair.b.replica.busy.acquire()
    reasons: list[str] = []

    def note(account: Account) -> None:
        if account.phase is Phase.WAITING:
            reasons.append(account.reason)

    def release(seconds: float) -> None:
        pair.b.replica.busy.release()

    replicate(history, pair.connect, GROUP, 1, sleep=release, on_progress=note)
    assert_equal(history, pair)
    assert len(reasons) == 1
    assert "busy" in reasons[0]


# refusals


def test_a_sender_with_a_lower_term_is_fenced(pair: Pair) -> None:
    pair.b.term = 5
    error = error_of(lambda: replicate(two_snapshots(), pair.connect, GROUP, 3))
    assert isinstance(error, Fenced)
    assert (error.ours, error.theirs) == (3, 5)
    assert isinstance(pair.b.outcome(), Fenced)
    assert pair.b.replica.states == []


def test_a_sender_with_an_unknown_higher_term_is_refused(pair: Pair) -> None:
    error = error_of(lambda: replicate(two_snapshots(), pair.connect, GROUP, 2))
    assert isinstance(error, RefusedByPeer)
    assert error.exit_code == 3
    assert error.hint


class FailoverSink(ReplicaSink):
    pair: Pair

    def apply(self, batch: Batch) -> None:
        super().apply(batch)
        self.pair.b.term = 2


def test_a_failover_during_a_transfer_publishes_nothing_more(pair: Pair) -> None:
    FailoverSink.pair = pair
    pair.b.wrap_sink = lambda sink: FailoverSink(pair.b.replica)
    error = error_of(lambda: replicate(two_snapshots(), pair.connect, GROUP, 1))
    assert isinstance(error, Fenced)
    assert pair.b.replica.states == []


def test_a_replica_with_a_snapshot_of_its_own_has_diverged(pair: Pair) -> None:
    history = two_snapshots()
    replicate(history, pair.connect, GROUP, 1, targets=["guid-one"])
    pair.b.replica.states.append((snapshot("local"), {}))
    before = list(pair.b.replica.states)
    error = error_of(lambda: replicate(history, pair.connect, GROUP, 1))
    assert isinstance(error, Diverged)
    assert error.volume == VOLUME
    assert pair.b.replica.states == before


def test_only_the_very_same_delta_is_resumed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "COMMIT_MOST", 1)
    batch = pack_batch(RowBatch((row_of(300, b""),), b"1"), chain_start(None, "guid-one"))
    begun = Begin(None, snapshot("one"), Amount(1, 0))
    others = [
        msgspec.structs.replace(begun, target=snapshot("two")),
        msgspec.structs.replace(begun, total=Amount(2, 0)),
    ]
    for next_begun in (begun, *others):
        pair.b.replica.__init__()  # type: ignore[misc]  # a new, empty replica
        resumed = []
        for begin in (begun, next_begun):
            with pair.connect() as connection:
                connection.send(Offer(GROUP, 1, VOLUME, ()))
                connection.expect(State)
                connection.send(begin)
                resumed.append(connection.expect(Resume).progress)
                if begin is begun and len(resumed) == 1:
                    connection.send(batch)
                    connection.expect(Ack)
            pair.b.outcome()
        assert resumed[1].done == (Amount(1, 0) if next_begun is begun else Amount())
        assert (resumed[1].target, resumed[1].total) == (next_begun.target, next_begun.total)


class FullSink(ReplicaSink):
    def __init__(self, replica: Replica, room: int = 0) -> None:
        super().__init__(replica)
        self._room = room

    def apply(self, batch: Batch) -> None:
        if not self._room:
            raise Failed("the pool is full", hint="make room")
        self._room -= 1
        super().apply(batch)


def test_a_delta_must_begin_at_the_newest_snapshot_of_the_replica(pair: Pair) -> None:
    replicate(two_snapshots(), pair.connect, GROUP, 1)
    for base, target in [("guid-one", "three"), (None, "three"), ("guid-two", "one")]:
        with pair.connect() as connection:
            connection.send(Offer(GROUP, 1, VOLUME, ()))
            connection.expect(State)
            connection.send(Begin(base, snapshot(target), Amount()))
            error = error_of(connection.receive)
        assert isinstance(error, RefusedByPeer if target == "one" else Diverged)
    assert len(pair.b.replica.states) == 2
    assert pair.b.replica.progress is None


def test_a_full_disk_at_the_peer_is_told_with_its_hint(pair: Pair) -> None:
    pair.b.wrap_sink = lambda sink: FullSink(pair.b.replica)
    error = error_of(lambda: replicate(two_snapshots(), pair.connect, GROUP, 1))
    assert isinstance(error, PeerFailed)
    assert (error.reason, error.hint) == ("the pool is full", "make room")


class DeafConnection(Connection):
    """Its sends break as soon as the peer has refused: a reset that overtakes the reason."""

    def send_packed(self, message: Message, frame: bytes) -> int:
        size = super().send_packed(message, frame)
        if isinstance(message, Rows):
            waiting, patience = threading.Event(), 500
            while self._session.state is not SessionState.CLOSED and (patience := patience - 1):
                waiting.wait(0.01)
            raise PeerUnreachable(self.peer, "reset")
        return size


def test_the_reason_of_a_refusal_counts_more_than_the_break_it_causes(pair: Pair) -> None:
    pair.b.wrap_sink = lambda sink: FullSink(pair.b.replica)

    def connect() -> Connection:
        connection = pair.connect()
        connection.__class__ = DeafConnection
        return connection

    error = error_of(lambda: replicate(two_snapshots(), connect, GROUP, 1))
    assert isinstance(error, PeerFailed)


class LyingConnection(Connection):
    """Changes what is sent, as a broken memory would: TLS can't notice."""

    lies_about: type = Data

    def pack(self, message: Message) -> bytes:
        if isinstance(message, self.lies_about):
            if isinstance(message, Rows | Data):
                body = bytearray(message.body)
                body[len(body) // 2] ^= 1
                message = type(message)(message.digest, bytes(body))
            elif isinstance(message, Seal):
                message = Seal(bytes(32), message.total)
        return super().pack(message)


@pytest.mark.parametrize("kind", [Rows, Data, Seal])
def test_a_flipped_bit_publishes_nothing_and_the_next_run_is_equal(pair: Pair, kind: type) -> None:
    history = two_snapshots()

    def connect() -> Connection:
        connection = pair.connect()
        connection.__class__ = LyingConnection
        assert isinstance(connection, LyingConnection)
        connection.lies_about = kind
        return connection

    error = error_of(lambda: replicate(history, connect, GROUP, 1))
    assert isinstance(error, DigestMismatch)
    assert error.snapshot == "one"
    assert pair.b.replica.states == []
    if kind is Seal:  # all of what is there is in doubt
        assert pair.b.replica.progress
        assert pair.b.replica.progress.done == Amount()
    replicate(history, pair.connect, GROUP, 1)
    assert_equal(history, pair)


# other requests


def test_a_group_is_created_and_its_status_asked(pair: Pair) -> None:
    spec = GroupSpec(GROUP, "office", 1, (VolumeSpec(VOLUME, "tank", "home", 1 << 30, "thin"),), 10)
    with pair.connect() as connection:
        create_replication(connection, spec)
        status = peer_status(connection, GROUP)
    assert pair.b.created == [spec]
    assert (status.uuid, status.term, status.role) == (GROUP, 1, "passive")
    assert pair.b.outcome() is None


def test_a_refused_creation_is_told_with_its_hint(pair: Pair) -> None:
    spec = GroupSpec(
        GROUP, "office", 1, (VolumeSpec(VOLUME, "tank", "taken", 1 << 30, "thin"),), 10
    )
    with pair.connect() as connection:
        error = error_of(lambda: create_replication(connection, spec))
    assert isinstance(error, RefusedByPeer)
    assert (error.reason, error.hint) == ("volume taken exists", "choose another name")


def test_a_delta_of_another_size_than_announced_is_not_published(pair: Pair) -> None:
    class Miscounting(History):
        def total(self, base: str | None, target: str) -> Amount:
            return super().total(base, target) + Amount(1, 0)

    history = Miscounting()
    history.add("one", random_files(1, 3, 1000))
    error = error_of(lambda: replicate(history, pair.connect, GROUP, 1))
    assert isinstance(error, DigestMismatch)
    assert pair.b.replica.snapshots() == []


def test_an_operation_is_asked_and_answered(pair: Pair) -> None:
    with pair.connect() as connection:
        assert operate(connection, "g", "reverse", b"abc") == b"gcba"
        error = error_of(lambda: operate(connection, "g", "turn", b""))
    assert isinstance(error, RefusedByPeer)
    assert (error.reason, error.hint) == ("no operation turn", "another one")
