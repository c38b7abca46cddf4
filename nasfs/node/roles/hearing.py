"""Hearing from the partner whether it has taken over, with the daemon or without it."""

from __future__ import annotations

import logging

from nasfs.errors import NasError, Refused

from ..coming_back import how_to_go_on, may_be_replaced, must_ask
from ..context import Node
from ..daemon_lock import running_daemon
from ..records import Group, VolumeRow

log = logging.getLogger(__name__)

PEER_S = 5.0
"""So long the partner may take to answer (seconds)."""


def ask_terms(node: Node) -> dict[str, int]:
    """The partner's term of each group (UUID) of which this node is the primary.

    Zero: it answers, and does not know the group.  Nothing of what it can't tell, and of a group
    that is not replicated.
    """
    groups = [
        group
        for group in node.state.groups()
        if group.role == "failed-over" or may_be_replaced(node, group)
    ]
    if not groups or node.bond.peer() is None:
        return {}
    from replication.client import peer_status  # slow to import, for who mounts a volume
    from replication.errors import PeerFailed, RefusedByPeer

    from ..pairing import connect_peer

    found = {}
    try:
        with connect_peer(node, timeout_s=PEER_S) as connection:
            for group in groups:
                try:
                    found[group.uuid] = peer_status(connection, group.uuid).term
                except RefusedByPeer:
                    found[group.uuid] = 0
                except PeerFailed as exc:
                    log.warning("group %s: the partner can't tell its term: %s", group.name, exc)
    except NasError as exc:
        log.debug("the partner was not asked: %s", exc)
    return found


def hear_first(node: Node, row: VolumeRow, *, without_partner: bool = False) -> None:
    """Before a volume is mounted read-write: what the daemon does when it begins.

    Args:
        without_partner: a person knows that the partner has not taken over.

    Raises:
        Refused: the group has come back, and the partner does not answer or has taken over.
    """
    group = node.state.find_group(row.group) if row.group else None
    if group is None or not must_ask(node, group, running_daemon(node.places)):
        return
    term = ask_terms(node).get(group.uuid)
    if term is not None and term > group.term:
        node.state.step_down(group.uuid)
        node.state.note("mount", "stepped down", group.name, "the partner has taken over")
        raise Refused(
            f"group {group.name}: the partner has taken over",
            hint="this side keeps everything until it rejoins",
        )
    if term is not None:
        _go_on(node, group, f"the partner has not taken over: term {group.term}")
    elif without_partner or node.config.failover.without_partner == "mount":
        _go_on(node, group, "without its partner")
    else:
        peer = node.bond.peer()
        raise Refused(
            f"group {group.name} has come back, and {peer.name if peer else 'the partner'}, which"
            " may have taken over meanwhile, does not answer",
            hint=how_to_go_on(group.name),
        )


def _go_on(node: Node, group: Group, why: str) -> None:
    node.bond.end_waiting(group.uuid, group.term)
    node.state.note("mount", "goes on as the primary", group.name, why)
