"""What a planner may know of a group: as it is on this node, and what its partner says of it."""

from __future__ import annotations

import time

from nasfs.errors import NasError
from replication.client import peer_status
from replication.endpoint import GroupStatus, SnapshotRef
from replication.errors import PeerFailed, RefusedByPeer
from replication.roles import GroupView, Role, VolumeView

from ..context import MountPhase, Node
from ..engine import info
from ..inventory import mount_state
from ..pairing import connect_peer
from ..records import Group

PEER_S = 5.0
"""So long the partner may take to answer (seconds)."""


def observe(node: Node, group: Group) -> GroupView:
    """What a planner may know of the group on this node, and from its partner."""
    volumes = []
    for row in node.state.members(group.uuid):
        found = info(node, row)
        snapshots = found.ancestors if group.role == Role.PASSIVE.value else found.snapshots
        volumes.append(
            VolumeView(
                uuid=row.uuid,
                name=str(node.state.volume_name(row)),
                mountpoint=str(node.mountpoint(row)),
                mounted=mount_state(node, row).phase is MountPhase.MOUNTED,
                snapshots=tuple(
                    SnapshotRef(s.guid, s.name, s.time_ns, s.snap_group) for s in snapshots
                ),
            )
        )
    peer = node.bond.peer()
    reachable, theirs = _ask_peer(node, group)
    return GroupView(
        group=group.name,
        role=Role(group.role),
        term=group.term,
        peer=peer.name if peer else "the partner",
        peer_reachable=reachable,
        volumes=tuple(volumes),
        now_ns=time.time_ns(),
        theirs=theirs,
        is_home=bool(group.home),
    )


def _ask_peer(node: Node, group: Group) -> tuple[bool, GroupStatus | None]:
    """Whether the partner answers, and what it says of the group."""
    try:
        with connect_peer(node, timeout_s=PEER_S) as connection:
            return True, peer_status(connection, group.uuid)
    except (RefusedByPeer, PeerFailed):
        return True, None  # it is alive
    except NasError:
        return False, None
