"""What is compared with what: a site's snapshots and the partner's, and the way to ask it."""

from __future__ import annotations

import time

import msgspec

from nasfs.errors import Refused
from nasfs.volume import NoSuchSnapshot
from replication.client import operate, peer_status
from replication.connection import Connection
from replication.digests import OPERATION
from replication.endpoint import SnapshotRef
from replication.errors import PeerUnreachable
from replication.witness import RemoteWitness

from ..context import Node
from ..engine import info
from ..pairing import connect_peer
from ..records import Group, VolumeRow
from ..sending.outgoing import complete, grouped
from .witnesses import NEWEST

PATIENCE_S = 60.0
"""So long a partner that was there once is waited for (seconds)."""
PAUSE_S = 2.0


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
