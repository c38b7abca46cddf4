"""Snapshots of volumes and groups: take, list, rename, hold, release, destroy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from nasfs.errors import ConfigError, NasError, Refused
from nasfs.volume import (
    BLOCK,
    Access,
    NoSuchSnapshot,
    Snapshot,
    SnapshotExists,
    Volume,
    open_volume,
)

from .context import Node
from .engine import change, info, reclaim_all
from .inventory import check_active, check_writable
from .messages import HoldView, SnapshotView, when
from .records import HOLDER, Group, VolumeRow
from .roles.progress import change_under_way
from .snap_groups import take_snap_group
from .state import new_uuid
from .words import Target, check_name, parse_snapshot, parse_target


def take_snapshot(node: Node, text: str) -> list[SnapshotView]:
    """POOL/VOLUME@NAME or GROUP@NAME: durable and complete when it returns.

    Raises:
        SnapshotExists: the name is taken (nothing was made).
        Refused: the group is not active here.
    """
    target = parse_snapshot(text)
    if target.volume:
        row = node.state.volume(target.volume)
        check_writable(node, row)
        _seal(node, row, target.snapshot, snap_group="")
        rows, held_s = [row], 0.0
    else:
        rows, held_s = _take_snap_group(node, node.state.group(target.group), target.snapshot)
    node.note("snapshot taken", target, f"changes held for {held_s:.3f} s" if held_s else "")
    named = f"@{target.snapshot}"
    return [view for row in rows for view in _views(node, row) if view.name.endswith(named)]


def _take_snap_group(node: Node, group: Group, name: str) -> tuple[list[VolumeRow], float]:
    """The members, and how long changes were held (seconds)."""
    check_active(node, group)
    if busy := change_under_way(node, group):
        raise Refused(busy, hint="nasfs status tells how to finish it")
    return seal_members(node, group, name)


def seal_members(node: Node, group: Group, name: str) -> tuple[list[VolumeRow], float]:
    """The same, whatever the role of the group is and whatever is under way with it."""
    rows = node.state.members(group.uuid)
    if not rows:
        raise Refused(f"group {group.name} has no volumes")
    for row in rows:
        if any(snapshot.name == name for snapshot in info(node, row).snapshots):
            raise SnapshotExists(f"{node.state.volume_name(row)} has a snapshot {name} already")
    if len(rows) == 1:
        _seal(node, rows[0], name, snap_group=new_uuid())
        return rows, 0.0
    return rows, take_snap_group(node, group, rows, name)


def find_snap_group(node: Node, group: Group, name: str) -> str:
    """The GUID of the snap group of that name, if all volumes have it; else empty."""
    found = [
        {s.snap_group for s in info(node, row).snapshots if s.name == name}
        for row in node.state.members(group.uuid)
    ]
    common = set.intersection(*found) if found else set()
    return common.pop() if common else ""


def fresh_group_name(node: Node, group: Group, what: str) -> str:
    """A name that no snapshot of the group has: ``WHAT-2026.11.23-07.15.00`` (UTC)."""
    taken = {s.name for row in node.state.members(group.uuid) for s in info(node, row).snapshots}
    name = base = f"{what}-{datetime.now(UTC):%Y.%m.%d-%H.%M.%S}"
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name


def _seal(node: Node, row: VolumeRow, name: str, *, snap_group: str) -> None:
    change(
        node,
        row,
        "snapshot",
        {"name": name, "snap_group": snap_group},
        lambda volume: volume.seal(name, snap_group=snap_group),
    )


def list_snapshots(node: Node, text: str) -> list[SnapshotView]:
    """Of everything (empty *text*), of a volume or of a group; oldest first for each volume."""
    rows = node.state.volumes()
    if text:
        target = parse_target(text)
        if target.snapshot:
            raise ConfigError(f"{text!r}: name a volume or a group, without @SNAPSHOT")
        rows = members(node, target)
        return [view for row in rows for view in _views(node, row)]
    views = []
    for row in rows:
        try:
            views += _views(node, row)
        except NasError:
            continue  # `volume list` tells what is wrong with it
    return views


def members(node: Node, target: Target) -> list[VolumeRow]:
    """The volume, or the group's volumes, that a target names."""
    if target.volume:
        return [node.state.volume(target.volume)]
    return node.state.members(node.state.group(target.group).uuid)


def find_snapshot(node: Node, text: str) -> tuple[VolumeRow, Snapshot]:
    """POOL/VOLUME@NAME.  Raises NoSuchSnapshot, or ConfigError for a group's."""
    target = parse_snapshot(text)
    if target.volume is None:
        raise ConfigError(f"{text!r}: name one volume's snapshot, POOL/VOLUME@SNAPSHOT")
    row = node.state.volume(target.volume)
    for snapshot in info(node, row).snapshots:
        if snapshot.name == target.snapshot:
            return row, snapshot
    raise NoSuchSnapshot(
        f"volume {target.volume} has no snapshot {target.snapshot}",
        hint=f"nasfs snapshot list {target.volume} shows them",
    )


def show_snapshot(node: Node, text: str) -> SnapshotView:
    """One snapshot, with its holds."""
    row, snapshot = find_snapshot(node, text)
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        holds = tuple(HoldView(hold.owner, hold.reason) for hold in volume.holds(snapshot.name))
        own = volume.own_blocks()
    return _view(str(node.state.volume_name(row)), snapshot, own, holds)


def rename_snapshot(node: Node, text: str, new_name: str) -> SnapshotView:
    """Another label for the same snapshot; a snap group's members are renamed together."""
    check_name(new_name, "snapshot")
    row, snapshot = find_snapshot(node, text)
    check_writable(node, row)
    args = {"name": snapshot.name, "new_name": new_name}
    change(
        node,
        row,
        "snapshot_rename",
        args,
        lambda volume: volume.rename_snapshot(snapshot.name, new_name),
    )
    node.note("snapshot renamed", text, f"to {new_name}")
    return show_snapshot(node, f"{node.state.volume_name(row)}@{new_name}")


def hold_snapshot(node: Node, text: str, owner: str, reason: str) -> SnapshotView:
    """Nobody deletes the snapshot until *owner* releases it."""
    row, snapshot = find_snapshot(node, text)
    args: dict[str, Any] = {"name": snapshot.name, "owner": owner, "reason": reason}
    change(node, row, "hold", args, lambda volume: volume.hold(snapshot.name, owner, reason))
    node.note("snapshot held", text, f"by {owner}")
    return show_snapshot(node, text)


def release_snapshot(node: Node, text: str, owner: str) -> SnapshotView:
    """Releasing what is not held changes nothing.

    Raises:
        Refused: replication holds it and goes on: the next delta is computed from it.
    """
    row, snapshot = find_snapshot(node, text)
    if owner == HOLDER and row.group and node.bond.replication(row.group):
        raise Refused(
            f"{text} is held for the next delta to the partner",
            hint="end the replication first: nasfs replication delete",
        )
    args = {"name": snapshot.name, "owner": owner}
    change(node, row, "release", args, lambda volume: volume.release_hold(snapshot.name, owner))
    node.note("snapshot released", text, f"by {owner}")
    return show_snapshot(node, text)


def destroy_snapshots(node: Node, texts: tuple[str, ...], *, dry_run: bool) -> list[SnapshotView]:
    """All of them or, if one is not there or is held, none.

    Raises:
        Refused: held, or the newest common snapshot that replication stands on.
    """
    doomed: dict[str, tuple[VolumeRow, list[Snapshot]]] = {}
    for text in texts:
        row, snapshot = find_snapshot(node, text)
        doomed.setdefault(row.uuid, (row, []))[1].append(snapshot)
    views = []
    for row, snapshots in doomed.values():
        _check_received(node, row, snapshots)
        name = str(node.state.volume_name(row))
        with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
            own = volume.own_blocks()
            for snapshot in snapshots:
                owners = [hold.owner for hold in volume.holds(snapshot.name)]
                if owners:
                    raise Refused(
                        f"{name}@{snapshot.name} is held by " + ", ".join(owners),
                        hint="replication releases it when the partner has a newer one"
                        if owners == [HOLDER]
                        else "release the hold first: nasfs snapshot release --owner OWNER",
                    )
                views.append(_view(name, snapshot, own))
    if not dry_run:
        for row, snapshots in doomed.values():
            _destroy(node, row, [snapshot.name for snapshot in snapshots])
        node.note("snapshots destroyed", ", ".join(texts))
    return views


def _check_received(node: Node, row: VolumeRow, doomed: list[Snapshot]) -> None:
    """Raises Refused for the newest snapshot of a passive volume: deltas and failover need it."""
    leased = node.drills.leased(row.uuid)
    for snapshot in doomed:
        if snapshot.guid in leased:
            name = f"{node.state.volume_name(row)}@{snapshot.name}"
            raise Refused(f"{name} can't be destroyed: {leased[snapshot.guid]}")
    group = node.state.find_group(row.group) if row.group else None
    if group is not None and group.role == "passive":
        newest = info(node, row).ancestors[-1:]  # not what it kept when it went back to that
        if newest and newest[0] in doomed:
            raise Refused(
                f"{node.state.volume_name(row)}@{newest[0].name} is the newest snapshot that has"
                " arrived; a failover goes back to it, and the next delta begins there"
            )


def _destroy(node: Node, row: VolumeRow, names: list[str]) -> None:
    def direct(volume: Volume) -> None:
        for name in names:
            volume.destroy_snapshot(name)
        reclaim_all(volume)

    change(node, row, "snapshot_destroy", {"names": names}, direct)


def _views(node: Node, row: VolumeRow) -> list[SnapshotView]:
    """All snapshots of a volume, oldest first."""
    name = str(node.state.volume_name(row))
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        own = volume.own_blocks()
        return [_view(name, snapshot, own) for snapshot in volume.snapshots()]


def _view(
    volume: str, snapshot: Snapshot, own: Mapping[int, int], holds: tuple[HoldView, ...] = ()
) -> SnapshotView:
    alone = own.get(snapshot.epoch, 0)
    return SnapshotView(
        name=f"{volume}@{snapshot.name}",
        volume=volume,
        guid=snapshot.guid,
        time=when(snapshot.time_ns),
        snap_group=snapshot.snap_group,
        number=snapshot.epoch,
        own=alone * BLOCK,
        shared=(snapshot.blocks - alone) * BLOCK,
        holds=holds,
    )
