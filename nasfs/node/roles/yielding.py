"""Handing a group over to the partner: the primary's side of a switchover.

While the journal of kind `YIELD` is in node.db, nothing of the group is mounted, shared or snapped
here.  Whoever ends that journal decides: `hand_over` makes the group passive in the same
transaction; everything else lets this node go on as the primary.  So it does by itself when the
partner has not asked for `LEASE_S`, and when its daemon begins anew.
"""

from __future__ import annotations

import logging
from functools import partial

import msgspec
import trio

from nasfs.errors import Failed, NasError, Refused
from replication import handover
from replication.handover import (
    CatchUp,
    CaughtUp,
    Drain,
    Drained,
    HandedOver,
    HandOver,
    Keep,
    Kept,
    Seat,
    Sending,
    Sent,
    Terms,
    check_drain,
    check_hand_over,
    check_keep,
    is_handed_over,
)
from replication.roles import Role

from ..context import Node
from ..engine import info
from ..inventory import check_active
from ..pairing import connect_peer
from ..records import YIELD, Group, Journal, VolumeRow
from ..services import Services, end_mount
from ..shares.share_travel import tell_partner
from ..shares.sharing import activate
from ..snapshots import find_snap_group, fresh_group_name, seal_members, take_snapshot
from ..users import users_below
from .progress import Yielding
from .watch import go_on

log = logging.getLogger(__name__)

LEASE_S = 90.0
"""A drained group of which the partner asks nothing for so long is taken back (seconds)."""
LOOK_S = 5.0
SHARES_S = 10.0
"""So long the servers may take to let a volume go that is no longer shared (seconds)."""
MOST = 1000
"""Snapshots that a secondary can be told to keep."""


def seat_of(node: Node, group_uuid: str) -> Seat:
    """The group as `replication.handover` judges it."""
    group = _group(node, group_uuid)
    yielding = _yielding(node, group_uuid) or Yielding("", 0, "")
    return Seat(group.name, Role(group.role), group.term, yielding.token, yielding.snap_group)


def _group(node: Node, group_uuid: str) -> Group:
    group = node.state.find_group(group_uuid)
    if group is None:
        raise Refused("the group is no longer here")
    return group


def _yielding(node: Node, group_uuid: str) -> Yielding | None:
    journal = node.bond.journal(group_uuid)
    if journal is None:
        return None
    if journal.kind != YIELD:
        raise Refused(f"a {journal.kind} of the group is not finished on the partner")
    return msgspec.msgpack.decode(journal.body, type=Yielding)


def terms_of(node: Node, group: Group) -> Terms:
    """How the group was replicated from here, or the usual if it was not."""
    rows = node.state.members(group.uuid)
    pool = node.state.volume_name(rows[0]).pool if rows else ""
    names = {row.uuid: row.name for row in rows}
    made = node.bond.replication(group.uuid)
    if made is None:
        return Terms(pool, names)
    return Terms(
        pool, names, made.provision, made.max_snapshots, made.compression, made.priority,
        made.rate, made.windows, made.max_lag_s, made.rpo_s, made.lanes, made.encryption,
    )  # fmt: skip


def become_passive(node: Node, group: Group, term: int) -> None:
    """Within a transaction: the group is received from now on, and nothing it has is retired.

    As many snapshots as there are now are kept, whatever the new primary asks for.
    """
    made = node.bond.replication(group.uuid)
    known = node.bond.reception(group.uuid)
    counts = [len(info(node, row).snapshots) for row in node.state.members(group.uuid)]
    asked = made.max_snapshots if made else known.max_snapshots if known else MOST
    node.state.change_role(group, role=Role.PASSIVE.value, term=term)
    node.bond.set_reception(group.uuid, asked)
    least = max(known.keep_least if known else 0, min(MOST, max(counts, default=0)))
    node.bond.set_own_retention(group.uuid, least, known.keep_most if known else 0)
    node.bond.delete_replication(group.uuid)


# what the partner asks


async def catch_up(services: Services, group: Group, body: bytes) -> bytes:
    """A snap group now, and its replication; people go on."""
    ask = handover.decode(body, CatchUp)
    node = services.node
    async with services.lock(group.uuid), services.scheduler.scope(group.uuid):
        check_drain(seat_of(node, group.uuid), ask.token, ask.term)
        go_on(services, group, "the partner is passive", "partner")  # so it has not taken over
        check_active(node, _group(node, group.uuid))
        _check_sends(services, group)
        name = fresh_group_name(node, group, "before-switchover")
        views = await services.run(take_snapshot, f"{group.name}@{name}")
    services.replicator.ask(group.uuid)
    return handover.encode(CaughtUp(views[0].snap_group, name))


async def drain(services: Services, group: Group, body: bytes) -> bytes:
    """Nothing changes any more; the last snap group is taken and on its way.

    Raises:
        Refused: the group can't be handed over now, files are in use, or its shares can't be
            brought; all is as before.
    """
    ask = handover.decode(body, Drain)
    node = services.node
    async with services.lock(group.uuid):
        check_drain(seat_of(node, group.uuid), ask.token, ask.term)
        services.heard[group.uuid] = trio.current_time()
        if _yielding(node, group.uuid) is None:
            _check_sends(services, group)
            if not ask.force:  # people are still at work, and can go on
                await _bring_shares(services, group, force=False)
            name = fresh_group_name(node, group, "switchover")
            begun = Yielding(ask.token, ask.term, name)
            node.bond.begin_journal(Journal(group.uuid, YIELD, msgspec.msgpack.encode(begun), 0))
            node.note("handing over", group.name, f"to the partner, for term {ask.term}")
        try:
            await _stop_serving(services, group, force=ask.force)
            snap_group, name = await _last_snap_group(services, group)
            await _bring_shares(services, group, force=ask.force)
        except BaseException as exc:
            _take_back(services, group, str(exc))
            raise
        terms = terms_of(node, group)
        nexts = {row.uuid: info(node, row).next_inode for row in node.state.members(group.uuid)}
        services.heard[group.uuid] = trio.current_time()
    services.replicator.ask(group.uuid)
    return handover.encode(Drained(snap_group, name, terms, nexts))


async def sending(services: Services, group: Group, body: bytes) -> bytes:
    """How the replication of what the partner waits for stands; it is still interested."""
    ask = handover.decode(body, Sending)
    seat = seat_of(services.node, group.uuid)
    if seat.token == ask.token:
        services.heard[group.uuid] = trio.current_time()
    transfer = services.node.bond.transfer(group.uuid)
    attempts = services.replicator.of(group.uuid)
    passed = attempts.running.wire_bytes if attempts.running else 0
    return handover.encode(
        Sent(
            state=transfer.state if transfer else "idle",
            reason=(transfer.reason if transfer else "") or attempts.waits,
            moved=(attempts.finished << 44) + passed,
            drained=seat.token == ask.token and seat.snap_group != "",
        )
    )


async def hand_over(services: Services, group: Group, body: bytes) -> bytes:
    """Become passive in the new term, if nothing has changed since the last snap group."""
    ask = handover.decode(body, HandOver)
    node = services.node
    async with services.lock(group.uuid):
        if await services.run(_grant, group.uuid, ask):
            node.note("handed over", group.name, f"passive in term {ask.term}")
    services.heard.pop(group.uuid, None)
    services.replicator.poke()
    services.supervisor.poke()
    return handover.encode(HandedOver())


def _grant(node: Node, group_uuid: str, ask: HandOver) -> bool:
    """False if that was done before."""
    with node.state.change():
        seat = seat_of(node, group_uuid)
        if is_handed_over(seat, ask.term):
            return False
        check_hand_over(seat, ask)
        become_passive(node, _group(node, group_uuid), ask.term)
        node.bond.end_journal(group_uuid)
    return True


async def keep(services: Services, group: Group, body: bytes) -> bytes:
    """The change is called off: go on as the primary."""
    ask = handover.decode(body, Keep)
    async with services.lock(group.uuid):
        seat = seat_of(services.node, group.uuid)
        check_keep(seat, ask)
        if seat.token == ask.token:
            _take_back(services, group, "the partner has called it off")
    return handover.encode(Kept())


# its steps


def _check_sends(services: Services, group: Group) -> None:
    """Raises Refused if the last snap group would not be sent now."""
    made = services.node.bond.replication(group.uuid)
    if made is None:
        raise Refused(f"group {group.name} is not replicated from there")
    if made.paused or made.split:
        how, back = ("split", "join") if made.split else ("paused", "resume")
        raise Refused(
            f"replication of {group.name} is {how} on the partner",
            hint=f"there: nasfs replication {back} {group.name}",
        )
    if reason := services.replicator.traffic.closed(group.uuid):
        raise Refused(
            f"replication of {group.name} can't run now: {reason}",
            hint=f"on the partner: nasfs replication window list {group.name}",
        )


async def _bring_shares(services: Services, group: Group, *, force: bool) -> None:
    """Raises Refused if the partner can't have the shares as they are now, unless *force*."""
    connect = partial(connect_peer, services.node)
    told = await services.run(tell_partner, group, connect)
    if told.problem and not force:
        raise Refused(
            f"the shares of {group.name} can't be brought to the other node: {told.problem}",
            hint="mend that on the node that has them; or, with what the other has: --force",
        )


async def _stop_serving(services: Services, group: Group, *, force: bool) -> None:
    """No shares, no mounts.  Raises Refused if files are in use, unless *force*."""
    node = services.node
    rows = node.state.members(group.uuid)
    try:
        await services.run(activate)
    except NasError as exc:  # then the server keeps files in use, and that is told
        log.warning("ending the shares of %s: %s", group.name, exc)
    patience = SHARES_S if any(node.shares.of_volume(row.uuid) for row in rows) else 0.0
    deadline = trio.current_time() + patience
    in_use: list[Refused] = []

    async def end(row: VolumeRow) -> None:
        if problem := await _unmount(services, row, deadline, force=force):
            in_use.append(problem)

    async with trio.open_nursery() as nursery:  # each makes durable what it has, and then ends
        for row in rows:
            nursery.start_soon(end, row)
    if in_use:
        raise in_use[0]


async def _unmount(
    services: Services, row: VolumeRow, deadline: float, *, force: bool
) -> Refused | None:
    """Why it could not be unmounted until then (trio's clock)."""
    node = services.node
    while True:
        try:
            await end_mount(services, row.uuid, force=force)
        except Failed as exc:
            if trio.current_time() < deadline:
                await trio.sleep(0.2)
                continue
            name, where = node.state.volume_name(row), node.mountpoint(row)
            users = await trio.to_thread.run_sync(users_below, where)
            return Refused(
                f"volume {name} is in use on the partner"
                + (f" by {users}" if users else f": {exc}"),
                hint="end these there; or, to cut them off: --force",
            )
        return None


async def _last_snap_group(services: Services, group: Group) -> tuple[str, str]:
    """Its GUID and its name; it is taken once for each change of roles."""
    async with services.scheduler.scope(group.uuid):
        return await services.run(_take_last, group)


def _take_last(node: Node, group: Group) -> tuple[str, str]:
    yielding = _yielding(node, group.uuid)
    assert yielding is not None, "the caller has begun it"
    if not yielding.snap_group:
        found = find_snap_group(node, group, yielding.name)
        if not found:
            seal_members(node, group, yielding.name)
            found = find_snap_group(node, group, yielding.name)
        yielding = msgspec.structs.replace(yielding, snap_group=found)
        node.bond.note_in_journal(group.uuid, YIELD, msgspec.msgpack.encode(yielding))
    return yielding.snap_group, yielding.name


def _take_back(services: Services, group: Group, why: str) -> None:
    """This node goes on as the primary; its mounts and shares come back by themselves."""
    services.heard.pop(group.uuid, None)
    services.node.bond.end_journal(group.uuid)
    services.node.note("not handed over", group.name, why)
    for row in services.node.state.members(group.uuid):
        services.supervisor.retry(row.uuid)
    services.supervisor.poke()


async def take_back(services: Services, group_uuid: str, why: str) -> bool:
    """Go on as the primary of a group that was to be handed over; False if it was not."""
    async with services.lock(group_uuid):
        journal = services.node.bond.journal(group_uuid)
        group = services.node.state.find_group(group_uuid)
        if journal is None or group is None or journal.kind != YIELD:
            return False
        _take_back(services, group, why)
    return True


def take_back_leftovers(node: Node) -> None:
    """A daemon that begins goes on as the primary of what an earlier one did not hand over."""
    for group in node.state.groups():
        journal = node.bond.journal(group.uuid)
        if journal is not None and journal.kind == YIELD:
            node.bond.end_journal(group.uuid)
            node.state.note("daemon", "not handed over", group.name, "the daemon was ended")


async def take_back_unheard(services: Services) -> None:
    """Until cancelled: take back what the partner has lost interest in."""
    while True:
        now = trio.current_time()
        for group in services.node.state.groups():
            journal = services.node.bond.journal(group.uuid)
            if journal is None or journal.kind != YIELD:
                continue
            if now - services.heard.setdefault(group.uuid, now) > LEASE_S:
                why = f"the partner has not asked for {LEASE_S:g} s"
                await take_back(services, group.uuid, why)
        await trio.sleep(LOOK_S)
