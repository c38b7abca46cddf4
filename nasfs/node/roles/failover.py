"""Changes of roles: the plans of ``replication``, executed step by step, resumed after a crash.

The plan and the number of its next step stand in node.db before a step begins.  Each step ends
in the same state when it is run again, so a crash at any point loses nothing: the command, given
again, goes on.  What the partner has to do it is asked (`agreeing`), and does in its own modules
(`yielding`, `rejoining`); what this node does alone stands in `steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import trio

from nasfs.errors import Failed, NasError, Refused, Unreachable
from replication.errors import RefusedByPeer
from replication.plans import plan_failback, plan_join, plan_rollback, plan_takeover
from replication.roles import Action, GroupView, Plan, Step

from ..coming_back import check_heard
from ..context import Node
from ..drills.drills import stop_if_any
from ..messages import FailoverRequest, GroupRollback, PlanView, RoleRequest, StepView
from ..records import ROLLBACK, YIELD, Group, Journal
from ..sending.replications import ask_if_wanted
from ..services import Services
from ..shares.share_takeover import serve_shares, with_shares
from ..snapshots import fresh_group_name
from . import group_rollback
from .agreeing import PARTNERS, UNDECIDED, agree, call_off
from .observing import observe
from .progress import AGREED, Work, describe, how_to_finish, read_work, still_receives
from .steps import execute
from .watch import insist
from .yielding import take_back


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
            await execute(services, group, work, step)
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


def view_of(work: Work, done: int, took: Mapping[int, float] = {}) -> PlanView:
    """For people: which steps are done, and how long each of them *took* (seconds)."""
    plan = work.plan
    steps = tuple(
        StepView(str(step), number < done, step.action.value, took.get(number))
        for number, step in enumerate(plan.steps)
    )
    kept = tuple(work.rejoined.kept) if work.rejoined else ()
    return PlanView(plan.group, plan.term, plan.losing, steps, plan.kind, kept)
