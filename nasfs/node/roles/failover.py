"""Changes of roles: the plans of ``replication``, executed step by step, resumed after a crash.

The plan and the number of its next step stand in node.db before a step begins.  Each step ends
in the same state when it is run again, so a crash at any point loses nothing: the command, given
again, goes on.  What the partner has to do it is asked (`agreeing`), and does in its own modules
(`yielding`, `rejoining`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import trio

from nasfs.errors import Failed, NasError, Refused, Unreachable
from nasfs.volume import Applier
from replication.client import peer_status
from replication.endpoint import GroupStatus, SnapshotRef
from replication.errors import PeerFailed, RefusedByPeer
from replication.plans import plan_failback, plan_join, plan_rollback, plan_takeover
from replication.roles import Action, GroupView, Plan, Role, Step, VolumeView

from ..coming_back import check_heard
from ..context import MountPhase, Node
from ..drills.drills import stop_if_any
from ..engine import info
from ..inventory import mount_state
from ..messages import FailoverRequest, GroupRollback, PlanView, RoleRequest, StepView
from ..pairing import connect_peer
from ..receiving.receivers import take_over
from ..records import ROLLBACK, YIELD, Group, Journal, Replication
from ..sending.replications import ask_if_wanted
from ..services import Services, begin_mounts, mount_volume
from ..shares.share_takeover import merge_staged, serve_shares, with_shares
from ..snapshots import fresh_group_name
from . import group_rollback
from .agreeing import PARTNERS, UNDECIDED, agree, call_off
from .opening import VOLUME_S, find_member, open_member
from .progress import AGREED, Work, describe, how_to_finish, read_work, still_receives
from .watch import insist
from .yielding import take_back

PEER_S = 5.0
"""So long the partner may take to answer (seconds)."""


async def fail_over(services: Services, name: str, request: FailoverRequest) -> PlanView:
    """Make this node the primary of a group; goes on with what an earlier call left unfinished.

    Raises:
        Refused: the group is not passive here, nothing complete has arrived, the partner is
            alive and can't hand over, or the loss was not accepted.
        NasError: why a step failed; the same command goes on with it.
    """
    if request.call_off:
        return await give_up(services, name)
    if request.without_partner:
        return await insist(services, name)
    robbing = request.force and request.lose_unreplicated

    def plan(view: GroupView) -> Plan:
        dry = request.dry_run and view.theirs is None
        return plan_takeover(
            view,
            force=request.force or dry,
            lose_unreplicated=request.lose_unreplicated or dry,
            to=request.to,
        )

    kinds = ("failover", "switchover")
    if robbing and not request.dry_run:
        await _give_up_agreed(services, name)
    return await change_roles(
        services, name, kinds, plan, dry_run=request.dry_run, force=request.force
    )


async def fail_back(services: Services, name: str, request: RoleRequest) -> PlanView:
    """Make the original primary the primary again; the partner hands the group over.

    Raises:
        Refused: see `plan_failback`.
        NasError: why a step failed; the same command goes on with it.
    """
    return await change_roles(
        services, name, ("failback",), plan_failback, dry_run=request.dry_run, force=request.force
    )


async def join(services: Services, name: str, request: RoleRequest) -> PlanView:
    """Take the old primary back as the secondary of a group that was taken over by this node.

    Raises:
        Refused: see `plan_join`.
        NasError: why a step failed; the same command goes on with it.
    """
    return await change_roles(
        services, name, ("failback-join",), plan_join, dry_run=request.dry_run, force=True
    )


async def roll_back(services: Services, name: str, request: GroupRollback) -> PlanView:
    """All volumes of an active group go back to a snap group; what is there now is kept.

    Raises:
        Refused: the group is not active here, or has no such complete snap group.
        NasError: why a step failed; the same command goes on with it.
    """
    group = services.node.state.group(name)
    check_heard(services.node, group)
    token = await services.run(fresh_group_name, group, "rollback")
    made = services.node.bond.replication(group.uuid)
    replicated = made is not None and not made.split

    def plan(view: GroupView) -> Plan:
        return plan_rollback(view, request.snapshot, replicated=replicated, name=token)

    gone_back = await change_roles(
        services, name, (ROLLBACK,), plan, dry_run=request.dry_run, force=False,
        subject=request.snapshot,
    )  # fmt: skip
    if not request.dry_run:
        ask_if_wanted(services.node, services.replicator, group.uuid)
    return gone_back


async def change_roles(
    services: Services,
    name: str,
    kinds: tuple[str, ...],
    make_plan: Callable[[GroupView], Plan],
    *,
    dry_run: bool,
    force: bool,
    subject: str = "",
) -> PlanView:
    """Plan, or go on with a plan of these kinds; and carry it out."""
    node = services.node
    began = trio.current_time()
    took: dict[int, float] = {}
    uuid = node.state.group(name).uuid
    async with services.lock(uuid):
        group = node.state.group(name)
        journal = node.bond.journal(uuid)
        if journal is not None:
            if journal.kind not in kinds:
                raise Refused(
                    f"group {name}: {describe(journal)[0]}", hint=how_to_finish(journal, name)
                )
            work, done = read_work(journal), journal.next_step
            if work.subject != subject:
                raise Refused(
                    f"group {name}: another {journal.kind} is not finished",
                    hint=how_to_finish(journal, name),
                )
        else:
            view = await services.run(observe, group)
            work, done = Work(make_plan(view), subject=subject), 0
        if dry_run:
            return await services.run(with_shares, group, view_of(work, done))
        await services.run(stop_if_any, uuid, f"a {work.plan.kind}")
        if journal is None:
            await services.run(_begin, group, work)
        elif still_receives(journal) and not _asks_to_hand_over(work.plan, done):
            work, done = Work(work.plan), min(done, 1)  # the partner may have taken it back
            node.bond.go_back_to(uuid, done)
        work = await _carry_out(services, group, work, done, took, force=force)
        node.bond.end_journal(uuid)
        kept = f"; kept: {', '.join(work.rejoined.kept)}" if work.rejoined else ""
        detail = f"term {work.plan.term}; {work.plan.losing or 'nothing is lost'}{kept}"
        node.note(f"{work.plan.kind} done", name, detail)
        done_all = view_of(work, len(work.plan.steps), took)
        if work.plan.kind == ROLLBACK:
            kept_as = await services.run(group_rollback.kept, group, work.plan)
            done_all = msgspec.structs.replace(done_all, kept=tuple(kept_as))
        else:
            done_all = await _serve(services, uuid, done_all)
        return msgspec.structs.replace(done_all, seconds=trio.current_time() - began)


async def _serve(services: Services, group_uuid: str, done: PlanView) -> PlanView:
    """The servers are told, now that volumes are mounted."""
    began = trio.current_time()
    done = await services.run(serve_shares, group_uuid, done)
    if not services.node.shares.all():
        return done
    told = StepView("tell the servers of shares", True, "serve", trio.current_time() - began)
    return msgspec.structs.replace(done, steps=(*done.steps, told))


def _begin(node: Node, group: Group, work: Work) -> None:
    """From here on the plan is carried out, whatever happens, or called off."""
    with node.state.change():
        if node.state.find_group(group.uuid) != group:
            raise Refused(f"the role of group {group.name} has just changed; look at it again")
        body = msgspec.msgpack.encode(work)
        node.bond.begin_journal(Journal(group.uuid, work.plan.kind, body, 0))
        if work.plan.kind == "failover" and not work.plan.losing:  # it has been handed over
            node.bond.set_followed(group.uuid, work.plan.term)
    node.note(f"{work.plan.kind} began", group.name, work.plan.losing)


async def _carry_out(
    services: Services,
    group: Group,
    work: Work,
    done: int,
    took: dict[int, float],
    *,
    force: bool,
) -> Work:
    """The steps that are left; the work, with what the partner has answered.

    Args:
        took: gets the seconds of each step, by its number.
    """
    bond = services.node.bond
    for number, step in enumerate(work.plan.steps[done:], start=done):
        began = trio.current_time()
        if step.action in (Action.HAND_OVER, Action.REJOIN):
            bond.set_followed(group.uuid, step.term)  # from now on it can be, whatever we hear
        if step.action in PARTNERS:
            before, work = work, await _agree(services, group, work, step, force=force)
            if work != before:
                bond.note_in_journal(group.uuid, work.plan.kind, msgspec.msgpack.encode(work))
        else:
            await _execute(services, group, work, step)
        bond.step_done(group.uuid, number + 1)
        took[number] = trio.current_time() - began
    return work


async def _agree(services: Services, group: Group, work: Work, step: Step, *, force: bool) -> Work:
    """A step of the partner.  If it says no before it has handed over, all is as it was."""
    scope = trio.CancelScope()
    try:
        if step.action not in UNDECIDED:
            return await agree(services, group, work, step, force=force)
        services.agreeing[group.uuid] = scope
        with scope:
            return await agree(services, group, work, step, force=force)
    except RefusedByPeer as exc:
        # Refused means: not done.  What is not known to be refused is asked again.
        raise await _called_off(services, group, work, exc) from exc
    except NasError as exc:
        if step.action in UNDECIDED:
            raise await _called_off(services, group, work, exc) from exc
        raise
    finally:
        services.agreeing.pop(group.uuid, None)
    raise await _called_off(services, group, work, Refused("it was called off by hand"))


async def _called_off(
    services: Services, group: Group, work: Work, why: NasError, *, must_know: bool = False
) -> NasError:
    """End the plan, and let the partner go on; the error that tells it."""
    then = ""
    if work.plan.kind in AGREED:
        then = "; " + await call_off(services, group, work, must_know=must_know)
    services.node.bond.end_journal(group.uuid)
    services.node.note(f"{work.plan.kind} called off", group.name, str(why))
    classes = {Refused.exit_code: Refused, Unreachable.exit_code: Unreachable}
    made = classes.get(why.exit_code, Failed)
    return made(f"the {work.plan.kind} of {group.name} was called off: {why}{then}", hint=why.hint)


async def give_up(services: Services, name: str) -> PlanView:
    """Call off a change of roles that waits for the partner, on either node.

    Raises:
        Refused: none is under way, or it is too late.
    """
    node = services.node
    group = node.state.group(name)
    journal = node.bond.journal(group.uuid)
    if journal is not None and journal.kind == YIELD:
        await take_back(services, group.uuid, "it was called off here")
        return PlanView(name, group.term, "", (), "switchover")
    if scope := services.agreeing.get(group.uuid):
        scope.cancel()
    async with services.lock(group.uuid):
        journal = node.bond.journal(group.uuid)
        if journal is None:
            if scope:
                return PlanView(name, group.term, "", (), "switchover")
            raise Refused(f"nothing is under way with group {name}")
        if not still_receives(journal):
            raise Refused(
                f"group {name}: {describe(journal)[0]}, and it is too late to call it off",
                hint=how_to_finish(journal, name),
            )
        work = read_work(journal)
        asked = _asks_to_hand_over(work.plan, journal.next_step)  # perhaps it was granted
        why = Refused("it was called off by hand")
        await _called_off(services, group, work, why, must_know=asked)
        return view_of(work, 0)


async def _give_up_agreed(services: Services, name: str) -> None:
    """A switchover that is not agreed yet makes room for a failover by force."""
    group = services.node.state.group(name)
    if scope := services.agreeing.get(group.uuid):
        scope.cancel()
    async with services.lock(group.uuid):
        bond = services.node.bond
        journal = bond.journal(group.uuid)
        if journal is not None and still_receives(journal):
            bond.end_journal(group.uuid)
            services.node.note(f"{journal.kind} called off", name, "by force")


def _asks_to_hand_over(plan: Plan, done: int) -> bool:
    return done < len(plan.steps) and plan.steps[done].action is Action.HAND_OVER


def observe(node: Node, group: Group) -> GroupView:
    """What a planner may know of the group on this node, and from its partner."""
    volumes = []
    for row in node.state.members(group.uuid):
        found = info(node, row)
        snapshots = found.ancestors if group.role == Role.PASSIVE.value else found.snapshots
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
    reachable, theirs = _ask_peer(node, group)
    return GroupView(
        group=group.name,
        role=Role(group.role),
        term=group.term,
        peer=peer.name if peer else "the partner",
        peer_reachable=reachable,
        volumes=tuple(volumes),
        now_ns=time.time_ns(),
        theirs=theirs,
        is_home=bool(group.home),
    )


def _ask_peer(node: Node, group: Group) -> tuple[bool, GroupStatus | None]:
    """Whether the partner answers, and what it says of the group."""
    try:
        with connect_peer(node, timeout_s=PEER_S) as connection:
            return True, peer_status(connection, group.uuid)
    except (RefusedByPeer, PeerFailed):
        return True, None  # it is alive
    except NasError:
        return False, None


async def _execute(services: Services, group: Group, work: Work, step: Step) -> None:
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


def view_of(work: Work, done: int, took: Mapping[int, float] = {}) -> PlanView:
    """For people: which steps are done, and how long each of them *took* (seconds)."""
    plan = work.plan
    steps = tuple(
        StepView(str(step), number < done, step.action.value, took.get(number))
        for number, step in enumerate(plan.steps)
    )
    kept = tuple(work.rejoined.kept) if work.rejoined else ()
    return PlanView(plan.group, plan.term, plan.losing, steps, plan.kind, kept)
