"""Which deltas bring the peer up to date: two histories in, steps out.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from .endpoint import SnapshotRef
from .errors import Diverged


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
            raise Diverged(volume, f"no snapshot is common; the peer's newest is {newest.name}")
        base = sender[max(common)]
        if newest.guid != base.guid:
            raise Diverged(volume, f"the peer has {newest.name} after the common {base.name}")
        after = max(common) + 1
    missing = [
        snapshot
        for snapshot in sender[after:]
        if snapshot.snap_group and (targets is None or snapshot.guid in targets)
    ]
    bases = [base, *missing]
    return tuple(SendDelta(volume, bases[n], target) for n, target in enumerate(missing))
