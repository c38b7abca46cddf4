"""Failover: the plan of ``replication.roles``, executed step by step, resumed after a crash.

The plan and the number of its next step stand in node.db before a step begins.  Each step ends
in the same state when it is run again, so a crash at any point loses nothing: the command, given
again, goes on.
"""

from __future__ import annotations

import time
from functools import partial

import msgspec

from nasfs.errors import NasError, Refused
from nasfs.volume import Applier, Volume, VolumeBusy, open_volume
from replication.client import peer_status
from replication.endpoint import SnapshotRef
from replication.errors import PeerFailed, RefusedByPeer
from replication.roles import Action, GroupView, Plan, Role, Step, VolumeView, plan_failover

from .context import MountPhase, Node
from .drills import stop_if_any
from .engine import info
from .inventory import mount_state
from .messages import FailoverRequest, PlanView, ReadinessView, StepView, when
from .mountdir import is_free
from .pairing import connect_peer
from .receivers import take_over
from .records import Group, Journal, VolumeRow
from .services import Services, mount_volume

KIND = "failover"
PEER_S = 5.0
"""So long the partner may take to answer (seconds)."""
VOLUME_S = 30.0
"""So long a volume may be in somebody's hands before a step fails (seconds)."""


async def fail_over(services: Services, name: str, request: FailoverRequest) -> PlanView:
    """Make this node the primary of a group; goes on with what an earlier call left unfinished.

    Raises:
        Refused: the group is not passive here, nothing complete has arrived, the partner is
            alive, or the loss was not accepted.
        NasError: why a step failed; the same command goes on with it.
    """
    node = services.node
    group = node.state.group(name)
    async with services.lock(group.uuid):
        journal = node.bond.journal(group.uuid)
        if journal is not None:
            plan, done = msgspec.msgpack.decode(journal.body, type=Plan), journal.next_step
        else:
            plan, done = await services.run(_plan, group, request), 0
        if request.dry_run:
            return _view(plan, done)
        await services.run(stop_if_any, group.uuid, "a failover")
        if journal is None:
            await services.run(_begin, group, plan)
        for number, step in enumerate(plan.steps[done:], start=done):
            await _execute(services, group, step)
            node.bond.step_done(group.uuid, number + 1)
        node.bond.end_journal(group.uuid)
        node.note("failed over", name, f"term {plan.term}; {plan.losing}")
        return _view(plan, len(plan.steps))


def _plan(node: Node, group: Group, request: FailoverRequest) -> Plan:
    dry = request.dry_run
    return plan_failover(
        observe(node, group),
        force=request.force or dry,
        lose_unreplicated=request.lose_unreplicated or dry,
    )


def _begin(node: Node, group: Group, plan: Plan) -> None:
    """From here on the plan is carried out, whatever happens."""
    with node.state.change():
        if node.state.find_group(group.uuid) != group:
            raise Refused(f"the role of group {group.name} has just changed; look at it again")
        node.bond.begin_journal(Journal(group.uuid, KIND, msgspec.msgpack.encode(plan), 0))
    node.note("failover began", group.name, plan.losing)


def observe(node: Node, group: Group) -> GroupView:
    """What a planner may know of the group on this node."""
    volumes = []
    for row in node.state.members(group.uuid):
        snapshots = info(node, row).snapshots
        volumes.append(
            VolumeView(
                uuid=row.uuid,
                name=str(node.state.volume_name(row)),
                mountpoint=str(node.mountpoint(row)),
                mounted=mount_state(node, row).phase is MountPhase.MOUNTED,
                snapshots=tuple(
                    SnapshotRef(s.guid, s.name, s.time_ns, s.snap_group) for s in snapshots
                ),
            )
        )
    peer = node.bond.peer()
    return GroupView(
        group=group.name,
        role=Role(group.role),
        term=group.term,
        peer=peer.name if peer else "the partner",
        peer_reachable=_peer_answers(node, group),
        volumes=tuple(volumes),
        now_ns=time.time_ns(),
    )


def _peer_answers(node: Node, group: Group) -> bool:
    try:
        with connect_peer(node, timeout_s=PEER_S) as connection:
            peer_status(connection, group.uuid)
    except (RefusedByPeer, PeerFailed):
        return True  # it is alive; what it says about the group does not matter here
    except NasError:
        return False
    return True


async def _execute(services: Services, group: Group, step: Step) -> None:
    """One step.  Running it again ends in the same state."""
    node = services.node
    match step.action:
        case Action.STOP_RECEIVING:
            for row in node.state.members(group.uuid):
                stop = partial(take_over, node.places, row.uuid, wait_s=VOLUME_S)
                await services.run(lambda _, stop=stop: stop())
        case Action.ROLL_BACK:
            await services.run(_roll_back, step)
        case Action.SKIP_INODES:
            await services.run(_skip_inodes, step)
        case Action.TAKE_OVER:
            await services.run(_become_active, group.uuid, step.term)
        case Action.MOUNT:
            await mount_volume(services, node.state.volume_name(_find(node, step.volume)))


def _find(node: Node, volume_uuid: str) -> VolumeRow:
    row = node.state.find_volume(volume_uuid)
    if row is None:
        raise Refused("a volume of the plan is no longer here")
    return row


def _open(node: Node, volume_uuid: str) -> Volume:
    """The volume as its owner; waits for a receiver that is just letting go."""
    row = _find(node, volume_uuid)
    deadline = time.monotonic() + VOLUME_S
    while True:
        try:
            return open_volume(node.volume_path(row))
        except VolumeBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _roll_back(node: Node, step: Step) -> None:
    assert step.snapshot is not None, "a roll back has a snapshot"
    with _open(node, step.volume) as volume:
        # Not a mere rollback: the unfinished delta, if there is one, is forgotten as well.
        Applier(volume).reset(volume.snapshot(step.snapshot.guid).epoch)


def _skip_inodes(node: Node, step: Step) -> None:
    with _open(node, step.volume) as volume:
        volume.skip_inode_numbers()


def _become_active(node: Node, group_uuid: str, term: int) -> None:
    with node.state.change():
        group = node.state.find_group(group_uuid)
        if group is None:
            raise Refused("the group is no longer here")
        if (group.role, group.term) != (Role.FAILED_OVER.value, term):
            node.state.change_role(group, role=Role.FAILED_OVER.value, term=term)


def _view(plan: Plan, done: int) -> PlanView:
    steps = tuple(StepView(str(step), number < done) for number, step in enumerate(plan.steps))
    return PlanView(plan.group, plan.term, plan.losing, steps)


def readiness(node: Node, name: str) -> ReadinessView:
    """Whether a failover to this node would work now, and what it would lose.

    Raises:
        Refused: the group is not passive here.
    """
    group = node.state.group(name)
    if group.role != Role.PASSIVE.value:
        raise Refused(
            f"group {name} is {group.role} on this node",
            hint="readiness is asked where the group is passive: on its partner",
        )
    problems = []
    for row in node.state.members(group.uuid):
        try:
            info(node, row)
        except (NasError, OSError) as exc:
            problems.append(f"volume {node.state.volume_name(row)}: {exc}")
        if not is_free(node.mountpoint(row)):
            problems.append(f"mount point {node.mountpoint(row)} is busy")
    if problems:
        return ReadinessView(
            name, False, group.role, group.term, False, None, None, None, tuple(problems)
        )
    view = observe(node, group)
    newest = view.newest
    if newest is None:
        problems.append("no snap group has arrived completely yet")
    return ReadinessView(
        group=name,
        ready=not problems,
        role=group.role,
        term=group.term,
        peer_reachable=view.peer_reachable,
        last_snapshot=newest.name if newest else None,
        last_snapshot_time=when(newest.time_ns) if newest else None,
        age_s=(view.now_ns - newest.time_ns) // 1_000_000_000 if newest else None,
        problems=tuple(problems),
    )
