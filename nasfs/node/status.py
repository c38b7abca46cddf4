"""Everything at a glance, and what a person should look at."""

from __future__ import annotations

import nasfs

from . import disks, groups, inventory, pairing
from .context import MountPhase, Node
from .drills import drills
from .messages import EventView, GroupView, ReplicationView, StatusView, VolumeView, when
from .policy import schedules
from .policy.scheduler import Scheduler
from .sending.replication_views import SKEW_S, replication_views
from .sending.replicator import Replicator
from .shares import merges, share_travel


def status_view(node: Node, replicator: Replicator, scheduler: Scheduler) -> StatusView:
    """Volumes, groups, replications, policies, and sentences about what is wrong."""
    pair = pairing.pair_view(node)
    volumes = tuple(inventory.volume_views(node))
    group_views = tuple(groups.group_views(node))
    sends = tuple(replication_views(node, replicator))
    policies = tuple(schedules.schedule_views(node, scheduler))
    return StatusView(
        node=pair.node,
        version=nasfs.__version__,
        peer=pair.peer,
        volumes=volumes,
        groups=group_views,
        replications=sends,
        schedules=policies,
        attention=(
            *_attention(volumes, group_views, sends),
            *disks.attention(node),
            *schedules.attention(policies),
            *share_travel.attention(node),
            *merges.attention(node),
            *drills.attention(node),
        ),
    )


def _attention(
    volumes: tuple[VolumeView, ...],
    group_views: tuple[GroupView, ...],
    sends: tuple[ReplicationView, ...],
) -> list[str]:
    said = [
        f"volume {volume.name}: {volume.problem}"
        for volume in volumes
        if volume.problem and volume.mount_state != MountPhase.WAITING.value
    ]
    for group in group_views:
        if group.under_way:
            said.append(
                f"group {group.name}: a {group.under_way} is not finished; next: {group.next_step};"
                f" {group.to_finish}"
            )
        if group.waits:
            said.append(f"{group.waits}; it is not served; {group.to_go_on}")
        if group.role == "stale":
            said.append(f"group {group.name}: the partner has taken over; nothing is served here")
    for send in sends:
        if send.split:
            said.append(f"replication of {send.group} is split")
        elif send.paused:
            said.append(f"replication of {send.group} is paused")
        elif send.state == "stopped" or (send.state == "waiting" and send.attempts):
            said.append(f"replication of {send.group} is {send.state}: {send.reason}")
        if send.rpo.startswith("missed"):
            said.append(
                f"replication of {send.group}: its RPO of {send.rpo_s} s is {send.rpo};"
                f" why: nasfs replication explain {send.group}"
            )
        if abs(send.clock_skew_s) > SKEW_S:
            said.append(f"the partner's clock differs by {send.clock_skew_s} s: set both by NTP")
    return said


def event_views(node: Node, after: int, limit: int) -> list[EventView]:
    return [
        EventView(
            event.number, when(event.time_ns), event.actor, event.kind, event.subject, event.detail
        )
        for event in node.state.events(after, max(0, min(limit, 10_000)))
    ]
