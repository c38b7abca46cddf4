"""``python -m nasfs.node.verify GROUP``: compares this site's snapshots with the partner's.

Tells lines of `verify_messages` on standard output; exits with the code of its error.  It ends
when its standard input does: the daemon, or who asked the daemon, is gone then.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing

import msgspec

from nasfs.errors import NasError, Refused
from nasfs.volume import NoSuchSnapshot
from nasfs.volume.types import BLOCK
from replication.client import operate, peer_status
from replication.connection import Connection
from replication.digests import OPERATION
from replication.endpoint import SnapshotRef
from replication.errors import PeerUnreachable
from replication.witness import LocalWitness, RemoteWitness

from .children import end_with_daemon
from .context import Node
from .engine import info
from .findings import findings
from .messages import ErrorView
from .outgoing import complete, grouped
from .pairing import connect_peer
from .places import Places
from .records import Group, VolumeRow
from .replications import made_replication
from .verify_messages import Comparing, FailedLine, FindingView, VerifiedView
from .witnesses import NEWEST, stand_back

PATIENCE_S = 60.0
"""So long a partner that was there once is waited for (seconds)."""
PAUSE_S = 2.0
REPORT_S = 1.0


class Partner:
    """Asks the partner, over one connection after the other if they break."""

    def __init__(self, node: Node, group: Group) -> None:
        self._node = node
        self._group = group
        self._connection: Connection | None = connect_peer(node)

    def ask(self, operation: str, body: bytes) -> bytes:
        """Raises PeerUnreachable when it was not there for `PATIENCE_S`, and what it refuses."""
        ends = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self._connection is None:
                    self._connection = connect_peer(self._node)
                return operate(self._connection, self._group.uuid, operation, body)
            except PeerUnreachable:
                self.close()
                if time.monotonic() > ends:
                    raise
                time.sleep(PAUSE_S)

    def snapshots(self) -> dict[str, set[str]]:
        """GUIDs, by the volume's UUID."""
        assert self._connection is not None
        status = peer_status(self._connection, self._group.uuid)
        return {volume.uuid: {ref.guid for ref in volume.snapshots} for volume in status.volumes}

    def newest(self, row: VolumeRow) -> SnapshotRef | None:
        """Where the next delta of a volume begins there."""
        answer = self.ask(NEWEST, row.uuid.encode())
        return msgspec.msgpack.decode(answer, type=SnapshotRef | None)

    def witness(self, row: VolumeRow, guid: str) -> RemoteWitness:
        return RemoteWitness(lambda body: self.ask(OPERATION, body), row.uuid, guid)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def common_snapshots(
    node: Node, group: Group, partner: Partner, name: str
) -> dict[str, tuple[str, str]]:
    """For each volume's UUID the GUID here and there: of the newest snap group, or of that name.

    Raises:
        NoSuchSnapshot: there is none of that name, or the partner has it not.
        Refused: no snap group is common.
    """
    rows = node.state.members(group.uuid)
    ours = {row.uuid: grouped(info(node, row).snapshots) for row in rows}
    theirs = partner.snapshots()

    def is_common(snap_group: str) -> bool:
        return all(ours[u][snap_group].guid in theirs.get(u, ()) for u in ours)

    whole = complete(list(ours.values()))
    named = [g for g in whole if not name or ours[rows[0].uuid][g].name == name]
    if name and not named:
        raise NoSuchSnapshot(f"group {group.name} has no whole snap group {name} here")
    chosen = [snap_group for snap_group in named if is_common(snap_group)]
    if not chosen and name:
        raise NoSuchSnapshot(f"the partner does not have {group.name}@{name}")
    if not chosen:
        raise Refused(
            f"the two sites of group {group.name} have no snap group in common",
            hint=f"nasfs replication run {group.name} --rebase --dry-run compares the newest ones",
        )
    return {u: (ours[u][chosen[-1]].guid, ours[u][chosen[-1]].guid) for u in ours}


def newest_snapshots(node: Node, group: Group, partner: Partner) -> dict[str, tuple[str, str]]:
    """The same of this site's newest snap group, and whatever is the newest there.

    Raises:
        Refused: one of the sites has nothing.
    """
    rows = node.state.members(group.uuid)
    ours = {row.uuid: grouped(info(node, row).snapshots) for row in rows}
    whole = complete(list(ours.values()))
    if not whole:
        raise Refused(
            f"group {group.name} has no snapshot here",
            hint=f"take one: nasfs snapshot create {group.name}@NAME",
        )
    found = {}
    for row in rows:
        newest = partner.newest(row)
        if newest is None:
            raise Refused(
                f"the partner has no snapshot of {node.state.volume_name(row)}: there is nothing to"
                " compare",
                hint=f"nasfs replication run {group.name}",
            )
        found[row.uuid] = (ours[row.uuid][whole[-1]].guid, newest.guid)
    return found


def verify(
    node: Node, group: Group, *, name: str, newest: bool, say: Callable[[object], None]
) -> VerifiedView:
    """Compare volume after volume; what differs is said as it is found."""
    partner = Partner(node, group)
    with closing(partner):
        chosen = (
            newest_snapshots(node, group, partner)
            if newest
            else common_snapshots(node, group, partner, name)
        )
        progress = _Progress(say)
        for row in node.state.members(group.uuid):
            ours, theirs = chosen[row.uuid]
            path = node.volume_path(row)
            with closing(LocalWitness(path, ours, progress.at_part)) as witness:
                progress.begin(str(node.state.volume_name(row)), witness)
                remote = partner.witness(row, theirs)
                for finding in findings(progress.volume, witness, remote):
                    progress.found(finding)
                progress.end()
    return VerifiedView(len(chosen), progress.snapshot, progress.bytes, progress.differences)


class _Progress:
    """Says what was found, and about once a second how far it is."""

    def __init__(self, say: Callable[[object], None]) -> None:
        self.volume = self.snapshot = ""
        self.bytes = self.differences = 0
        """Of all volumes."""
        self._say = say
        self._witness: LocalWitness | None = None
        self._next = 0.0

    def begin(self, volume: str, witness: LocalWitness) -> None:
        self.volume, self.snapshot = volume, witness.snapshot.name
        self._witness = witness

    def end(self) -> None:
        assert self._witness is not None
        self._tell()
        self.bytes += self._witness.read_bytes
        self._witness = None

    def at_part(self) -> None:
        if time.monotonic() >= self._next:
            self._tell()

    def found(self, finding: FindingView) -> None:
        self.differences += 1
        self._say(finding)

    def _tell(self) -> None:
        self._next = time.monotonic() + REPORT_S
        assert self._witness is not None
        total = self._witness.snapshot.blocks * BLOCK
        done = min(self._witness.read_bytes, total)
        self._say(Comparing(self.volume, self.snapshot, done, total, self.differences))


def main() -> int:
    """The exit code: 0, or the error's."""
    parser = argparse.ArgumentParser(prog="nasfs.node.verify")
    parser.add_argument("--root", default="")
    parser.add_argument("--snapshot", default="")
    parser.add_argument("--newest", action="store_true")
    parser.add_argument("group")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _end)
    end_with_daemon()
    stand_back()
    try:
        with Node.open(Places.find(options.root)) as node:
            group, _ = made_replication(node, options.group)
            done = verify(node, group, name=options.snapshot, newest=options.newest, say=_say)
            node.acting("admin").note("replication verified", group.name, _told(done))
            _say(done)
    except NasError as exc:
        _say(FailedLine(ErrorView(str(exc), exc.hint, exc.exit_code)))
        _say({"end": {}})
        return exc.exit_code
    _say({"end": {}})
    return 0


def _told(done: VerifiedView) -> str:
    result = f"{done.differences} differences" if done.differences else "equal"
    return f"@{done.snapshot}: {result}"


def _say(line: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
