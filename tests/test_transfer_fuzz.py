"""Hostile partners: whatever bytes come, a receiver or a sender ends with a sentence, and no harm.

The other side has the right certificate and speaks TLS, but no sense.  Real volumes.  What was
sealed before reads the same afterwards, nothing beside the volume has changed, and the volume
takes an honest delta as if nothing had been.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nasfs.errors import NasError
from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Access,
    create_pool,
    create_volume,
    open_volume,
    volume_path,
)
from replication.connection import Connection, greeting
from replication.endpoint import (
    Amount,
    DataBatch,
    DirentGone,
    DirentRow,
    Extent,
    InodeGone,
    InodeRow,
    Progress,
    Row,
    RowBatch,
    Sink,
    SnapshotRef,
    XattrGone,
    XattrRow,
)
from replication.local import VolumeSink, VolumeSource
from replication.sender import replicate
from replication.session import Side
from replication.transport import accept
from replication.wire import (
    Ack,
    Begin,
    Data,
    Message,
    Offer,
    Ping,
    Refusal,
    Resume,
    Rows,
    Seal,
    Sealed,
    State,
    StatusQuery,
    amount_of,
    chain_start,
    encode,
    pack_batch,
)
from tests.replication_world import GROUP, VOLUME, Pair

SHORT = 25
LONG = 4000
WAIT_S = 0.3
FUZZ = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}

inos = st.sampled_from([1, 2, 256, 257, 258, 259, 260, 300, (1 << 40) - 1])
counts = st.sampled_from([0, 1, 2, 100, BLOCK, 1 << 32, 1 << 62, (1 << 63) - 1]) | st.integers(
    0, 1 << 20
)
small = st.sampled_from([0, 1, 0o755, 0o100644, 0o40755, 0o120777, (1 << 32) - 1])
times = st.sampled_from([0, 1, -(1 << 63), (1 << 63) - 1])
names = st.sampled_from([b"a", b"f1", b"file", b"..", b".", b"a/b", b"\0", b"\xff\xfe", b"x" * 255])
rows: st.SearchStrategy[Row] = st.one_of(
    st.builds(
        InodeRow, inos, counts, small, small, small, small, counts, counts, times, times, times,
        times, counts, st.none() | st.sampled_from([b"../../etc", b"t"]),
    ),
    st.builds(DirentRow, inos, names, counts, inos, small),
    st.builds(XattrRow, inos, names, st.binary(max_size=20)),
    st.builds(InodeGone, inos),
    st.builds(DirentGone, inos, names),
    st.builds(XattrGone, inos, names),
)  # fmt: skip
row_batches = st.builds(
    RowBatch, st.lists(rows, max_size=6).map(tuple), st.binary(min_size=1, max_size=4)
)


@st.composite
def data_batches(draw: st.DrawFn) -> DataBatch:
    extents = draw(st.lists(st.builds(Extent, inos, counts, counts, st.booleans()), max_size=4))
    if draw(st.booleans()):  # as it should be
        extents = [
            Extent(e.ino, e.offset % (4 * BLOCK) // BLOCK * BLOCK, e.length % (2 * BLOCK), e.hole)
            for e in extents
        ]
        size = sum(e.length for e in extents if not e.hole)
    else:
        size = draw(st.integers(0, 2 * BLOCK))
    return DataBatch(tuple(extents), b"z" * size, draw(st.binary(min_size=1, max_size=4)))


batches = row_batches | data_batches()
amounts = st.builds(Amount, counts, counts)


class Step(msgspec.Struct, frozen=True):
    """One thing that a hostile sender does; `what` may need the batches before it."""

    what: str
    body: Any = None


steps = st.one_of(
    st.builds(Step, st.just("batch"), batches),
    st.builds(Step, st.just("batch"), batches),
    st.builds(Step, st.just("wrong digest"), batches),
    st.builds(Step, st.just("begin"), st.booleans()),
    st.builds(Step, st.just("offer")),
    st.builds(Step, st.just("seal")),
    st.builds(Step, st.just("wrong seal"), amounts),
    st.builds(
        Step,
        st.just("message"),
        st.sampled_from(
            [Ping(), StatusQuery(GROUP), StatusQuery("?"), Refusal("busy", "no"), Sealed("x")]
        ),
    ),
    st.builds(Step, st.just("bytes"), st.binary(min_size=1, max_size=40)),
    st.builds(Step, st.just("flip"), st.integers(0, 1 << 16)),
    st.builds(Step, st.just("truncate"), st.integers(0, 1 << 16)),
    st.builds(Step, st.just("twice")),
    st.builds(Step, st.just("swap")),
)


class World:
    """An active volume with one snapshot, a passive one that has it, and two nodes."""

    def __init__(self, top: Path) -> None:
        self.top = top
        pool = create_pool(top / "pool")
        for name in ("active", "passive"):
            create_volume(pool, name, size=1 << 40, uuid=VOLUME)
        self.active = volume_path(pool, "active")
        self.passive = volume_path(pool, "passive")
        (top / "sites").mkdir()
        self.sites = Pair(top / "sites")
        self.sites.b.timeout = 5.0
        self.sites.b.open_sink = self._open_sink  # type: ignore[method-assign]
        with open_volume(self.active) as volume:
            for number in range(3):
                made = volume.mknod(ROOT_INO, b"f%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0)
                volume.write(made.ino, 0, random.Random(number).randbytes(3 * BLOCK + 7))
                volume.setxattr(made.ino, b"user.a", b"value")
            volume.mkdir(ROOT_INO, b"d", 0o755, uid=0, gid=0)
            volume.seal("one", snap_group="1")
        self.replicate()
        self.kept = top / "kept"
        shutil.copytree(self.passive, self.kept)
        (self.base,) = self.snapshots()
        self.expected = self.contents(self.passive)
        self.around = self.surroundings()

    def _open_sink(self, group_uuid: str, term: int, volume_uuid: str) -> Sink:
        return VolumeSink(self.passive)

    def replicate(self) -> None:
        with contextlib.closing(VolumeSource(self.active)) as source:
            replicate(source, self.sites.connect, GROUP, 1)
        assert self.sites.b.outcome() is None

    def snapshots(self) -> list[SnapshotRef]:
        with contextlib.closing(VolumeSource(self.passive)) as source:
            return source.snapshots()

    def contents(self, path: Path) -> list[Any]:
        """All rows and data of that volume's first snapshot."""
        with contextlib.closing(VolumeSource(path)) as source:
            first = source.snapshots()[0].guid
            return list(source.read_delta(None, first, b""))

    def surroundings(self) -> dict[str, tuple[int, int]]:
        """All files that are not the passive volume's, with their sizes and times."""
        return {
            str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
            for path in self.top.rglob("*")
            if not path.is_relative_to(self.passive) and path != self.passive.parent
        }

    def reset(self) -> None:
        """The passive volume as it was."""
        shutil.rmtree(self.passive)
        shutil.copytree(self.kept, self.passive)

    def check(self) -> None:
        """No harm was done."""
        outcome = self.sites.b.outcome()
        assert outcome is None or (isinstance(outcome, NasError) and str(outcome)), outcome
        assert self.contents(self.passive) == self.expected
        assert self.surroundings() == self.around

    def close(self) -> None:
        self.sites.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """In memory: nothing here is about disks, and there are many volumes to copy."""
    with tempfile.TemporaryDirectory(prefix="nasfs-fuzz-", dir="/dev/shm") as top:
        made = World(Path(top))
        yield made
        made.close()


class HostileSender:
    """Says what its steps tell, over a greeted connection, whatever the other side says."""

    def __init__(self, world: World, connection: Connection) -> None:
        self._stream = connection._stream
        self._base = world.base
        self._target = SnapshotRef("guid-new", "new", 5, "sg")
        self._digest = b""
        self._done = Amount()
        self._last = self._before = encode(Ping())

    def begin(self, *, total: Amount) -> None:
        self._send(Offer(GROUP, 1, VOLUME, (self._base,), 1 << 40))
        self._send(Begin(self._base.guid, self._target, total))
        self._digest, self._done = chain_start(self._base.guid, self._target.guid), Amount()

    def do(self, step: Step) -> None:
        match step.what:
            case "batch" | "wrong digest":
                message = pack_batch(step.body, self._digest)
                self._done += amount_of(step.body)
                self._digest = message.digest
                if step.what == "wrong digest":
                    message = msgspec.structs.replace(message, digest=bytes(32))
                self._send(message)
            case "begin":
                base = self._base.guid if step.body else None
                self._send(Begin(base, self._target, Amount(1, 1)))
            case "offer":
                self._send(Offer(GROUP, 1, VOLUME, ()))
            case "seal":
                self._send(Seal(self._digest, self._done))
            case "wrong seal":
                self._send(Seal(self._digest, step.body))
            case "message":
                self._send(step.body)
            case "bytes":
                self._stream.send(step.body)
            case "flip":
                frame = bytearray(self._last)
                frame[step.body % len(frame)] ^= 1 << step.body % 8
                self._stream.send(bytes(frame))
            case "truncate":
                self._stream.send(self._last[: step.body % len(self._last)])
            case "twice":
                self._stream.send(self._last)
            case "swap":
                self._stream.send(self._last + self._before)

    def _send(self, message: Message) -> None:
        self._before, self._last = self._last, encode(message)
        self._stream.send(self._last)


def attack(world: World, plan: list[Step], *, total: Amount) -> None:
    world.reset()
    with world.sites.connect(level=0) as connection:
        hostile = HostileSender(world, connection)
        with contextlib.suppress(NasError):
            hostile.begin(total=total)
            for step in plan:
                hostile.do(step)
        connection._close(linger=10.0)  # all of it is heard before the connection is gone
    world.check()


def total_of(plan: list[Step]) -> Amount:
    """What an honest sender of these batches would announce."""
    return sum((amount_of(step.body) for step in plan if step.what == "batch"), Amount())


def attack_as_fits(world: World, plan: list[Step]) -> None:
    """Once with what it announces, once with what it does not; then an honest delta."""
    attack(world, [*plan, Step("seal")], total=total_of(plan))
    attack(world, plan, total=Amount(3, 3))


@settings(max_examples=SHORT, **FUZZ)  # type: ignore[arg-type]
@given(st.lists(steps, max_size=8))
def test_a_receiver_survives_a_hostile_sender(world: World, plan: list[Step]) -> None:
    attack_as_fits(world, plan)


@settings(max_examples=SHORT, **FUZZ)  # type: ignore[arg-type]
@given(st.lists(st.builds(Step, st.just("batch"), batches), min_size=1, max_size=8))
def test_a_receiver_survives_senseless_deltas(world: World, plan: list[Step]) -> None:
    attack_as_fits(world, plan)


def test_a_cookie_that_no_other_could_follow_is_refused(world: World) -> None:
    entry = DirentRow(ROOT_INO, b"last", (1 << 63) - 1, 256, 0o100644)
    plan = [Step("batch", RowBatch((entry,), b"1")), Step("seal")]
    attack(world, plan, total=Amount(1, 0))
    assert [ref.name for ref in world.snapshots()] == ["one"]


@pytest.mark.soak
@settings(max_examples=LONG, **(FUZZ | {"derandomize": False}))  # type: ignore[arg-type]
@given(st.lists(steps, max_size=25))
def test_a_receiver_survives_a_hostile_sender_for_long(world: World, plan: list[Step]) -> None:
    attack_as_fits(world, plan)


@pytest.mark.soak
@settings(max_examples=LONG, **(FUZZ | {"derandomize": False}))  # type: ignore[arg-type]
@given(st.lists(st.builds(Step, st.just("batch"), batches), min_size=1, max_size=25))
def test_a_receiver_survives_senseless_deltas_for_long(world: World, plan: list[Step]) -> None:
    attack_as_fits(world, plan)


def test_an_honest_delta_arrives_after_all_that(world: World) -> None:
    plan = [Step("batch", RowBatch((InodeGone(257), DirentGone(1, b"f0")), b"1"))]
    attack(world, plan, total=Amount(2, 0))
    with open_volume(world.active) as volume:
        made = volume.mknod(ROOT_INO, b"more", stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.write(made.ino, 0, b"honest")
        volume.seal("two", snap_group="2")
    world.replicate()
    assert [ref.name for ref in world.snapshots()] == ["one", "two"]
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(open_volume(path, Access.READ_ONLY))
            for path in (world.active, world.passive)
        ]
        for volume in both:
            assert volume.lookup(ROOT_INO, b"more").size == 6
            assert volume.lookup(ROOT_INO, b"f1").size == 3 * BLOCK + 7


# a sender and a hostile receiver

cursors = st.sampled_from([b"", b"1", b"\xff" * 40]) | st.binary(max_size=12)
progresses = st.builds(
    Progress,
    st.none() | st.just("guid-one"),
    st.builds(SnapshotRef, st.just("x"), st.just("n"), times, st.just("g")),
    amounts,
    amounts,
    cursors,
    st.binary(max_size=32),
)
answers = st.one_of(
    st.just("right"),
    st.just("right"),
    st.builds(State, st.just(()), st.none() | progresses),
    st.builds(Resume, progresses),
    st.builds(Ack, amounts, cursors, st.binary(max_size=32)),
    st.builds(Sealed, st.sampled_from(["x", "guid"])),
    st.builds(Refusal, st.sampled_from(["busy", "digest", "what?", "version"]), st.just("no")),
    st.just(Ping()),
    st.binary(min_size=1, max_size=60),
)


class HostileReceiver:
    """A partner that answers each request by the next of its answers, then goes away."""

    def __init__(self, world: World, plan: list[Any]) -> None:
        self._world = world
        self._plan = plan
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        b = self._world.sites.b
        assert b.partner is not None
        with contextlib.suppress(NasError):
            stream = accept(sock, b.credentials, b.partner.certificate, timeout=5.0)
            with Connection(stream, Side.SERVER) as connection:
                connection.greet(greeting(b.identity))
                for answer in self._plan:
                    message = connection.receive_within(WAIT_S)
                    while isinstance(message, Rows | Data):
                        message = connection.receive_within(WAIT_S)
                    if message is None:  # it waits for the rest of what made no sense
                        return
                    stream.send(self._frame(answer, message))

    @staticmethod
    def _frame(answer: Any, message: Message) -> bytes:
        if isinstance(answer, bytes):
            return answer
        if answer != "right":
            return encode(answer)
        match message:
            case Begin(base=base, target=target, total=total):
                digest = chain_start(base, target.guid)
                return encode(Resume(Progress(base, target, total, digest=digest)))
            case Seal():
                return encode(Sealed("guid"))
            case _:
                return encode(State((), None))

    def close(self) -> None:
        self._listener.close()
        self._thread.join(30)
        assert not self._thread.is_alive()


class EnoughTried(Exception):
    pass


def try_to_send(world: World, plan: list[Any]) -> None:
    hostile = HostileReceiver(world, plan)
    before = world.contents(world.active)

    def give_up(seconds: float) -> None:
        raise EnoughTried

    told = ""
    try:
        with contextlib.closing(VolumeSource(world.active)) as source:
            replicate(
                source,
                lambda: world.sites.connect(address=hostile.address, timeout=5.0),
                GROUP,
                1,
                sleep=give_up,
            )
    except NasError as error:
        told = str(error)
    except EnoughTried:
        told = "a transient error"
    finally:
        hostile.close()
    assert told or plan
    assert world.contents(world.active) == before


@settings(max_examples=SHORT, **FUZZ)  # type: ignore[arg-type]
@given(st.lists(answers, max_size=6))
def test_a_sender_survives_a_hostile_receiver(world: World, plan: list[Any]) -> None:
    try_to_send(world, plan)


@pytest.mark.soak
@settings(max_examples=LONG, **(FUZZ | {"derandomize": False}))  # type: ignore[arg-type]
@given(st.lists(answers, max_size=12))
def test_a_sender_survives_a_hostile_receiver_for_long(world: World, plan: list[Any]) -> None:
    try_to_send(world, plan)
