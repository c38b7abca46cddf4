"""The steps of a group's rollback: keep what is there, go back volume by volume, seal.

Volumes stay mounted: what a program sees that has files open is told in docs/snapshots.md.  They
do not go back at one instant, so what is written between the snap group before and a volume's own
going back is kept by a snapshot of that volume alone.
"""

from __future__ import annotations

from operator import methodcaller

from nasfs.volume import NoSuchSnapshot, Volume
from replication.roles import Plan, Step

from ..context import Node
from ..engine import change, info
from ..records import Group, VolumeRow
from ..snapshots import find_snap_group, seal_members
from ..versions import have_done
from .opening import find_member

OWNER = "rollback"
"""Of the holds on the snapshots to go back to, until that is done."""


def kept_as(plan: Plan) -> str:
    """The name of the snap group that keeps what is there."""
    return f"before-{plan.token}"


def keep(node: Node, group: Group, plan: Plan) -> None:
    """The snap group before, and holds on the one to go back to."""
    for step in _going_back(plan):
        row = find_member(node, step.volume)
        name, reason = _name(node, row, step), "the group goes back to it"
        args = {"name": name, "owner": OWNER, "reason": reason}
        change(node, row, "hold", args, methodcaller("hold", name, OWNER, reason))
    if not find_snap_group(node, group, kept_as(plan)):
        seal_members(node, group, kept_as(plan))


def go_back(node: Node, group: Group, plan: Plan, step: Step) -> None:
    """One volume; done if the snapshot before is left aside already."""
    row = find_member(node, step.volume)
    before = find_snap_group(node, group, kept_as(plan))
    kept = next(s for s in info(node, row).snapshots if s.snap_group == before)
    if all(snapshot.guid != kept.guid for snapshot in info(node, row).ancestors):
        return
    assert step.snapshot is not None, "going back has a snapshot"
    target, late = step.snapshot.guid, f"{kept_as(plan)}-late"

    def direct(volume: Volume) -> None:
        epoch = volume.snapshot(target).epoch
        if volume.changed_since(kept.guid):
            volume.seal(late)
        volume.rollback(epoch)

    args = {"name": target, "keep_as": late, "kept": kept.guid}
    have_done(node, row, "rollback", args, direct)


def seal(node: Node, group: Group, plan: Plan) -> None:
    """The snap group after, with which the partner goes back; and the holds go."""
    after = f"after-{plan.token}"
    if not find_snap_group(node, group, after):
        seal_members(node, group, after)
    for step in _going_back(plan):
        row = find_member(node, step.volume)
        name = _name(node, row, step)
        args = {"name": name, "owner": OWNER}
        change(node, row, "release", args, methodcaller("release_hold", name, OWNER))


def kept(node: Node, group: Group, plan: Plan) -> list[str]:
    """What keeps what was there before."""
    found = [f"{group.name}@{kept_as(plan)}"]
    for row in node.state.members(group.uuid):
        if any(s.name == f"{kept_as(plan)}-late" for s in info(node, row).snapshots):
            found.append(f"{node.state.volume_name(row)}@{kept_as(plan)}-late")
    return found


def _going_back(plan: Plan) -> list[Step]:
    return [step for step in plan.steps if step.snapshot is not None]


def _name(node: Node, row: VolumeRow, step: Step) -> str:
    """Of the snapshot to go back to, whatever it is called now."""
    assert step.snapshot is not None, "going back has a snapshot"
    for snapshot in info(node, row).snapshots:
        if snapshot.guid == step.snapshot.guid:
            return snapshot.name
    raise NoSuchSnapshot(
        f"{node.state.volume_name(row)} has no snapshot {step.snapshot.name} any more"
    )
