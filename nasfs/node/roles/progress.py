"""What is under way with a group, in words: a change of roles, a rollback."""

from __future__ import annotations

import msgspec

from replication.handover import Drained, Rejoined
from replication.roles import Action, Plan

from ..context import Node
from ..records import REJOIN, RELEASE, YIELD, Group, Journal

AGREED = ("switchover", "failback")
"""Kinds of plans in which the partner hands the group over."""

COMMANDS = {
    "failover": "nasfs failover {}",
    "switchover": "nasfs failover {}",
    "failback": "nasfs failback {}",
    "failback-join": "nasfs failback-join {}",
    "rollback": "nasfs rollback {}@{}",
}
"""With which command each kind goes on."""


class Work(msgspec.Struct, frozen=True):
    """The body of the journal of a plan that this node carries out."""

    plan: Plan
    drained: Drained | None = None
    """What the partner has agreed to."""
    rejoined: Rejoined | None = None
    """What the old primary has kept, and how it had replicated."""
    subject: str = ""
    """Of a rollback: the name of the snap group."""


class Yielding(msgspec.Struct, frozen=True):
    """The body of the journal of a node that hands a group over."""

    token: str
    term: int
    name: str
    """Of the last snap group."""
    snap_group: str = ""
    """It, once it was taken."""


class Rejoining(msgspec.Struct, frozen=True):
    """The body of the journal of a node that becomes a secondary."""

    term: int
    common: dict[str, str]
    """Volume UUID to the GUID to go back to."""
    name: str
    """Of the snapshots that keep what only this node has."""
    was_receiving: bool
    """The live views are the half of something: they are not kept."""
    kept: tuple[str, ...] = ()


def read_work(journal: Journal) -> Work:
    return msgspec.msgpack.decode(journal.body, type=Work)


def is_ours(journal: Journal) -> bool:
    """Whether a plan of this node is under way, not the answer to one of the partner."""
    return journal.kind not in (YIELD, REJOIN)


def still_receives(journal: Journal) -> bool:
    """Whether the partner may send although that plan is under way: the last snap group."""
    if journal.kind not in AGREED:
        return False
    steps = read_work(journal).plan.steps[: journal.next_step]
    return not any(step.action is Action.HAND_OVER for step in steps)


def change_under_way(node: Node, group: Group) -> str:
    """Why no snapshot is taken or destroyed now, in words; empty: nothing prevents it."""
    journal = node.bond.journal(group.uuid)
    if journal is None:
        return ""
    return f"group {group.name}: {describe(journal)[0]}"


def describe(journal: Journal) -> tuple[str, str]:
    """What is under way, and what comes next in it."""
    if journal.kind == YIELD:
        return "it is being handed over to the partner", "the partner goes on, or this node does"
    if journal.kind == REJOIN:
        return "it is becoming a secondary", "the partner goes on: nasfs failback-join there"
    if journal.kind == RELEASE:
        return "its replication is being deleted", "its copies become ordinary volumes"
    plan = read_work(journal).plan
    left = plan.steps[journal.next_step :]
    return f"a {journal.kind} is not finished", str(left[0]) if left else "to end it"


def how_to_finish(journal: Journal, group: str) -> str:
    """What a person can do about it."""
    if journal.kind == YIELD:
        return f"to call it off: nasfs failover {group} --call-off"
    if journal.kind == REJOIN:
        return f"finish it on the partner: nasfs failback-join {group}"
    if journal.kind == RELEASE:
        return f"finish it: nasfs replication delete {group}"
    work = read_work(journal)
    return "finish it: " + COMMANDS[journal.kind].format(group, work.subject)
