"""What a node asks its partner, apart from transfers (``sender``) and pairing (``pair``)."""

from __future__ import annotations

from .connection import Connection, greeting
from .endpoint import GroupSpec, GroupStatus, PeerIdentity
from .errors import NotAuthenticated
from .lanes import LaneKeys
from .session import Side
from .transport import TIMEOUT_S, Credentials, connect
from .wire import Created, CreateReplication, Operate, Operated, PeerStatus, StatusQuery


def open_connection(
    identity: PeerIdentity,
    credentials: Credentials,
    peer: PeerIdentity,
    *,
    level: int = 0,
    timeout: float = TIMEOUT_S,
) -> Connection:
    """Connect to the paired node and greet it; the caller closes the connection.

    Args:
        identity, credentials: this node.
        level: of zstandard for rows and data, 0 (none) to 19, or `compression.AUTO`.
        timeout: seconds without a byte after which the peer counts as unreachable.

    Raises:
        PeerUnreachable, NotAuthenticated, VersionMismatch, RemoteProtocolError.
    """
    stream = connect(peer.address, credentials, peer.certificate, timeout=timeout)
    connection = Connection(stream, Side.CLIENT, level=level)
    connection.lane_keys = LaneKeys(credentials, peer.certificate, peer.address)
    try:
        theirs = connection.greet(greeting(identity))
        if theirs.node_uuid != peer.uuid:
            raise NotAuthenticated(
                f"{peer.address} is node {theirs.node_name}, not the partner {peer.name}"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def create_replication(connection: Connection, spec: GroupSpec) -> None:
    """Have the peer make the passive group and its volumes; again is fine.

    Raises:
        RefusedByPeer: a volume of that name exists there, or the pool is unknown.
    """
    connection.send(CreateReplication(spec))
    connection.expect(Created)


def peer_status(connection: Connection, group: str) -> GroupStatus:
    """What the peer knows of a group (UUID).  Raises RefusedByPeer if it knows nothing."""
    connection.send(StatusQuery(group))
    return connection.expect(PeerStatus).status


def operate(connection: Connection, group: str, operation: str, body: bytes) -> bytes:
    """Have the peer do an operation on a group (UUID); what it answers.  Both up to 1 MiB.

    Raises:
        RefusedByPeer, PeerFailed: it did not.
    """
    connection.send(Operate(group, operation, body))
    return connection.expect(Operated).body
