"""Who is primary: roles, terms and the plan of a failover.  Pure.

A term rises with every change of roles, and the higher term wins: whoever learns of a higher one
than its own is fenced.  A plan's steps can each be run again after a crash: observing and
planning anew then gives what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum

import msgspec

from nasfs.errors import Refused

from .endpoint import SnapshotRef
from .errors import DataLossNotAccepted, Fenced


class Role(Enum):
    """Of a group on a node."""

    ACTIVE = "active"
    PASSIVE = "passive"
    FAILED_OVER = "failed-over"
    STALE = "stale"


class Action(Enum):
    STOP_RECEIVING = "stop receiving"
    ROLL_BACK = "roll back"
    SKIP_INODES = "skip inode numbers"
    TAKE_OVER = "take over"
    MOUNT = "mount"


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


class GroupView(msgspec.Struct, frozen=True):
    """What a planner sees of a group: as observed on this node at `now_ns`."""

    group: str
    role: Role
    term: int
    peer: str
    peer_reachable: bool
    volumes: tuple[VolumeView, ...]
    now_ns: int

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
    """For TAKE_OVER: the term in which this node becomes failed-over."""

    def __str__(self) -> str:
        match self.action:
            case Action.STOP_RECEIVING:
                return f"stop receiving {self.subject}"
            case Action.ROLL_BACK:
                return f"roll {self.subject} back to @{self.snapshot.name if self.snapshot else ''}"
            case Action.SKIP_INODES:
                return f"skip inode numbers of {self.subject} that the lost primary may have used"
            case Action.TAKE_OVER:
                return f"raise the term to {self.term} and become failed-over"
            case Action.MOUNT:
                return f"mount {self.subject} read-write at {self.mountpoint}"


class Plan(msgspec.Struct, frozen=True):
    """Steps, in order; `str()` of it is what ``--dry-run`` shows."""

    group: str
    term: int
    losing: str
    """A sentence: what this loses; empty if nothing."""
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [f"failover of {self.group}, term {self.term}:"]
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


def newest_complete(snapshots: Mapping[str, Sequence[SnapshotRef]]) -> SnapGroup | None:
    """The newest snap group of which every volume has its snapshot; None if there is none.

    Args:
        snapshots: of each volume (UUID), oldest first.
    """
    if not snapshots:
        return None
    by_group = [
        {snapshot.snap_group: snapshot for snapshot in history if snapshot.snap_group}
        for history in snapshots.values()
    ]
    complete = set.intersection(*(set(groups) for groups in by_group))
    if not complete:
        return None
    # By the order of sealing, not by the clock: the same order in all volumes of a group.
    order = list(by_group[0])
    guid = max(complete, key=order.index)
    members = dict(zip(snapshots, (groups[guid] for groups in by_group), strict=True))
    first = by_group[0][guid]
    return SnapGroup(guid, first.name, first.time_ns, members)


def plan_failover(view: GroupView, *, force: bool, lose_unreplicated: bool) -> Plan:
    """Make this node the primary of a group whose peer is lost.

    What the peer wrote after its newest complete snap group is lost here.  The new term fences
    the peer when it comes back.  If this node took over already and a crash left volumes
    unmounted, the plan is to mount them.

    Raises:
        Refused: the role is not passive, no snap group is complete, or the peer is alive.
        DataLossNotAccepted: the peer is silent, and not both options were given.
    """
    if view.role is Role.FAILED_OVER and not all(volume.mounted for volume in view.volumes):
        return Plan(view.group, view.term, "", _mounts(view))
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
    losing = f"lost is what {view.peer} wrote after {_moment(newest, view.now_ns)}"
    if not (force and lose_unreplicated):
        _refuse_without_options(view, losing)
    return Plan(view.group, view.term + 1, losing, _take_over(view, newest))


def _refuse_without_options(view: GroupView, losing: str) -> None:
    options = f"nasfs failover {view.group} --force --lose-unreplicated"
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
        *_mounts(view),
    )


def _mounts(view: GroupView) -> tuple[Step, ...]:
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
