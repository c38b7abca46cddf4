"""Two nodes in one process for tests: volumes are dicts, the wire between them is real TLS."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from nasfs.errors import NasError, Refused
from replication.client import open_connection
from replication.connection import Connection
from replication.endpoint import (
    Amount,
    Batch,
    DataBatch,
    Extent,
    GroupSpec,
    GroupStatus,
    InodeRow,
    PeerIdentity,
    Progress,
    Row,
    RowBatch,
    Sink,
    SnapshotRef,
    VolumeStatus,
)
from replication.errors import Fenced, NotAuthenticated, PeerBusy
from replication.pair import create_credentials
from replication.receiver import serve_connection
from replication.transport import Credentials
from replication.wire import amount_of

VOLUME = "volume-1"
GROUP = "group-1"
BATCH_ROWS = 10
BATCH_BYTES = 64 * 1024

Files = dict[int, bytes]
"""A file system that has nothing but contents, by inode number."""


def snapshot(name: str, snap_group: str | None = None) -> SnapshotRef:
    return SnapshotRef(
        f"guid-{name}", name, 1_000, f"sg-{name}" if snap_group is None else snap_group
    )


def row_of(ino: int, data: bytes) -> InodeRow:
    return InodeRow(ino, 1, 0o100644, 0, 0, 1, 0, len(data), 1, 2, 3, 4, 0, None)


def random_files(seed: int, count: int, size: int) -> Files:
    """Half of every file is compressible."""
    rng = random.Random(seed)
    return {
        256 + number: rng.randbytes(size // 2) + b"n" * (size - size // 2)
        for number in range(count)
    }


class History:
    """The sending volume: a source whose snapshots are dicts."""

    volume_uuid = VOLUME

    def __init__(self) -> None:
        self.states: list[tuple[SnapshotRef, Files]] = []
        self.size = 1 << 30

    def add(self, name: str, files: Files, snap_group: str | None = None) -> SnapshotRef:
        ref = snapshot(name, snap_group)
        self.states.append((ref, dict(files)))
        return ref

    def snapshots(self) -> list[SnapshotRef]:
        return [ref for ref, _ in self.states]

    def files(self, guid: str | None) -> Files:
        return next((files for ref, files in self.states if ref.guid == guid), {})

    def batches(self, base: str | None, target: str) -> list[Batch]:
        before, after = self.files(base), self.files(target)
        changed = [ino for ino in sorted(after) if before.get(ino) != after[ino]]
        rows: list[Row] = [row_of(ino, after[ino]) for ino in changed]
        made: list[Batch] = [
            RowBatch(tuple(rows[at : at + BATCH_ROWS]), b"")
            for at in range(0, len(rows), BATCH_ROWS)
        ]
        for ino in changed:
            data = after[ino]
            for at in range(0, len(data), BATCH_BYTES):
                body = data[at : at + BATCH_BYTES]
                made.append(DataBatch((Extent(ino, at, len(body), False),), body, b""))
        return [
            msgspec.structs.replace(batch, cursor=b"%d" % number)
            for number, batch in enumerate(made, start=1)
        ]

    def total(self, base: str | None, target: str) -> Amount:
        return sum(map(amount_of, self.batches(base, target)), Amount())

    def read_delta(self, base: str | None, target: str, cursor: bytes) -> Iterator[Batch]:
        yield from self.batches(base, target)[int(cursor or b"0") :]

    def close(self) -> None:
        pass


class Replica:
    """The receiving volume: what is durable of it.  Commits are atomic, like SQLite's."""

    def __init__(self) -> None:
        self.states: list[tuple[SnapshotRef, Files]] = []
        self.live: Files = {}
        self.progress: Progress | None = None
        self.size = 0
        self.busy = threading.Lock()
        self.applied: list[bytes] = []
        """Cursors of every batch that was ever applied, whether it was committed or not."""
        self.committed: set[bytes] = set()

    def snapshots(self) -> list[SnapshotRef]:
        return [ref for ref, _ in self.states]

    def files(self, guid: str) -> Files:
        return next(files for ref, files in self.states if ref.guid == guid)


class ReplicaSink:
    """An open `Replica`."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._live = dict(replica.live)
        self.volume_uuid = VOLUME

    def snapshots(self) -> list[SnapshotRef]:
        return self._replica.snapshots()

    def resize(self, size: int) -> None:
        self._replica.size = size

    def progress(self) -> Progress | None:
        return self._replica.progress

    def begin(self, progress: Progress) -> None:
        self._live = dict(self._replica.files(progress.base)) if progress.base else {}
        self._replica.live, self._replica.progress = dict(self._live), progress
        self._replica.applied, self._replica.committed = [], set()

    def apply(self, batch: Batch) -> None:
        # The promise that tests attack: what was acknowledged is never sent again.
        assert batch.cursor not in self._replica.committed
        self._replica.applied.append(batch.cursor)
        if isinstance(batch, RowBatch):
            for row in batch.rows:
                assert isinstance(row, InodeRow)
                old = self._live.get(row.ino, b"")[: row.size]
                self._live[row.ino] = old.ljust(row.size, b"\0")
            return
        at = 0
        for extent in batch.extents:
            data = self._live[extent.ino]
            end = extent.offset + extent.length
            piece = batch.body[at : at + extent.length]
            self._live[extent.ino] = data[: extent.offset] + piece + data[end:]
            at += extent.length

    def commit(self, progress: Progress) -> None:
        self._replica.live, self._replica.progress = dict(self._live), progress
        self._replica.committed.update(self._replica.applied)

    def seal(self, target: SnapshotRef) -> None:
        self._replica.states.append((target, dict(self._live)))
        self._replica.progress = None

    def close(self) -> None:
        self._replica.busy.release()


class Node:
    """A site, its keys, and a listening socket that serves one connection after another."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir()
        self.credentials: Credentials = create_credentials(directory, name)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        certificate = self.credentials.certificate.read_text()
        self.identity = PeerIdentity(f"uuid-{name}", name, self.address, certificate)
        self.partner: PeerIdentity | None = None
        self.secret: str | None = None
        self.term = 1
        self.replica = Replica()
        self.created: list[GroupSpec] = []
        self.wrap_sink: Callable[[Sink], Sink] = lambda sink: sink
        self.outcomes: queue.Queue[BaseException | None] = queue.Queue()
        """How each connection ended: None, or what `serve_connection` raised."""
        self.timeout = 20.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name=self.identity.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        if self._thread:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            try:
                serve_connection(sock, self, self.credentials, timeout=self.timeout)
            except BaseException as exc:
                self.outcomes.put(exc)
            else:
                self.outcomes.put(None)

    def outcome(self) -> BaseException | None:
        return self.outcomes.get(timeout=30)

    # Site

    def peer(self) -> PeerIdentity | None:
        return self.partner

    def accept_pairing(self, secret: str, candidate: PeerIdentity) -> None:
        if self.partner is not None:
            raise Refused("this node has a partner already")
        if secret != self.secret:
            raise NotAuthenticated("the pairing code is wrong", hint="get a new one")
        self.secret, self.partner = None, candidate

    def create_replication(self, spec: GroupSpec) -> None:
        if spec.volumes and spec.volumes[0].name == "taken":
            raise Refused("volume taken exists", hint="choose another name")
        self.created.append(spec)

    def operate(self, group: str, operation: str, body: bytes) -> bytes:
        if operation != "reverse":
            raise Refused(f"no operation {operation}", hint="another one")
        return group.encode() + body[::-1]

    def group_term(self, group_uuid: str) -> int:
        if group_uuid != GROUP:
            raise Refused("no such group")
        return self.term

    def group_status(self, group_uuid: str) -> GroupStatus:
        volumes = (VolumeStatus(VOLUME, tuple(self.replica.snapshots())),)
        return GroupStatus(group_uuid, self.group_term(group_uuid), "passive", volumes)

    def open_sink(self, group_uuid: str, term: int, volume_uuid: str) -> Sink:
        if term < self.term:
            raise Fenced(term, self.term)
        if not self.replica.busy.acquire(blocking=False):
            raise PeerBusy("the volume is in use")
        return self.wrap_sink(ReplicaSink(self.replica))


class Pair:
    """A paired sender and receiver."""

    def __init__(self, directory: Path) -> None:
        self.a = Node(directory / "a", "a")
        self.b = Node(directory / "b", "b")
        self.a.partner, self.b.partner = self.b.identity, self.a.identity
        self.b.start()

    def connect(
        self, *, address: str | None = None, level: int = 1, timeout: float = 20.0
    ) -> Connection:
        peer = self.b.identity
        if address:
            peer = msgspec.structs.replace(peer, address=address)
        return open_connection(
            self.a.identity, self.a.credentials, peer, level=level, timeout=timeout
        )

    def close(self) -> None:
        self.a.stop()
        self.b.stop()


class CuttingProxy:
    """Stands between two nodes and cuts the TCP connection after some bytes.

    Args:
        budgets: for each connection, how many bytes pass to the server and how many come back
            before both directions are cut hard; None: all of them.  The last one is kept.
    """

    def __init__(self, target: str, budgets: list[tuple[int | None, int | None]]) -> None:
        self._host, port = target.rsplit(":", 1)
        self._port = int(port)
        self._budgets = budgets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            budget = self._budgets.pop(0) if len(self._budgets) > 1 else self._budgets[0]
            far = socket.create_connection((self._host, self._port))
            pumps = [
                threading.Thread(target=self._pump, args=(near, far, budget[0]), daemon=True),
                threading.Thread(target=self._pump, args=(far, near, budget[1]), daemon=True),
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()
            near.close()
            far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, budget: int | None) -> None:
        with contextlib.suppress(OSError):
            while True:
                if budget is not None and budget <= 0:
                    self.cuts += 1
                    break
                data = source.recv(65536 if budget is None else min(65536, budget))
                if not data:
                    break
                sink.sendall(data)
                if budget is not None:
                    budget -= len(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def error_of(action: Callable[[], object]) -> NasError:
    """The NasError that *action* raises."""
    try:
        result = action()
    except NasError as error:
        return error
    if isinstance(result, Connection):
        result.close()
    raise AssertionError("it did not raise")
