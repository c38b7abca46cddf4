"""Whether a primary that comes back may serve: not before it has heard that it still is one.

A group comes back when a daemon begins and no mount process of it lives: after a power cut, a
reboot, an update.  While it was away its partner may have taken over.  So it is marked in node.db
before anything is mounted, and waits, until the partner has answered without a higher term, or a
person has said that it shall go on (`roles.watch`).  A mark is of one term: what is decided for
the next one does not wait.
"""

from __future__ import annotations

import time
from pathlib import Path

from nasfs.errors import Refused

from .context import Node
from .engine import find_server
from .records import Group

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def life(daemon: int) -> str:
    """One daemon (its process id) of one boot of this machine."""
    return f"{_BOOT.read_text().strip()}:{daemon}"


def look_back(node: Node, daemon: int) -> None:
    """A daemon begins: mark the groups that come back.  Nothing is mounted by it yet."""
    back = [
        group
        for group in node.state.groups()
        if may_be_replaced(node, group) and not _is_served(node, group)
    ]
    with node.state.change():
        for group in back:
            if not waits_since(node, group):
                node.bond.begin_to_wait(group.uuid, group.term, time.time_ns())
                node.state.note("daemon", "waits for the partner", group.name, f"term {group.term}")
        node.bond.set_looked_back(life(daemon))


def may_be_replaced(node: Node, group: Group) -> bool:
    """Whether the partner could have taken over a group of which this node is the primary.

    It could if it is passive in this node's term: if it receives, or was ever asked to.
    """
    if group.role not in ("active", "failed-over"):
        return False
    sends = node.bond.replication(group.uuid) is not None
    return sends or node.bond.followed_in(group.uuid) == group.term


def waits_since(node: Node, group: Group) -> int:
    """Since when (ns) the group waits for a word; 0: it does not."""
    term, since_ns = node.bond.waiting(group.uuid)
    return since_ns if term == group.term and may_be_replaced(node, group) else 0


def why_it_waits(node: Node, group: Group) -> str:
    """In words; empty: it does not wait."""
    if not waits_since(node, group):
        return ""
    peer = node.bond.peer()
    who = peer.name if peer else "the partner"
    return (
        f"group {group.name} has come back, and {who}, which may have taken over meanwhile, does"
        " not answer"
    )


def how_to_go_on(group: str) -> str:
    return (
        "it goes on by itself as soon as the partner answers; if you know that the partner has not"
        f" taken over: nasfs failover {group} --without-partner"
    )


def check_heard(node: Node, group: Group) -> None:
    """Raises Refused while the group waits for a word."""
    if why := why_it_waits(node, group):
        raise Refused(why, hint=how_to_go_on(group.name))


def must_ask(node: Node, group: Group, daemon: int) -> bool:
    """Whether somebody who mounts without the daemon has to hear from the partner first.

    Args:
        daemon: the process of the daemon that runs; 0: none does.
    """
    if not may_be_replaced(node, group):
        return False
    if waits_since(node, group):
        return True
    if daemon:
        return node.bond.looked_back() != life(daemon)  # it has not come so far
    return not _is_served(node, group)


def _is_served(node: Node, group: Group) -> bool:
    return any(find_server(node, row.uuid) for row in node.state.members(group.uuid))
