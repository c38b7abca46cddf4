"""Bulk lanes: further connections for the data of a large delta, sealed or in the clear."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replication.errors import PeerUnreachable
from replication.lane_door import pass_on
from replication.lanes import (
    AUTO_LANES,
    LONG_LANES,
    LONG_S,
    MOST_LANES,
    PREAMBLE,
    TOKEN_BYTES,
    WORTH_BYTES,
    LanePlan,
    choose,
)
from replication.link import LinkClosed
from replication.receiver import serve_connection
from replication.sender import Account, replicate
from replication.wire import LaneKind

from .replication_world import GROUP, VOLUME, Files, History, Node, Pair, error_of

SEALED, CLEAR = LaneKind.SEALED, LaneKind.CLEAR
MARK = b"this is what is in the file, and nobody else shall read it. "
FILES = 3


@pytest.mark.parametrize(
    ("plan", "size", "round_trip_s", "expected"),
    [
        (LanePlan(1), WORTH_BYTES, 1.0, 0),
        (LanePlan(1, CLEAR), WORTH_BYTES, 0.0, 1),
        (LanePlan(3), WORTH_BYTES, 0.0, 3),
        (LanePlan(3), WORTH_BYTES - 1, 1.0, 0),
        (LanePlan(3, CLEAR), WORTH_BYTES - 1, 1.0, 0),
        (LanePlan(AUTO_LANES), WORTH_BYTES, LONG_S / 2, 0),
        (LanePlan(AUTO_LANES), WORTH_BYTES, LONG_S, LONG_LANES),
        (LanePlan(AUTO_LANES, CLEAR), WORTH_BYTES, LONG_S / 2, 1),
    ],
)
def test_how_many_lanes_a_delta_gets(
    plan: LanePlan, size: int, round_trip_s: float, expected: int
) -> None:
    assert choose(plan, size, round_trip_s) == expected


class BusyNode(Node):
    """Serves many connections at a time; only failures are outcomes."""

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_one, args=(sock,), daemon=True).start()

    def _serve_one(self, sock: socket.socket) -> None:
        try:
            serve_connection(sock, self, self.credentials, timeout=self.timeout)
        except BaseException as exc:
            self.outcomes.put(exc)


class Line:
    """Passes connections on, remembers what went to the server, and may spoil a lane."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard: list[bytearray] = []
        """Of each connection."""
        self.spoil: Callable[[bytes, int], bytes | None] = lambda data, passed: data
        """Gets what a lane carries, and how much it carried before; None: the lane is cut."""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                heard = bytearray()
                self.heard.append(heard)
                threading.Thread(target=self._pass, args=(near, far, heard), daemon=True).start()

    def _pass(self, near: socket.socket, far: socket.socket, heard: bytearray) -> None:
        back = threading.Thread(target=self._back, args=(far, near), daemon=True)
        with near, far:
            back.start()
            self._there(near, far, heard)
            back.join()

    def _there(self, near: socket.socket, far: socket.socket, heard: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                passed = len(heard)
                heard += data
                if heard.startswith(PREAMBLE):
                    spoiled = self.spoil(data, passed)
                    if spoiled is None:
                        break
                    data = spoiled
                far.sendall(data)
        _end(near, far)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)
        _end(near, far)

    @property
    def lanes(self) -> list[bytearray]:
        return [heard for heard in self.heard if heard.startswith(PREAMBLE)]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _end(*socks: socket.socket) -> None:
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair.__new__(Pair)
    made.a, made.b = Node(tmp_path / "a", "a"), BusyNode(tmp_path / "b", "b")
    made.a.partner, made.b.partner = made.b.identity, made.a.identity
    made.b.start()
    yield made
    made.close()


@pytest.fixture
def line(pair: Pair) -> Iterator[Line]:
    made = Line(pair.b.address)
    yield made
    made.close()


def history() -> History:
    chance = random.Random(5)
    half = WORTH_BYTES // FILES // 2 + 1
    files: Files = {
        256 + number: MARK * (half // len(MARK) + 1) + chance.randbytes(half)
        for number in range(FILES)
    }
    made = History()
    made.add("one", files)
    return made


def send(
    pair: Pair, line: Line, plan: LanePlan, throttle: Callable[[int], None] | None = None
) -> tuple[History, Account]:
    source = history()
    account = replicate(
        source,
        lambda: pair.connect(address=line.address, level=0),
        GROUP,
        1,
        lanes=plan,
        throttle=throttle,
        patience=20.0,
        sleep=lambda seconds: None,
    )
    return source, account


def assert_equal(source: History, pair: Pair) -> None:
    assert pair.b.replica.states == source.states


@pytest.mark.parametrize("plan", [LanePlan(1, CLEAR), LanePlan(3, CLEAR), LanePlan(3, SEALED)])
def test_the_data_goes_over_the_lanes_in_order(pair: Pair, line: Line, plan: LanePlan) -> None:
    asked: list[int] = []
    source, account = send(pair, line, plan, asked.append)
    assert_equal(source, pair)
    assert account.attempts == 1
    assert len(line.lanes) == plan.count
    over_lanes = sum(map(len, line.lanes))
    assert over_lanes > WORTH_BYTES
    assert all(len(lane) > WORTH_BYTES // 10 for lane in line.lanes), "each has its share"
    assert account.wire_bytes >= over_lanes * 0.95
    assert sum(asked) > over_lanes * 0.95, "the rate holds over all of them together"


@pytest.mark.parametrize(("kind", "visible"), [(CLEAR, True), (SEALED, False)])
def test_only_data_is_in_the_clear_and_only_if_that_is_wanted(
    pair: Pair, line: Line, kind: LaneKind, visible: bool
) -> None:
    send(pair, line, LanePlan(2, kind))
    assert any(MARK in lane for lane in line.lanes) is visible
    others = [heard for heard in line.heard if heard not in line.lanes]
    assert others
    assert not any(MARK in heard or VOLUME.encode() in heard for heard in others)


def test_data_that_was_changed_on_its_way_in_the_clear_is_not_taken(pair: Pair, line: Line) -> None:
    spoiled: list[int] = []

    def spoil(data: bytes, passed: int) -> bytes:
        if passed > 1_000_000 and not spoiled:
            spoiled.append(passed)
            return data[:-1] + bytes((data[-1] ^ 1,))
        return data

    line.spoil = spoil
    source, account = send(pair, line, LanePlan(2, CLEAR))
    assert spoiled
    assert account.attempts > 1  # the old receiver may still be there for some of them
    assert isinstance(pair.b.outcome(), PeerUnreachable)
    assert_equal(source, pair)


@pytest.mark.parametrize("kind", LaneKind)
def test_a_lane_that_breaks_costs_no_more_than_a_connection(
    pair: Pair, line: Line, kind: LaneKind
) -> None:
    cuts: list[int] = []

    def spoil(data: bytes, passed: int) -> bytes | None:
        if passed > 1_000_000 and not cuts:
            cuts.append(passed)
            return None
        return data

    line.spoil = spoil
    source, account = send(pair, line, LanePlan(3, kind))
    assert cuts
    assert account.attempts > 1
    assert_equal(source, pair)  # and the sink asserts that nothing was taken twice


def test_a_window_that_closes_while_lanes_send_is_told_as_that(pair: Pair, line: Line) -> None:
    passed = [0]

    def throttle(size: int) -> None:
        passed[0] += size
        if passed[0] > WORTH_BYTES // 2:
            raise LinkClosed("its window has closed")

    error = error_of(lambda: send(pair, line, LanePlan(2, SEALED), throttle))
    assert isinstance(error, LinkClosed)
    assert not pair.b.replica.states


def test_without_a_second_connection_everything_goes_over_the_first(pair: Pair, line: Line) -> None:
    line.spoil = lambda data, passed: None
    source, account = send(pair, line, LanePlan(2, SEALED))
    assert_equal(source, pair)
    assert account.attempts == 1


@pytest.mark.parametrize("kind", LaneKind)
def test_lanes_that_always_break_are_given_up(pair: Pair, line: Line, kind: LaneKind) -> None:
    line.spoil = lambda data, passed: data if passed < 5_000 else None
    source, account = send(pair, line, LanePlan(2, kind))
    assert_equal(source, pair)
    assert account.attempts > 1  # the old receiver may still be there for some of them


def test_a_lane_that_nobody_waits_for_is_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(10)
        ours.sendall(PREAMBLE + bytes(TOKEN_BYTES) + bytes((MOST_LANES,)))
        assert pass_on(theirs)
        assert ours.recv(1) == b""


def test_what_is_no_lane_is_left_as_it_came() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\x16\x03\x01 a hello of TLS")
        assert not pass_on(theirs)
        assert theirs.recv(4) == b"\x16\x03\x01 "
