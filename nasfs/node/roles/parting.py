"""The end of a replication, or of the pair, on both sides: the partner first, then this node.

What the partner has done it does not do again, so whoever is killed in the middle: the same
command ends it.  Without the partner, `force` ends this side; the other does the same when it is
back.  Nothing is destroyed on either side.
"""

from __future__ import annotations

import msgspec

from nasfs.errors import NasError, Refused, Unreachable
from replication.client import operate
from replication.errors import PeerFailed, RefusedByPeer

from ..context import Node
from ..messages import PairRemove
from ..pairing import connect_peer
from ..part_messages import EndView, PairEndView, ReplicationDelete
from ..records import Group
from ..services import Services
from .leaving import LEAVE, Ended, related
from .releasing import check_free_to_end, end_here, must_exist, plan_end, tidy_all

END = "end-replication"
PEER_S = 10.0
"""So long the partner may take to answer a connection (seconds)."""


class End(msgspec.Struct, frozen=True):
    force: bool
    dry_run: bool


async def delete(services: Services, name: str, request: ReplicationDelete) -> EndView:
    """End the replication of a group, from either side.

    Raises:
        Failed: it is not replicated.
        Refused: roles are changing; or both sides wrote to it, and `force` is not given.
        Unreachable: the partner does not answer, and `force` is not given.
    """
    group = await services.run(must_exist, name)
    check_free_to_end(services.node, group)
    _check_no_two(group, force=request.force)
    ended = await services.run(_tell, group, request)
    if request.dry_run:
        here = await services.run(plan_end, group)
    else:
        here = await end_here(services, group.uuid, peer_has_all=ended is not None)
    return EndView(name, tuple(here), ended.done if ended else (), ended is not None)


def _check_no_two(group: Group, *, force: bool) -> None:
    if group.role in ("stale", "failed-over") and not force:
        raise Refused(
            f"group {group.name} is {group.role} here: both nodes would keep one of their own, with"
            " what each has written",
            hint="to bring them together: nasfs failback-join, on the node that has taken over; to"
            " part them nevertheless: --force",
        )


def _tell(node: Node, group: Group, request: ReplicationDelete) -> Ended | None:
    """What the partner does, or says it has done; None: it was not told."""
    if node.bond.peer() is None:
        return None
    try:
        with connect_peer(node, timeout_s=PEER_S) as connection:
            body = msgspec.msgpack.encode(End(request.force, request.dry_run))
            raw = operate(connection, group.uuid, END, body)
        ended = msgspec.msgpack.decode(raw, type=Ended)
    except RefusedByPeer as exc:  # it does not know the group (any more)
        return Ended((str(exc),))
    except PeerFailed:
        if not request.force:
            raise
        return None
    except NasError as exc:
        if not request.force:
            raise Unreachable(
                f"the partner can't be told: {exc}",
                hint="to end this side alone, and the other when it is back, by the same command:"
                f" nasfs replication delete {group.name} --force",
            ) from exc
        return None
    if ended.problem:
        raise Refused(f"the partner says: {ended.problem}", hint=ended.hint)
    return ended


async def asked_to_end(services: Services, group: Group, body: bytes) -> bytes:
    """The partner ends the replication: this side's part."""
    question = msgspec.msgpack.decode(body, type=End)
    try:
        _check_no_two(group, force=question.force)
        check_free_to_end(services.node, group)
        if question.dry_run:
            done = await services.run(plan_end, group)
        else:
            done = await end_here(services, group.uuid, peer_has_all=True)
    except Refused as exc:
        return msgspec.msgpack.encode(Ended((), str(exc), exc.hint))
    return msgspec.msgpack.encode(Ended(tuple(done)))


# the pair


async def remove_pair(services: Services, request: PairRemove) -> PairEndView:
    """Forget the partner, and have it forget this node; volumes and snapshots stay.

    Raises:
        Refused: groups are replicated between the two (unless `force`).
    """
    node = services.node
    peer = node.bond.peer()
    if peer is None:
        raise Refused("this node has no partner")
    groups = await services.run(related)
    if groups and not request.force:
        raise Refused(
            f"groups are replicated between this node and {peer.name}: "
            + ", ".join(sorted(group.name for group in groups)),
            hint="end that first (nasfs replication delete GROUP), or use --force: nothing is"
            " deleted, but replication ends",
        )
    for group in groups:
        await delete(services, group.name, ReplicationDelete(force=True))
    await services.run(tidy_all)
    told = await services.run(_leave)
    with node.state.change():
        node.bond.forget_peer()
    node.note("pair removed", peer.name, told)
    return PairEndView(peer.name, told)


def _leave(node: Node) -> str:
    """Tell the partner that the pair is over; what came of it."""
    try:
        with connect_peer(node, timeout_s=PEER_S) as connection:
            raw = operate(connection, node.state.node_uuid(), LEAVE, b"")
        return msgspec.msgpack.decode(raw, type=Ended).problem
    except NasError as exc:
        return str(exc)
