"""Which deltas bring the peer up to date: two histories in, steps out.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from .endpoint import SnapshotRef
from .errors import Diverged

_REBASE = (
    "nothing was changed on either side; to send just what differs, and keep the peer's copy as a"
    " snapshot: nasfs replication run GROUP --rebase"
)


class SendDelta(msgspec.Struct, frozen=True):
    """Bring a volume of the peer from one snapshot to the next."""

    volume: str
    base: SnapshotRef | None
    """None: from nothing, the initial copy."""
    target: SnapshotRef

    def __str__(self) -> str:
        return (
            f"send {self.volume} {self.base.name if self.base else '(empty)'} -> {self.target.name}"
        )


class SnapGroup(msgspec.Struct, frozen=True):
    """A snap group that is whole on this site."""

    uuid: str
    name: str
    time_ns: int
    wanted: bool = False
    """Somebody but replication holds one of its snapshots: it is not left out."""


class Retention(msgspec.Struct, frozen=True):
    """What the receiver keeps: at most so many snap groups, and never fewer than it says itself."""

    most: int
    least: int = 0


def plan_snap_groups(
    waiting: Sequence[SnapGroup],
    *,
    there: int,
    retention: Retention,
    now_ns: int,
    max_lag_ns: int,
    newest_only: bool = False,
) -> tuple[SnapGroup, ...]:
    """Which of the waiting snap groups go to the peer; one net delta spans what is left out.

    All of them go, unless the first has waited for longer than *max_lag_ns* (0: however long), or
    *newest_only*.  Then these go: the newest; what somebody holds; and of the others the newest,
    as far as the receiver would otherwise have fewer than it wants to have at least.  What it
    would not keep at all does not go.

    Args:
        waiting: oldest first.
        there: how many snap groups the receiver has.
    """
    late = waiting and 0 < max_lag_ns < now_ns - waiting[0].time_ns
    if not (late or newest_only) or len(waiting) < 2:
        return tuple(waiting)
    chosen = {waiting[-1].uuid, *(group.uuid for group in waiting if group.wanted)}
    for group in reversed(waiting):
        if there + len(chosen) >= retention.least:
            break
        chosen.add(group.uuid)
    kept = [group for group in waiting if group.uuid in chosen]
    return tuple(kept[-max(1, retention.most) :])


def plan_deltas(
    volume: str,
    sender: Sequence[SnapshotRef],
    receiver: Sequence[SnapshotRef],
    targets: Collection[str] | None = None,
) -> tuple[SendDelta, ...]:
    """The deltas, in order, that bring *receiver* up to *sender*.

    Args:
        sender, receiver: snapshots of *volume* on each side, oldest first.  The GUID decides
            what is common; names and times are labels.
        targets: GUIDs to which to restrict it; None: every snapshot of a snap group.  Others
            than those of a snap group are never sent.

    Returns:
        One step per missing snapshot; empty when there is nothing to do.

    Raises:
        Diverged: the receiver's newest snapshot is not one of ours, or is older than another
            that it shares with us.
    """
    position = {snapshot.guid: number for number, snapshot in enumerate(sender)}
    after = 0
    base = None
    if receiver:
        newest = receiver[-1]
        common = [position[snapshot.guid] for snapshot in receiver if snapshot.guid in position]
        if not common:
            raise Diverged(
                volume, f"no snapshot is common; the peer's newest is {newest.name}", _REBASE
            )
        base = sender[max(common)]
        if newest.guid != base.guid:
            reason = f"the peer has {newest.name} after the common {base.name}"
            raise Diverged(volume, reason, _REBASE)
        after = max(common) + 1
    missing = [
        snapshot
        for snapshot in sender[after:]
        if snapshot.snap_group and (targets is None or snapshot.guid in targets)
    ]
    bases = [base, *missing]
    return tuple(SendDelta(volume, bases[n], target) for n, target in enumerate(missing))
