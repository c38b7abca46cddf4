"""Who is primary: roles, terms and the plan of a forced failover.  Pure.

The plans in which both nodes take part stand in ``plans``.

A term rises with every change of roles, and the higher term wins: whoever learns of a higher one
than its own is fenced.  A plan's steps can each be run again after a crash: observing and
planning anew then gives what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum

import msgspec

from nasfs.errors import Refused

from .endpoint import GroupStatus, SnapshotRef
from .errors import DataLossNotAccepted, Fenced


class Role(Enum):
    """Of a group on a node."""

    ACTIVE = "active"
    PASSIVE = "passive"
    FAILED_OVER = "failed-over"
    STALE = "stale"


class Action(Enum):
    """What a step does.  The first four ask the peer, and wait for it."""

    CATCH_UP = "catch up"
    DRAIN = "drain"
    RECEIVE = "receive"
    HAND_OVER = "hand over"
    REJOIN = "rejoin"
    STOP_RECEIVING = "stop receiving"
    ROLL_BACK = "roll back"
    SKIP_INODES = "skip inode numbers"
    TAKE_OVER = "take over"
    REPLICATE = "replicate"
    BECOME_ACTIVE = "become active"
    MOUNT = "mount"
    KEEP = "keep"
    GO_BACK = "go back"
    SEAL = "seal"


class SnapGroup(msgspec.Struct, frozen=True):
    """The snapshots that a group took at one moment, one for each volume (by UUID)."""

    guid: str
    name: str
    time_ns: int
    members: Mapping[str, SnapshotRef]


class VolumeView(msgspec.Struct, frozen=True):
    """A volume of the group on this node; `name` is POOL/VOLUME."""

    uuid: str
    name: str
    mountpoint: str
    mounted: bool
    snapshots: tuple[SnapshotRef, ...]
    """Oldest first.  Of a passive volume, those that a rollback left aside are not among them."""


class GroupView(msgspec.Struct, frozen=True):
    """What a planner sees of a group: as observed on this node at `now_ns`."""

    group: str
    role: Role
    term: int
    peer: str
    peer_reachable: bool
    volumes: tuple[VolumeView, ...]
    now_ns: int
    theirs: GroupStatus | None = None
    """What the peer says of the group; None if it does not answer, or does not know it."""
    is_home: bool = False
    """This node is the original primary."""

    @property
    def newest(self) -> SnapGroup | None:
        """The newest complete snap group."""
        return newest_complete({volume.uuid: volume.snapshots for volume in self.volumes})


class Step(msgspec.Struct, frozen=True):
    """Idempotent: running it again after a crash ends in the same state."""

    action: Action
    subject: str
    """POOL/VOLUME, or the group's name."""
    volume: str = ""
    """UUID of the volume, for steps of one volume."""
    snapshot: SnapshotRef | None = None
    mountpoint: str = ""
    term: int = 0
    """For TAKE_OVER, HAND_OVER and REJOIN: the term in which this node is the primary."""
    peer: str = ""
    """The partner's name, where it takes part."""
    common: Mapping[str, str] = {}
    """For REJOIN: volume UUID to the GUID of its newest common snapshot."""

    def __str__(self) -> str:
        return _SENTENCES[self.action](self)


_SENTENCES: Mapping[Action, Callable[[Step], str]] = {
    Action.CATCH_UP: lambda step: (
        f"have {step.peer} take a snap group of {step.subject}, and receive it while people go on"
    ),
    Action.DRAIN: lambda step: (
        f"have {step.peer} end the shares of {step.subject}, unmount its volumes and take the"
        " last snap group"
    ),
    Action.RECEIVE: lambda step: f"wait until the last snap group of {step.subject} is here",
    Action.HAND_OVER: lambda step: f"have {step.peer} become passive in term {step.term}",
    Action.REJOIN: lambda step: (
        f"have {step.peer} keep what only it has of {step.subject} as a snapshot, go back to"
        f" {_at(step)} and become passive"
    ),
    Action.STOP_RECEIVING: lambda step: f"stop receiving {step.subject}",
    Action.ROLL_BACK: lambda step: f"roll {step.subject} back to {_at(step)}",
    Action.SKIP_INODES: lambda step: (
        f"skip inode numbers of {step.subject} that {'' if step.peer else 'the lost primary '}"
        f"{f'{step.peer} has' if step.peer else 'may have'} used"
    ),
    Action.TAKE_OVER: lambda step: (
        f"raise the term to {step.term} and become {'active' if step.peer else 'failed-over'}"
    ),
    Action.REPLICATE: lambda step: f"replicate {step.subject} to {step.peer}",
    Action.BECOME_ACTIVE: lambda step: f"become active, with {step.peer} as the secondary",
    Action.MOUNT: lambda step: f"mount {step.subject} read-write at {step.mountpoint}",
    Action.KEEP: lambda step: f"keep {step.subject} as it is now as a snap group",
    Action.GO_BACK: lambda step: f"make {step.subject} what it was at {_at(step)}",
    Action.SEAL: lambda step: (
        f"take a snap group of {step.subject} as it is then"
        + (f"; with it {step.peer} goes back, too" if step.peer else "")
    ),
}


def _at(step: Step) -> str:
    return f"@{step.snapshot.name}" if step.snapshot else "the last snap group"


class Plan(msgspec.Struct, frozen=True):
    """Steps, in order; `str()` of it is what ``--dry-run`` shows."""

    group: str
    term: int
    losing: str
    """A sentence: what this loses; empty if nothing."""
    steps: tuple[Step, ...]
    kind: str = "failover"
    """``failover`` (the partner is lost), ``switchover`` and ``failback`` (it hands over),
    ``failback-join`` or ``rollback``."""
    token: str = ""
    """By which the partner knows a switchover; of a rollback, the name that its snapshots get."""

    def __str__(self) -> str:
        lines = [f"{self.kind} of {self.group}, term {self.term}:"]
        lines += [f"{number}. {step}" for number, step in enumerate(self.steps, start=1)]
        return "\n".join([*lines, self.losing] if self.losing else lines)


def check_term(group: str, known: int, offered: int) -> None:
    """The rule of fencing: a receiver takes in only what is sent in the very term it knows.

    A higher term than it knows is no fence but a change of roles that it has not been told of
    (``Site.create_replication`` tells it); to follow a mere claim would skip the role's plan.

    Raises:
        Fenced: the sender is behind.
        Refused: the sender is ahead.
    """
    if offered < known:
        raise Fenced(ours=offered, theirs=known)
    if offered > known:
        raise Refused(
            f"group {group} is in term {known} on this node, and the sender claims term {offered}",
            hint="look at the roles on both nodes: nasfs group show",
        )


def complete_groups(snapshots: Mapping[str, Sequence[SnapshotRef]]) -> list[SnapGroup]:
    """The snap groups of which every volume has its snapshot, oldest first.

    Args:
        snapshots: of each volume (UUID), oldest first.
    """
    if not snapshots:
        return []
    by_group = [
        {snapshot.snap_group: snapshot for snapshot in history if snapshot.snap_group}
        for history in snapshots.values()
    ]
    # By the order of sealing, not by the clock: the same order in all volumes of a group.
    found = []
    for guid, first in by_group[0].items():
        if all(guid in groups for groups in by_group):
            members = dict(zip(snapshots, (groups[guid] for groups in by_group), strict=True))
            found.append(SnapGroup(guid, first.name, first.time_ns, members))
    return found


def newest_complete(snapshots: Mapping[str, Sequence[SnapshotRef]]) -> SnapGroup | None:
    """The newest snap group of which every volume has its snapshot; None if there is none."""
    found = complete_groups(snapshots)
    return found[-1] if found else None


def complete_by_name(view: GroupView, name: str) -> SnapGroup:
    """The newest complete snap group of that name.  Raises Refused if there is none."""
    found = complete_groups({volume.uuid: volume.snapshots for volume in view.volumes})
    named = [one for one in found if one.name == name]
    if not named:
        raise Refused(
            f"group {view.group} has no complete snap group {name} on this node",
            hint="these are complete: " + ", ".join(one.name for one in found[-8:])
            if found
            else "none is complete",
        )
    return named[-1]


def plan_failover(view: GroupView, *, force: bool, lose_unreplicated: bool, to: str = "") -> Plan:
    """Make this node the primary of a group whose peer is lost, or is not to be asked.

    What the peer wrote after its newest complete snap group is lost here.  The new term fences
    the peer when it comes back.  If this node took over already and a crash left volumes
    unmounted, the plan is to mount them.

    Args:
        to: the name of an older complete snap group to go back to; empty: the newest.

    Raises:
        Refused: the role is not passive, no (such) snap group is complete, or the peer is alive.
        DataLossNotAccepted: the peer is silent, and not both options were given.
    """
    if view.role is Role.FAILED_OVER and not all(volume.mounted for volume in view.volumes):
        return Plan(view.group, view.term, "", mounts(view))
    if view.role is not Role.PASSIVE:
        raise Refused(
            f"group {view.group} is {view.role.value} on this node, not passive",
            hint="a failover runs on the node where the group is passive: nasfs group show",
        )
    newest = view.newest
    if newest is None:
        raise Refused(
            f"group {view.group} has no complete snap group on this node: nothing to fail over to",
            hint="the first replication has to finish once: nasfs replication show",
        )
    if to:
        newest = complete_by_name(view, to)
    losing = f"lost is what {view.peer} wrote after {_moment(newest, view.now_ns)}"
    if _was_handed_over(view, newest):
        losing = ""
    elif not (force and lose_unreplicated):
        _refuse_without_options(view, losing)
    return Plan(view.group, view.term + 1, losing, _take_over(view, newest))


def _was_handed_over(view: GroupView, newest: SnapGroup) -> bool:
    """Whether the peer has handed over to this node, which forgot it, and nothing came since."""
    theirs = view.theirs
    if theirs is None or (theirs.role, theirs.term) != (Role.PASSIVE.value, view.term + 1):
        return False
    last = newest_complete({volume.uuid: volume.snapshots for volume in theirs.volumes})
    return last is not None and last.guid == newest.guid


def _refuse_without_options(view: GroupView, losing: str) -> None:
    options = f"nasfs failover {view.group} --force --lose-unreplicated"
    if view.theirs is not None:
        raise Refused(
            f"{view.peer} answers, but can't hand group {view.group} over: it is"
            f" {view.theirs.role} there in term {view.theirs.term}, and {view.role.value} here in"
            f" term {view.term}",
            hint=f"look at it there: nasfs group show {view.group}; or lose what was not"
            f" replicated: {options}",
        )
    if view.peer_reachable:
        raise Refused(
            f"{view.peer} answers: a failover now would lose what it has not replicated",
            hint=f"stop the primary (its node, or only the group's volumes) first; or: {options}",
        )
    raise DataLossNotAccepted(
        f"{view.peer} does not answer: {losing}", hint=f"to accept that: {options}"
    )


def _take_over(view: GroupView, newest: SnapGroup) -> tuple[Step, ...]:
    rolls = [
        Step(Action.ROLL_BACK, volume.name, volume.uuid, newest.members[volume.uuid])
        for volume in view.volumes
    ]
    skips = [Step(Action.SKIP_INODES, volume.name, volume.uuid) for volume in view.volumes]
    return (
        Step(Action.STOP_RECEIVING, view.group),
        *rolls,
        *skips,
        Step(Action.TAKE_OVER, view.group, term=view.term + 1),
        *mounts(view),
    )


def mounts(view: GroupView) -> tuple[Step, ...]:
    return tuple(
        Step(Action.MOUNT, volume.name, volume.uuid, mountpoint=volume.mountpoint)
        for volume in view.volumes
        if not volume.mounted
    )


def _moment(newest: SnapGroup, now_ns: int) -> str:
    taken = datetime.fromtimestamp(newest.time_ns / 1e9, UTC).isoformat(timespec="seconds")
    age = max(0, (now_ns - newest.time_ns) // 1_000_000_000)
    return f"snap group {newest.name} of {taken.replace('+00:00', 'Z')}, {_duration(age)} ago"


def _duration(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
