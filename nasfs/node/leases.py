"""Replication's holds: what is on its way, and the newest snap group that both sides have.

Each names its owner and its reason.  They are renewed by every attempt, and what an attempt does
not need any more it releases; parting the sites, or deleting the replication, does that as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nasfs.volume import Access, Hold, Snapshot, Volume, open_volume

from .context import Node
from .engine import change
from .records import HOLDER, VolumeRow


def hold(node: Node, row: VolumeRow, snapshots: Iterable[Snapshot], reason: str) -> None:
    """Nobody destroys these."""
    for snapshot in snapshots:
        args = {"name": snapshot.name, "owner": HOLDER, "reason": reason}
        change(node, row, "hold", args, _holder(snapshot.name, reason))


def release(node: Node, row: VolumeRow, snapshots: Iterable[Snapshot]) -> None:
    """Replication needs these no more."""
    for snapshot in snapshots:
        args = {"name": snapshot.name, "owner": HOLDER}
        change(node, row, "release", args, _releaser(snapshot.name))


def older(snapshots: Sequence[Snapshot], common: str | None) -> Sequence[Snapshot]:
    """What lies before that snap group, which both sides have: it is not needed any more."""
    names = [snapshot.snap_group for snapshot in snapshots]
    return snapshots[: names.index(common)] if common in names else ()


def release_but(node: Node, row: VolumeRow, common: str | None) -> None:
    """Only that snap group stays held (None: nothing)."""
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        others = [snapshot for snapshot in volume.snapshots() if snapshot.snap_group != common]
        held = _ours(volume.all_holds())
    release(node, row, [snapshot for snapshot in others if snapshot.guid in held])


def held_by_replication(node: Node, row: VolumeRow) -> bool:
    """Whether replication holds any snapshot of a volume."""
    return bool(_ours(_holds(node, row)))


def _holds(node: Node, row: VolumeRow) -> dict[str, list[Hold]]:
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        return volume.all_holds()


def _ours(holds: dict[str, list[Hold]]) -> set[str]:
    return {guid for guid, found in holds.items() if any(hold.owner == HOLDER for hold in found)}


def _holder(name: str, reason: str) -> Callable[[Volume], None]:
    return lambda volume: volume.hold(name, HOLDER, reason)


def _releaser(name: str) -> Callable[[Volume], None]:
    return lambda volume: volume.release_hold(name, HOLDER)
