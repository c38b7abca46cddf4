"""Consistency groups: volumes that are snapped and replicated together."""

from __future__ import annotations

from nasfs.errors import NasError, Refused

from .coming_back import how_to_go_on, waits_since, why_it_waits
from .context import Node
from .engine import info
from .inventory import check_active
from .messages import GroupView, when
from .records import Group, VolumeRow
from .roles.progress import describe, how_to_finish
from .shares import staging
from .shares.merges import Merge, keep, merge_of
from .state import new_uuid
from .words import check_name, parse_volume

MAX_VOLUMES = 64


def make_group(node: Node, name: str, volumes: tuple[str, ...]) -> GroupView:
    """A new, active group in term 1.  Raises Failed, or Refused if a volume is in another."""
    check_name(name, "group")
    rows = [node.state.volume(parse_volume(text)) for text in volumes]
    _check_count(name, len(rows))
    group = Group(new_uuid(), name, "active", 1)
    with node.state.change():
        node.state.add_group(group)
        node.state.join_group(rows, group.uuid)
    node.note("group created", name, ", ".join(volumes))
    return group_view(node, group)


def add_members(node: Node, name: str, volumes: tuple[str, ...]) -> GroupView:
    """Raises Refused while the group is replicated: its volumes are agreed with the partner."""
    group = node.state.group(name)
    _check_unreplicated(node, group)
    _check_untranslated(node, group)
    rows = [node.state.volume(parse_volume(text)) for text in volumes]
    _check_count(name, len(node.state.members(group.uuid)) + len(rows))
    node.state.join_group(rows, group.uuid)
    node.note("group changed", name, f"added {', '.join(volumes)}")
    return group_view(node, group)


def remove_members(node: Node, name: str, volumes: tuple[str, ...]) -> GroupView:
    group = node.state.group(name)
    _check_unreplicated(node, group)
    _check_untranslated(node, group)
    rows = [node.state.volume(parse_volume(text)) for text in volumes]
    for row, text in zip(rows, volumes, strict=True):
        if row.group != group.uuid:
            raise Refused(f"volume {text} is not in group {name}")
    with node.state.change():
        for row in rows:
            node.state.leave_group(row.uuid)
    node.note("group changed", name, f"removed {', '.join(volumes)}")
    return group_view(node, group)


def destroy_group(node: Node, name: str) -> None:
    """Forget the group; its volumes and their snapshots stay.

    What a merge of the partner's shares made here is the node's own from then on.

    Raises:
        Refused: it is replicated, or it is the partner's, or owners of its files are translated.
    """
    group = node.state.group(name)
    _check_unreplicated(node, group)
    _check_untranslated(node, group)
    node.state.forget_group(group.uuid)
    keep(node, group.uuid, Merge())
    staging.forget(node, group.uuid)
    node.note("group destroyed", name)


def _check_count(name: str, count: int) -> None:
    if count > MAX_VOLUMES:
        raise Refused(f"group {name} would have {count} volumes, {MAX_VOLUMES} are allowed")


def _check_unreplicated(node: Node, group: Group) -> None:
    if node.bond.replication(group.uuid):
        raise Refused(
            f"group {group.name} is replicated to the partner",
            hint=f"end that first: nasfs replication delete {group.name}",
        )
    check_active(node, group)


def _check_untranslated(node: Node, group: Group) -> None:
    """Files of a volume that left the group, or came to it, would belong to other people."""
    if not merge_of(node, group.uuid).identities.is_empty:
        raise Refused(
            f"owners of files of group {group.name} are translated: their numbers are others here",
            hint=f"keep the group: nasfs identity list {group.name} shows the numbers",
        )


def group_views(node: Node) -> list[GroupView]:
    return [group_view(node, group) for group in node.state.groups()]


def group_view(node: Node, group: Group) -> GroupView:
    rows = node.state.members(group.uuid)
    newest = newest_snap_group(node, rows, passive=group.role == "passive")
    journal = node.bond.journal(group.uuid)
    return GroupView(
        name=group.name,
        uuid=group.uuid,
        role=group.role,
        term=group.term,
        volumes=tuple(str(node.state.volume_name(row)) for row in rows),
        last_snapshot=newest[0] if newest else None,
        last_snapshot_time=when(newest[1]) if newest else None,
        under_way=journal.kind if journal else "",
        next_step=describe(journal)[1] if journal else "",
        to_finish=how_to_finish(journal, group.name) if journal else "",
        is_original_primary=bool(group.home),
        waits=(waits := why_it_waits(node, group)),
        waits_since=when(waits_since(node, group)),
        to_go_on=how_to_go_on(group.name) if waits else "",
    )


def newest_snap_group(
    node: Node, rows: list[VolumeRow], *, passive: bool = False
) -> tuple[str, int] | None:
    """Name and time (ns) of the newest snap group that all *rows* have, or None.

    Of *passive* volumes, what they kept when they went back to a common one does not count.
    """
    common: dict[str, tuple[int, str]] | None = None
    for row in rows:
        try:
            found = info(node, row)
        except (NasError, OSError):
            return None
        snapshots = found.ancestors if passive else found.snapshots
        mine = {s.snap_group: (s.time_ns, s.name) for s in snapshots if s.snap_group}
        common = mine if common is None else {k: v for k, v in common.items() if k in mine}
    if not common:
        return None
    time_ns, name = max(common.values())
    return name, time_ns
