"""The end of a replication on one side: its copies become ordinary volumes, its holds go.

A copy that receives is in the middle of something nearly always: it goes back to the newest snap
group that is complete, as in a failover, before anybody may write to it.  While that is done, the
journal of kind `RELEASE` keeps receivers away; after a crash the same command goes on.
"""

from __future__ import annotations

from functools import partial

import trio

from nasfs.errors import Failed, Refused
from nasfs.volume import Applier, Volume

from ..context import Node
from ..drills.drill_table import HOLDER as TEST_HOLDER
from ..drills.drills import stop_if_any
from ..engine import info
from ..leases import held_by_replication, release_but
from ..receiving.receivers import take_over
from ..records import HOLDER, RELEASE, Group, Journal, VolumeRow
from ..sending.outgoing import complete, grouped
from ..services import Services
from ..shares import staging
from .opening import VOLUME_S, open_member
from .progress import describe, how_to_finish

SENDER_S = 60.0
"""So long the sender of a group may take to end (seconds)."""


def check_free_to_end(node: Node, group: Group) -> None:
    """Raises Refused while roles change."""
    journal = node.bond.journal(group.uuid)
    if journal is not None and journal.kind != RELEASE:
        raise Refused(
            f"group {group.name}: {describe(journal)[0]}", hint=how_to_finish(journal, group.name)
        )


def plan_end(node: Node, group: Group) -> list[str]:
    """What `end_here` does, in words."""
    rows = node.state.members(group.uuid)
    names = ", ".join(str(node.state.volume_name(row)) for row in rows) or "no volume"
    if group.role != "passive":
        told = ["send nothing any more, and release replication's holds"]
        if group.role != "active":
            told.append(f"group {group.name}, which is {group.role}, becomes active")
        return told
    snapshots = [grouped(info(node, row).ancestors) for row in rows]
    whole = complete(snapshots)
    back = f"go back to @{snapshots[0][whole[-1]].name}" if whole else "nothing whole has arrived"
    return [f"{names}: {back}; ordinary volumes from then on, in no group"]


async def end_here(services: Services, group_uuid: str, *, peer_has_all: bool) -> list[str]:
    """This side's part; what was done, in words.  Again, after a crash, does the rest.

    Args:
        peer_has_all: what has not arrived whole is on the partner: it need not be kept here.

    Raises:
        Refused: roles are changing.
        NasError: a step failed; the same again goes on.
    """
    async with services.lock(group_uuid):
        group = services.node.state.find_group(group_uuid)
        if group is None:
            return []
        check_free_to_end(services.node, group)
        told = await services.run(plan_end, group)
        if group.role == "passive":
            await _release(services, group, peer_has_all=peer_has_all)
        else:
            await _stop_sending(services, group)
    services.node.note("replication ended", group.name, "; ".join(told))
    return told


async def _stop_sending(services: Services, group: Group) -> None:
    node = services.node
    with node.state.change():
        node.bond.delete_replication(group.uuid)
        node.bond.delete_reception(group.uuid)
        if group.role != "active":  # it is nobody's but ours from now on
            node.state.change_role(group, role="active", term=group.term)
        node.state.come_home(group.uuid)
    services.replicator.poke()
    services.supervisor.poke()
    with trio.move_on_after(SENDER_S):
        await _until_sender_ends(services, group)
    await services.run(release_holds, group)


async def _until_sender_ends(services: Services, group: Group) -> None:
    """Else it would hold again what is being released."""
    while True:
        if not services.replicator.of(group.uuid).under_way:
            return
        await trio.sleep(0.05)


def release_holds(node: Node, group: Group) -> None:
    """Replication's, on all volumes of a group that is sent no more."""
    for row in node.state.members(group.uuid):
        release_but(node, row, None)


async def _release(services: Services, group: Group, *, peer_has_all: bool) -> None:
    node = services.node
    if node.bond.journal(group.uuid) is None:
        node.bond.begin_journal(Journal(group.uuid, RELEASE, b"", 0))
    await services.run(stop_if_any, group.uuid, "the end of the replication")
    rows = node.state.members(group.uuid)
    for row in rows:
        stop = partial(take_over, node.places, row.uuid, wait_s=VOLUME_S)
        await trio.to_thread.run_sync(stop)
    await services.run(_go_back, rows, peer_has_all)
    await services.run(staging.forget, group.uuid)
    node.state.forget_group(group.uuid)


def _go_back(node: Node, rows: list[VolumeRow], peer_has_all: bool) -> None:
    snapshots = [grouped(info(node, row).ancestors) for row in rows]
    whole = complete(snapshots)
    for row, mine in zip(rows, snapshots, strict=True):
        with open_member(node, row.uuid) as volume:
            if whole:
                _settle(volume, mine[whole[-1]].guid)
            elif found := volume.ancestors():
                _settle(volume, found[-1].guid)
            elif peer_has_all and not volume.snapshots():
                Applier(volume).reset(None)
            _release_all(volume)


def _settle(volume: Volume, guid: str) -> None:
    # Not a mere rollback: the unfinished delta, if there is one, is forgotten as well.
    Applier(volume).reset(volume.snapshot(guid).epoch)
    volume.skip_inode_numbers()


def _release_all(volume: Volume) -> None:
    for guid, holds in volume.all_holds().items():
        for hold in holds:
            if hold.owner in (HOLDER, TEST_HOLDER):
                volume.release_hold_nowait(volume.snapshot(guid).name, hold.owner)
    volume.commit()


def tidy(node: Node, group: Group) -> bool:
    """Of a group that is not replicated: release what a crash may have left; whether there was."""
    rows = node.state.members(group.uuid)
    if not any(held_by_replication(node, row) for row in rows):
        return False
    release_holds(node, group)
    return True


def tidy_all(node: Node) -> None:
    """The same for all groups, when nothing is replicated any more."""
    for group in node.state.groups():
        if group.role == "active" and node.bond.replication(group.uuid) is None:
            tidy(node, group)


def must_exist(node: Node, name: str) -> Group:
    """A group that is replicated, in either direction, or was until a moment ago.

    Raises:
        Failed: it is not.
    """
    group = node.state.group(name)
    related = (
        node.bond.replication(group.uuid) is not None
        or group.role != "active"
        or node.bond.journal(group.uuid) is not None
    )
    if not related and not tidy(node, group):
        raise Failed(
            f"group {name} is not replicated",
            hint=f"nasfs replication create {name} --to-pool POOL",
        )
    return group
