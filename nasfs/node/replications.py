"""Replications: how a group is sent to the partner, and how that stands."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from nasfs.errors import ConfigError, Failed, NasError, Refused
from replication.client import create_replication, peer_status
from replication.local import VolumeSource
from replication.plan import plan_deltas

from .context import Node
from .engine import info
from .inventory import check_active
from .messages import DeltaView, Nothing, ReplicationCreate, ReplicationView, when
from .outgoing import COMPRESSION_LEVELS, group_spec
from .pairing import connect_peer
from .records import Group, Replication, Transfer
from .replicator import Attempts, Replicator
from .reports import Running
from .services import Services
from .words import check_name, check_provision, parse_volume

MAX_SNAPSHOTS = 1000

Params = Mapping[str, str]


async def create(services: Services, body: ReplicationCreate, params: Params) -> ReplicationView:
    """Agree with the partner, then remember; nothing is remembered if the partner says no."""
    group, made = await services.run(_create, body)
    services.replicator.poke()
    return await services.run(replication_view, services.replicator, group, made)


def _create(node: Node, body: ReplicationCreate) -> tuple[Group, Replication]:
    group = node.state.group(body.group)
    check_active(node, group)
    if not node.state.members(group.uuid):
        raise Refused(f"group {group.name} has no volumes")
    check_name(body.to_pool, "pool")
    check_provision(body.provision)
    if body.compression not in COMPRESSION_LEVELS:
        raise ConfigError(f"{body.compression!r} is no compression", hint="off, auto or 1 to 9")
    if not 1 <= body.max_snapshots <= MAX_SNAPSHOTS:
        raise ConfigError(f"the partner can keep 1 to {MAX_SNAPSHOTS} snapshots of a volume")
    names = _remote_names(node, group, body.volumes)
    made = Replication(
        group.uuid, body.to_pool, body.provision, body.max_snapshots, body.compression, 0
    )
    if node.bond.replication(group.uuid):
        raise Refused(
            f"group {group.name} is replicated already",
            hint=f"nasfs replication show {group.name}",
        )
    with connect_peer(node) as connection:
        create_replication(connection, group_spec(node, group, made, names))
    node.bond.add_replication(made, names)
    node.note("replication created", group.name, f"to pool {body.to_pool}")
    return group, made


def _remote_names(node: Node, group: Group, asked: dict[str, str]) -> dict[str, str]:
    """Volume UUID to its name on the partner.  Raises ConfigError for a volume not in the group."""
    names = {row.uuid: row.name for row in node.state.members(group.uuid)}
    for text, remote in asked.items():
        row = node.state.volume(parse_volume(text))
        if row.uuid not in names:
            raise ConfigError(f"volume {text} is not in group {group.name}")
        names[row.uuid] = check_name(remote.rpartition("/")[2], "volume")
    if len(set(names.values())) < len(names):
        raise ConfigError(
            "two volumes would have the same name on the partner",
            hint="give one another: --volume LOCAL=REMOTE",
        )
    return names


def _made(node: Node, name: str) -> tuple[Group, Replication]:
    group = node.state.group(name)
    made = node.bond.replication(group.uuid)
    if made is None:
        raise Failed(
            f"group {name} is not replicated from this node",
            hint=f"nasfs replication create {name} --to-pool POOL",
        )
    return group, made


async def show(services: Services, body: Nothing, params: Params) -> ReplicationView:
    """How it stands."""
    group, made = await services.run(_made, params["group"])
    return await services.run(replication_view, services.replicator, group, made)


async def run_now(services: Services, body: Nothing, params: Params) -> ReplicationView:
    """Send what is waiting; the answer names the attempt that will have seen all of it."""
    group, made = await services.run(_made, params["group"])
    check_active(services.node, group)
    if made.paused:
        raise Refused(
            f"replication of {group.name} is paused",
            hint=f"nasfs replication resume {group.name}",
        )
    asked = services.replicator.ask(group.uuid)
    view = await services.run(replication_view, services.replicator, group, made)
    return replace(view, asked_attempt=asked)


def ask_if_replicated(services: Services, name: str) -> None:
    """After a snap group was taken: it goes to the partner, unless that is paused."""
    ask_if_wanted(services.node, services.replicator, services.node.state.group(name).uuid)


def ask_if_wanted(node: Node, replicator: Replicator, group_uuid: str) -> None:
    """The same, by the group's UUID."""
    made = node.bond.replication(group_uuid)
    if made is not None and not made.paused:
        replicator.ask(group_uuid)


async def pause(services: Services, body: Nothing, params: Params) -> ReplicationView:
    """Stop sending; what the partner has durably is not sent again."""
    return await _set_paused(services, params["group"], True)


async def resume(services: Services, body: Nothing, params: Params) -> ReplicationView:
    return await _set_paused(services, params["group"], False)


async def _set_paused(services: Services, name: str, paused: bool) -> ReplicationView:
    group, made = await services.run(_made, name)
    services.node.bond.set_paused(group.uuid, paused)
    services.node.note("replication " + ("paused" if paused else "resumed"), name)
    services.replicator.poke()
    made = replace(made, paused=int(paused))
    return await services.run(replication_view, services.replicator, group, made)


async def delete(services: Services, body: Nothing, params: Params) -> None:
    """Stop replicating; the partner's volumes and snapshots stay as they are."""
    group, _ = await services.run(_made, params["group"])
    services.node.bond.delete_replication(group.uuid)
    services.node.note("replication deleted", group.name)
    services.replicator.poke()


def delta(node: Node, name: str) -> list[DeltaView]:
    """What a run would send now, from the deltas alone."""
    group, _ = _made(node, name)
    with connect_peer(node) as connection:
        status = peer_status(connection, group.uuid)
    theirs = {volume.uuid: volume.snapshots for volume in status.volumes}
    views = []
    for row in node.state.members(group.uuid):
        source = VolumeSource(node.volume_path(row))
        try:
            label = str(node.state.volume_name(row))
            for step in plan_deltas(label, source.snapshots(), theirs.get(row.uuid, ())):
                base = step.base.guid if step.base else None
                total = source.total(base, step.target.guid)
                base_name = step.base.name if step.base else None
                views.append(DeltaView(label, base_name, step.target.name, total.rows, total.bytes))
        finally:
            source.close()
    return views


def replication_views(node: Node, replicator: Replicator) -> list[ReplicationView]:
    views = []
    for made in node.bond.replications():
        group = node.state.find_group(made.group)
        if group is not None:
            views.append(replication_view(node, replicator, group, made))
    return sorted(views, key=lambda view: view.group)


def replication_view(
    node: Node, replicator: Replicator, group: Group, made: Replication
) -> ReplicationView:
    attempts = replicator.attempts.get(group.uuid) or Attempts()
    running = attempts.running or Running()
    transfer = node.bond.transfer(group.uuid) or Transfer(
        group.uuid, "idle", "", "", 0, 0, 0, 0, 0, 0, 0, 0.0
    )
    rows = node.state.members(group.uuid)
    names = node.bond.remote_names()
    state = "running" if attempts.under_way else transfer.state
    if state == "running" and not attempts.under_way:
        state = "waiting"  # a daemon that was killed left it so
    active = attempts.under_way
    return ReplicationView(
        group=group.name,
        role=group.role,
        to_pool=made.to_pool,
        provision=made.provision,
        max_snapshots=made.max_snapshots,
        compression=made.compression,
        paused=bool(made.paused),
        remote_volumes={
            str(node.state.volume_name(row)): f"{made.to_pool}/{names.get(row.uuid, row.name)}"
            for row in rows
        },
        state=state,
        reason=transfer.reason,
        hint=transfer.hint,
        exit_code=transfer.exit_code,
        attempts=transfer.attempts,
        finished_attempts=attempts.finished,
        asked_attempt=0,
        last_success=when(transfer.done_ns),
        waiting_snapshots=_waiting(node, group, transfer.done_ns),
        snapshot=running.snapshot,
        phase=running.phase,
        rows_done=running.rows_done if active else transfer.rows,
        rows_total=running.rows_total if active else transfer.rows,
        bytes_done=running.bytes_done if active else transfer.bytes,
        bytes_total=running.bytes_total if active else transfer.bytes,
        wire_bytes=running.wire_bytes if active else transfer.wire_bytes,
        seconds=running.seconds if active else transfer.seconds,
    )


def _waiting(node: Node, group: Group, since_ns: int) -> int:
    """Snap groups that were taken after the latest success."""
    rows = node.state.members(group.uuid)
    try:
        snapshots = info(node, rows[0]).snapshots if rows else ()
    except (NasError, OSError):
        return 0
    return sum(bool(s.snap_group) and s.time_ns > since_ns for s in snapshots)
