"""The bond with exactly one other node: inviting, joining, parting."""

from __future__ import annotations

import time

from nasfs.errors import Failed, Refused
from replication import pair
from replication.client import open_connection
from replication.connection import Connection
from replication.endpoint import PeerIdentity
from replication.transport import Credentials

from .context import Node
from .messages import InvitationView, NodeView, PairJoin, PairView, when
from .records import Invitation


def identity(node: Node) -> PeerIdentity:
    """This node, as its partner knows it."""
    try:
        certificate = node.places.certificate.read_text()
    except OSError as exc:
        raise Failed(
            f"cannot read {node.places.certificate}: {exc.strerror}",
            hint="make the node's key again: nasfs node init (a pair must then be made again)",
        ) from exc
    return PeerIdentity(node.state.node_uuid(), node.config.name, node.config.listen, certificate)


def credentials(node: Node) -> Credentials:
    return Credentials(certificate=node.places.certificate, key=node.places.key)


def connect_peer(node: Node, *, timeout_s: float = 20.0, level: int = 0) -> Connection:
    """A connection to the partner; the caller closes it.

    Raises:
        Refused: this node has no partner.
        PeerUnreachable, NotAuthenticated, VersionMismatch: no connection.
    """
    peer = node.bond.peer()
    if peer is None:
        raise Refused(
            "this node has no partner", hint="nasfs pair invite there, then nasfs pair join here"
        )
    return open_connection(identity(node), credentials(node), peer, level=level, timeout=timeout_s)


def pair_view(node: Node) -> PairView:
    peer = node.bond.peer()
    own = NodeView(node.config.name, node.state.node_uuid(), node.config.listen)
    return PairView(own, NodeView(peer.name, peer.uuid, peer.address) if peer else None)


def invite(node: Node) -> InvitationView:
    """A one-time code for the other node; an older code is void from now on.

    Raises:
        Refused: this node has a partner, or listens nowhere.
    """
    _check_unpaired(node)
    _check_listens(node)
    own = identity(node)
    code, invitation = pair.invite(own.address, own.certificate, time.time_ns())
    node.bond.set_invitation(Invitation(invitation.secret_digest, invitation.expires_ns))
    node.note("invited a partner", node.config.name)
    return InvitationView(str(code), when(invitation.expires_ns))


def join(node: Node, request: PairJoin) -> PairView:
    """Become the partner of the node that made the code.

    Raises:
        ConfigError: not a code.
        NotAuthenticated: a wrong, used or old code.
        Refused, RefusedByPeer: one of the two has a partner already.
        PeerUnreachable: it does not answer.
    """
    _check_unpaired(node)
    _check_listens(node)
    peer = pair.join(request.code, identity(node))
    if peer.uuid == node.state.node_uuid():
        raise Refused("that is this node's own code", hint="enter it on the other node")
    node.bond.set_peer(peer)
    node.note("paired", peer.name, peer.address)
    return pair_view(node)


def _check_unpaired(node: Node) -> None:
    peer = node.bond.peer()
    if peer is not None:
        raise Refused(
            f"this node is paired with {peer.name} already",
            hint="a pair has exactly two nodes; to end it: nasfs pair remove",
        )


def _check_listens(node: Node) -> None:
    if not node.config.listen:
        raise Refused(
            "this node does not listen for a partner",
            hint="nasfs node init --listen HOST:PORT, then restart the daemon",
        )
