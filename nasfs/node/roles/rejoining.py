"""Becoming the secondary of who has taken over: the old primary's side of a failback join.

Each volume goes back to the newest snapshot that both nodes have.  What only this node has by
then, its live state and the snapshots after the common one, is kept: the live state as a snapshot
of its own, held.  Nothing of it is ever sent, and retention does not touch it.
"""

from __future__ import annotations

from functools import partial

import msgspec
import trio

from nasfs.errors import NasError, Refused
from nasfs.volume import Applier, Snapshot, Volume
from replication import handover
from replication.handover import Rejoin, Rejoined, Seat, check_rejoin
from replication.roles import Role

from ..context import Node
from ..engine import info
from ..receiving.receivers import take_over
from ..records import REJOIN, Group, Journal, VolumeRow
from ..services import Services, end_mount
from ..shares.sharing import activate
from ..snapshots import fresh_group_name
from .opening import VOLUME_S, open_member
from .progress import Rejoining
from .yielding import become_passive, take_back, terms_of

OWNER = "divergence"
"""Of the holds on what only this node has."""


async def rejoin(services: Services, group: Group, body: bytes) -> bytes:
    """Keep what only this node has, go back to the common snapshots, become passive.

    Raises:
        Fenced, Refused: who asks is not ahead of this node, or a common snapshot is not here.
        NasError: a step failed; nothing is lost, and the same question goes on.
    """
    ask = handover.decode(body, Rejoin)
    await take_back(services, group.uuid, "the partner has taken over")
    async with services.lock(group.uuid):
        work = await services.run(_begin, group.uuid, ask)
        terms = terms_of(services.node, group)
        if work is None:
            return handover.encode(Rejoined(terms, []))
        await _stop(services, group)
        for row in services.node.state.members(group.uuid):
            work = await services.run(_go_back, row, work)
        await services.run(_end, group.uuid, work)
    services.replicator.poke()
    services.supervisor.poke()
    return handover.encode(Rejoined(terms, list(work.kept)))


def _begin(node: Node, group_uuid: str, ask: Rejoin) -> Rejoining | None:
    """From here on the group is stale, whatever happens; None if it has joined already."""
    with node.state.change():
        group = node.state.find_group(group_uuid)
        if group is None:
            raise Refused("the group is no longer here")
        check_rejoin(Seat(group.name, Role(group.role), group.term), ask)
        journal = node.bond.journal(group_uuid)
        if journal is not None and journal.kind == REJOIN:
            work = msgspec.msgpack.decode(journal.body, type=Rejoining)
            work = msgspec.structs.replace(work, term=ask.term, common=ask.common)
            node.bond.note_in_journal(group_uuid, REJOIN, msgspec.msgpack.encode(work))
            return work
        _check_common(node, group, ask)
        if group.term == ask.term:
            return None
        node.bond.end_journal(group_uuid)  # a plan of this node, for a term that is over
        name = fresh_group_name(node, group, "diverged")
        work = Rejoining(ask.term, ask.common, name, group.role == Role.PASSIVE.value)
        node.state.step_down(group_uuid)
        node.bond.begin_journal(Journal(group_uuid, REJOIN, msgspec.msgpack.encode(work), 0))
    node.note("rejoining", group.name, f"as the secondary, in term {ask.term}")
    return work


def _check_common(node: Node, group: Group, ask: Rejoin) -> None:
    """Raises Refused before anything has changed."""
    for row in node.state.members(group.uuid):
        if all(s.guid != ask.common.get(row.uuid) for s in info(node, row).snapshots):
            raise Refused(f"volume {node.state.volume_name(row)} has not that common snapshot")


async def _stop(services: Services, group: Group) -> None:
    node = services.node
    services.supervisor.poke()
    for row in node.state.members(group.uuid):
        await end_mount(services, row.uuid, force=True)
        stop = partial(take_over, node.places, row.uuid, wait_s=VOLUME_S)
        await trio.to_thread.run_sync(stop)
    try:
        await services.run(activate)
    except NasError:
        return  # the keeper of shares tells it, and tries again


def _go_back(node: Node, row: VolumeRow, work: Rejoining) -> Rejoining:
    """Running it again ends in the same state.  With what was kept."""
    with open_member(node, row.uuid) as volume:
        common = volume.snapshot(work.common[row.uuid])
        name = f"{node.state.volume_name(row)}@{_keep(volume, common, work)}"
        if not name.endswith("@") and name not in work.kept:
            work = msgspec.structs.replace(work, kept=(*work.kept, name))
            node.bond.note_in_journal(row.group, REJOIN, msgspec.msgpack.encode(work))
        if volume.ancestors()[-1].guid != common.guid or volume.changed_since(common.guid):
            Applier(volume).reset(common.epoch)
    return work


def _keep(volume: Volume, common: Snapshot, work: Rejoining) -> str:
    """Hold what comes after the common snapshot; the name of what holds it, empty for nothing."""
    reason = "what this node alone had when it became the secondary again"
    if any(snapshot.name == work.name for snapshot in volume.snapshots()):
        volume.hold(work.name, OWNER, reason)
        return work.name
    newest = volume.ancestors()[-1]
    if not work.was_receiving and volume.changed_since(newest.guid):
        volume.seal(work.name)
        volume.hold(work.name, OWNER, reason)
        return work.name
    if newest.guid != common.guid and (work.was_receiving or volume.changed_since(common.guid)):
        volume.hold(newest.name, OWNER, reason)
        return newest.name
    return ""


def _end(node: Node, group_uuid: str, work: Rejoining) -> None:
    """The group is passive."""
    with node.state.change():
        group = node.state.find_group(group_uuid)
        if group is None:
            raise Refused("the group is no longer here")
        become_passive(node, group, work.term)
        node.bond.end_journal(group_uuid)
    kept = f"; kept: {', '.join(work.kept)}" if work.kept else ""
    node.note("rejoined", group.name, f"passive in term {work.term}{kept}")
