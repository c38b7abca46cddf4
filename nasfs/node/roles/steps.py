"""The steps of a change of roles that this node takes alone.

Each ends in the same state when it is taken again: a crash behind or within it loses nothing.
"""

from __future__ import annotations

from functools import partial

import trio

from nasfs.errors import Refused
from nasfs.volume import Applier
from replication.roles import Action, Role, Step

from ..context import Node
from ..receiving.receivers import take_over
from ..records import Group, Replication
from ..services import Services, begin_mounts, mount_volume
from ..shares.share_takeover import merge_staged
from . import group_rollback
from .opening import VOLUME_S, find_member, open_member
from .progress import Work


async def execute(services: Services, group: Group, work: Work, step: Step) -> None:
    """One step of this node alone.  Running it again ends in the same state."""
    node = services.node
    match step.action:
        case Action.STOP_RECEIVING:
            for row in node.state.members(group.uuid):
                stop = partial(take_over, node.places, row.uuid, wait_s=VOLUME_S)
                await trio.to_thread.run_sync(stop)
        case Action.ROLL_BACK:
            await services.run(_roll_back, work, step)
        case Action.SKIP_INODES:
            await services.run(_skip_inodes, work, step)
        case Action.TAKE_OVER:
            role = Role.ACTIVE if step.peer else Role.FAILED_OVER
            await services.run(_take_role, group.uuid, role, step.term)
            await services.run(merge_staged, group.uuid)
        case Action.REPLICATE:
            await services.run(_replicate, group, work)
            now = node.state.find_group(group.uuid)
            if now is not None and now.role == Role.ACTIVE.value:  # else it could but fail
                services.replicator.poke()
        case Action.BECOME_ACTIVE:
            await services.run(_take_role, group.uuid, Role.ACTIVE, step.term)
            services.replicator.ask(group.uuid)
        case Action.MOUNT:
            mounts = (one for one in work.plan.steps if one.action is Action.MOUNT)
            begin_mounts(services, [one.volume for one in mounts])
            await mount_volume(services, node.state.volume_name(find_member(node, step.volume)))
        case Action.KEEP:
            async with services.scheduler.scope(group.uuid):
                await services.run(group_rollback.keep, group, work.plan)
        case Action.GO_BACK:
            await services.run(group_rollback.go_back, group, work.plan, step)
        case Action.SEAL:
            async with services.scheduler.scope(group.uuid):
                await services.run(group_rollback.seal, group, work.plan)


def _roll_back(node: Node, work: Work, step: Step) -> None:
    with open_member(node, step.volume) as volume:
        if step.snapshot is not None:
            target = volume.snapshot(step.snapshot.guid)
        else:
            assert work.drained is not None, "the partner has handed over"
            last = work.drained.snap_group
            target = next(s for s in volume.snapshots() if s.snap_group == last)
        # Not a mere rollback: the unfinished delta, if there is one, is forgotten as well.
        Applier(volume).reset(target.epoch)


def _skip_inodes(node: Node, work: Work, step: Step) -> None:
    with open_member(node, step.volume) as volume:
        if work.drained is not None:
            volume.advance_inode_numbers(work.drained.next_inodes.get(step.volume, 0))
        else:
            volume.skip_inode_numbers()


def _take_role(node: Node, group_uuid: str, role: Role, term: int) -> None:
    with node.state.change():
        group = node.state.find_group(group_uuid)
        if group is None:
            raise Refused("the group is no longer here")
        if (group.role, group.term) != (role.value, term):
            node.state.change_role(group, role=role.value, term=term)


def _replicate(node: Node, group: Group, work: Work) -> None:
    """The other direction, as it was replicated before."""
    answer = work.drained or work.rejoined
    assert answer is not None, "the partner has taken part"
    terms = answer.terms
    made = Replication(
        group.uuid, terms.pool, terms.provision, terms.max_snapshots, terms.compression, 0,
        terms.priority, terms.rate, terms.windows, terms.max_lag_s, terms.rpo_s,
        lanes=terms.lanes, encryption=terms.encryption,
    )  # fmt: skip
    if node.bond.replication(group.uuid) is None:
        node.bond.add_replication(made, dict(terms.names))
