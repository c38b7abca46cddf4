"""The plans in which both nodes of a pair take part, and that of a group's rollback.  Pure.

A switchover: up to HAND_OVER the peer can keep the group, and everything is as before.  With it
there is no primary until TAKE_OVER, and this node alone goes on.
"""

from __future__ import annotations

from nasfs.errors import Refused

from .endpoint import GroupStatus
from .roles import (
    Action,
    GroupView,
    Plan,
    Role,
    Step,
    complete_by_name,
    mounts,
    newest_complete,
    plan_failover,
)


def plan_takeover(view: GroupView, *, force: bool, lose_unreplicated: bool, to: str = "") -> Plan:
    """Make this node the primary: the peer hands over if it can, else it is robbed, by force.

    Raises:
        Refused, DataLossNotAccepted: see `plan_failover`.
    """
    robbing = force and lose_unreplicated
    if robbing or to or view.role is not Role.PASSIVE or not _hands_over(view):
        return plan_failover(view, force=force, lose_unreplicated=lose_unreplicated, to=to)
    return plan_switchover(view, "switchover")


def _hands_over(view: GroupView) -> bool:
    theirs = view.theirs
    return theirs is not None and (theirs.role, theirs.term) == (Role.ACTIVE.value, view.term)


def plan_switchover(view: GroupView, kind: str) -> Plan:
    """The peer, which is the primary and answers, hands the group over; nothing is lost."""
    term = view.term + 1
    volumes = view.volumes
    steps = (
        Step(Action.CATCH_UP, view.group, peer=view.peer),
        Step(Action.DRAIN, view.group, peer=view.peer),
        Step(Action.RECEIVE, view.group, peer=view.peer),
        Step(Action.HAND_OVER, view.group, term=term, peer=view.peer),
        Step(Action.STOP_RECEIVING, view.group),
        *(Step(Action.ROLL_BACK, volume.name, volume.uuid) for volume in volumes),
        *(Step(Action.SKIP_INODES, volume.name, volume.uuid, peer=view.peer) for volume in volumes),
        Step(Action.TAKE_OVER, view.group, term=term, peer=view.peer),
        Step(Action.REPLICATE, view.group, peer=view.peer),
        *mounts(view),
    )
    return Plan(view.group, term, "", steps, kind, f"{view.now_ns}-{term}")


def plan_failback(view: GroupView) -> Plan:
    """On the original primary: the peer hands the group back.

    Raises:
        Refused: this is not the original primary, it is not passive here, or the peer does not
            answer or can't hand over.
    """
    if not view.is_home:
        raise Refused(
            f"this node is not the original primary of group {view.group}",
            hint=f"to take it over here: nasfs failover {view.group}",
        )
    if view.role is not Role.PASSIVE:
        hint = {
            Role.ACTIVE: "it is the primary already",
            Role.FAILED_OVER: f"it is the primary already; to have {view.peer} follow it: nasfs"
            f" failback-join {view.group}",
            Role.STALE: f"first on {view.peer}: nasfs failback-join {view.group}",
        }
        raise Refused(
            f"group {view.group} is {view.role.value} on this node, not passive",
            hint=hint[view.role],
        )
    if view.theirs is None:
        raise Refused(
            f"{view.peer} does not answer, or does not know group {view.group}",
            hint="when it is back, give the same command again; if it is lost: nasfs failover"
            f" {view.group} --force --lose-unreplicated",
        )
    if not _hands_over(view):
        raise Refused(
            f"group {view.group} is {view.theirs.role} in term {view.theirs.term} on {view.peer},"
            f" and passive in term {view.term} here",
            hint=f"first on {view.peer}: nasfs failback-join {view.group}",
        )
    return plan_switchover(view, "failback")


def plan_join(view: GroupView) -> Plan:
    """Take the old primary back as the secondary of a group that this node has taken over.

    It goes back to the newest snap group that both have, and keeps what only it has.

    Raises:
        Refused: the role is not failed-over, the peer does not answer or is not behind, or nothing
            is common.
    """
    if view.role is not Role.FAILED_OVER:
        raise Refused(
            f"group {view.group} is {view.role.value} on this node, not failed-over",
            hint="a failback join runs on the node that has taken over: nasfs group show",
        )
    theirs = view.theirs
    if theirs is None:
        raise Refused(
            f"{view.peer} does not answer, or does not know group {view.group}",
            hint="when it is back, give the same command again",
        )
    if theirs.term > view.term or (theirs.term == view.term and theirs.role != Role.PASSIVE.value):
        raise Refused(
            f"group {view.group} is {theirs.role} in term {theirs.term} on {view.peer}, and"
            f" {view.role.value} in term {view.term} here",
            hint=f"it is {view.peer} that is ahead: nasfs failback-join {view.group} there",
        )
    steps = (
        _rejoin(view, theirs),
        Step(Action.REPLICATE, view.group, peer=view.peer),
        Step(Action.BECOME_ACTIVE, view.group, term=view.term, peer=view.peer),
    )
    return Plan(view.group, view.term, "", steps, "failback-join")


def _rejoin(view: GroupView, theirs: GroupStatus) -> Step:
    known = {volume.uuid: {s.guid for s in volume.snapshots} for volume in theirs.volumes}
    if known.keys() != {volume.uuid for volume in view.volumes}:
        raise Refused(f"group {view.group} has other volumes on {view.peer}")
    shared = {
        volume.uuid: [s for s in volume.snapshots if s.guid in known[volume.uuid]]
        for volume in view.volumes
    }
    newest = newest_complete(shared)
    if newest is None:
        raise Refused(
            f"no snap group of {view.group} is on both nodes any more",
            hint=f"both keep everything; {view.peer} can be given a new copy in new volumes",
        )
    first = newest.members[view.volumes[0].uuid]
    common = {volume: snapshot.guid for volume, snapshot in newest.members.items()}
    return Step(
        Action.REJOIN, view.group, snapshot=first, term=view.term, peer=view.peer, common=common
    )


def plan_rollback(view: GroupView, snapshot: str, *, replicated: bool, name: str) -> Plan:
    """All volumes of an active group become what they were at one of its snap groups.

    What they are now is kept as a snap group before, and what they are then is one afterwards, so
    the peer gets both as ordinary deltas, from whatever it has: it goes back by the second.

    Args:
        replicated: the peer will get them.
        name: of the two snap groups, behind ``before-`` and ``after-``.

    Raises:
        Refused: the group is not active here, or has no such complete snap group.
    """
    if view.role not in (Role.ACTIVE, Role.FAILED_OVER):
        raise Refused(
            f"group {view.group} is {view.role.value} on this node",
            hint=f"a rollback runs where the group is active; the other node follows: {view.peer}",
        )
    target = complete_by_name(view, snapshot)
    steps = (
        Step(Action.KEEP, view.group),
        *(
            Step(Action.GO_BACK, volume.name, volume.uuid, target.members[volume.uuid])
            for volume in view.volumes
        ),
        Step(Action.SEAL, view.group, peer=view.peer if replicated else ""),
    )
    return Plan(view.group, view.term, "", steps, "rollback", name)
