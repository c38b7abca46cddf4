"""Snapshot policies, as people deal with them: make, list, change, remove, pause, run, explain."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from nasfs.errors import ConfigError, Failed, NasError, Refused
from nasfs.schedule.clock import PassOver, Run, StartOver, Timing, Wait, plan_turn
from nasfs.schedule.policy import PolicySpec, check_policy_name, parse_policy
from nasfs.schedule.retention import Decision

from ..context import Node
from ..inventory import check_active
from ..messages import (
    DecisionView,
    Nothing,
    RunView,
    ScheduleCreate,
    ScheduleExplain,
    ScheduleName,
    SchedulePrune,
    ScheduleSet,
    ScheduleView,
    when,
)
from ..services import Services
from ..snapshots import list_snapshots
from ..words import parse_target
from . import taking
from .policies import MAX_POLICIES, PolicyRow, new_policy
from .scheduler import Scheduler

ZONEINFO = "/usr/share/zoneinfo/"

Params = Mapping[str, str]


async def create(services: Services, body: ScheduleCreate, params: Params) -> ScheduleView:
    """A new policy; its first run is when it is due for the first time from now on."""
    row = await services.run(_create, body)
    services.scheduler.poke()
    return await services.run(schedule_view, services.scheduler, row)


def _create(node: Node, body: ScheduleCreate) -> PolicyRow:
    check_policy_name(body.policy)
    volume, group = _target(node, body.target)
    spec = body.spec
    if spec.at and not spec.zone:
        spec = replace(spec, zone=system_zone())
    parse_policy(spec)
    if len(_of_target(node, body.target)) >= MAX_POLICIES:
        raise Refused(f"{body.target} has {MAX_POLICIES} policies, and can't have more")
    row = new_policy(body.policy, volume=volume, group=group, spec=_text(spec))
    node.policies.add(row)
    node.note("schedule created", f"{body.target} {body.policy}", _sentence(spec))
    return row


def _text(spec: PolicySpec) -> str:
    return msgspec.json.encode(spec).decode()


def system_zone() -> str:
    """The time zone of this machine, by its name; UTC if it has none with a name."""
    path = os.path.realpath("/etc/localtime")
    return path.removeprefix(ZONEINFO) if path.startswith(ZONEINFO) else "UTC"


def _target(node: Node, text: str) -> tuple[str, str]:
    """UUIDs of the volume, or of the group, that *text* names; the other one is empty."""
    target = parse_target(text)
    if target.snapshot:
        raise ConfigError(f"{text!r}: name a volume or a group, without @SNAPSHOT")
    if target.volume:
        return node.state.volume(target.volume).uuid, ""
    return "", node.state.group(target.group).uuid


def _of_target(node: Node, text: str) -> list[PolicyRow]:
    uuids = _target(node, text)
    return [row for row in node.policies.all() if (row.volume, row.group) == uuids]


def find(node: Node, target: str, policy: str) -> PolicyRow:
    """Raises Failed if there is none of that name."""
    for row in _of_target(node, target):
        if row.name == policy:
            return row
    raise Failed(
        f"{target} has no policy {policy}", hint=f"nasfs schedule list {target} shows its policies"
    )


async def show_all(services: Services, body: Nothing, params: Params) -> list[ScheduleView]:
    """Of one target, or of the whole node."""
    target = params.get("target", "")
    return await services.run(schedule_views, services.scheduler, target)


def schedule_views(node: Node, scheduler: Scheduler, target: str = "") -> list[ScheduleView]:
    rows = _of_target(node, target) if target else node.policies.all()
    views = [schedule_view(node, scheduler, row) for row in rows]
    return sorted(views, key=lambda view: (view.target, view.policy))


async def show(services: Services, body: ScheduleName, params: Params) -> ScheduleView:
    row = await services.run(find, body.target, body.policy)
    return await services.run(schedule_view, services.scheduler, row)


def schedule_view(node: Node, scheduler: Scheduler, row: PolicyRow) -> ScheduleView:
    spec, state, reason, next_ns = row.written, "waiting", "", 0
    try:
        target = taking.target_of(node, row)
        label, obstacle = target.label, target.obstacle
        rhythm, retention = _sentence(spec), _rule(spec)
        if scheduler.is_running(row.uuid):
            state = "running"
        elif row.paused:
            state = "paused"
        elif obstacle:
            state, reason = "inactive", obstacle
        else:
            next_ns = _next(row)
    except NasError as exc:
        label, rhythm, retention = "-", spec.every or spec.at, ""
        state, reason = "broken", str(exc)
    return ScheduleView(
        target=label,
        policy=row.name,
        uuid=row.uuid,
        rhythm=rhythm,
        retention=retention,
        spec=spec,
        state=state,
        reason=reason,
        next_run=when(next_ns),
        result=row.result,
        detail=row.detail,
        result_time=when(row.result_ns),
        last_snapshot_time=when(row.done_ns),
        failures=row.failures,
        snapshots=node.policies.count_runs(row.uuid),
    )


def _sentence(spec: PolicySpec) -> str:
    policy = parse_policy(spec)
    return str(policy.rhythm) + (f", up to {spec.jitter} later" if spec.jitter else "")


def _rule(spec: PolicySpec) -> str:
    rule = parse_policy(spec).rule
    keep = f"newest {rule.keep}" if rule.keep else ""
    return ", ".join(filter(None, [keep, ",".join(map(str, rule.tiers))]))


def _next(row: PolicyRow) -> int:
    """When it acts next, in ns; in the past if it is just about to."""
    policy = parse_policy(row.written)
    timing = Timing(policy.rhythm, policy.missed, policy.jitter_s, row.uuid)
    now = time.time_ns()
    match plan_turn(timing, row.last_ns, now):
        case Wait(due_ns=due):
            return due
        case Run():
            return now
        case PassOver(occurrence_ns=latest):
            return timing.due(policy.rhythm.after(latest))
        case StartOver():
            return timing.due(policy.rhythm.after(now))


async def change(services: Services, body: ScheduleSet, params: Params) -> ScheduleView:
    """What is kept, and when it is due, from now on; runs that passed are not made up for."""
    row = await services.run(_change, body)
    services.scheduler.poke()
    return await services.run(schedule_view, services.scheduler, row)


def _change(node: Node, body: ScheduleSet) -> PolicyRow:
    row = find(node, body.target, body.policy)
    changes = dict(body.changes)
    if changes.get("every"):
        changes = {"at": "", "days": "", "zone": "", **changes}
    elif changes.get("at"):
        changes = {"every": "", "zone": row.written.zone or system_zone(), **changes}
    known = msgspec.to_builtins(row.written) | changes
    try:
        spec = msgspec.convert(known, PolicySpec)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"bad request: {exc}") from exc
    before, after = parse_policy(row.written), parse_policy(spec)
    with node.database.change():
        node.policies.set_spec(row.uuid, _text(spec))
        if before.rhythm != after.rhythm:
            node.policies.set_last(row.uuid, time.time_ns())
    node.note(
        "schedule changed", f"{body.target} {body.policy}", f"{_sentence(spec)}; {_rule(spec)}"
    )
    return find(node, body.target, body.policy)


async def remove(services: Services, body: ScheduleName, params: Params) -> None:
    """Its snapshots stay, and no policy will ever destroy them."""
    await services.run(_remove, body)
    services.scheduler.poke()


def _remove(node: Node, body: ScheduleName) -> None:
    row = find(node, body.target, body.policy)
    node.policies.forget(row.uuid)
    node.note("schedule removed", f"{body.target} {body.policy}", "its snapshots stay")


async def pause(services: Services, body: ScheduleName, params: Params) -> ScheduleView:
    """No runs until `resume`."""
    return await _set_paused(services, body, True)


async def resume(services: Services, body: ScheduleName, params: Params) -> ScheduleView:
    """From now on; what passed meanwhile was not missed."""
    return await _set_paused(services, body, False)


async def _set_paused(services: Services, body: ScheduleName, paused: bool) -> ScheduleView:
    row = await services.run(_pause, body, paused)
    services.scheduler.poke()
    return await services.run(schedule_view, services.scheduler, row)


def _pause(node: Node, body: ScheduleName, paused: bool) -> PolicyRow:
    row = find(node, body.target, body.policy)
    if bool(row.paused) != paused:
        node.policies.set_paused(row.uuid, paused, time.time_ns())
        word = "paused" if paused else "resumed"
        node.note(f"schedule {word}", f"{body.target} {body.policy}")
    return find(node, body.target, body.policy)


async def run_now(services: Services, body: ScheduleName, params: Params) -> RunView:
    """One run beside the schedule, paused or not; it has ended when this returns.

    Raises:
        Refused: the target is not active here.
        Failed: the run failed.
    """
    row = await services.run(_runnable, body)
    outcome = await services.scheduler.run_now(row.uuid)
    if outcome.result == "failed":
        raise Failed(
            f"policy {body.policy} of {body.target}: {outcome.detail}",
            hint="nasfs events tells more",
        )
    snapshot = f"{body.target}@{outcome.snapshot}" if outcome.snapshot else ""
    return RunView(outcome.result, outcome.detail, snapshot)


def _runnable(node: Node, body: ScheduleName) -> PolicyRow:
    row = find(node, body.target, body.policy)
    target = taking.target_of(node, row)
    if target.group is not None:
        check_active(node, target.group)
    if target.obstacle:
        raise Refused(target.obstacle)
    return row


# retention


async def prune(services: Services, body: SchedulePrune, params: Params) -> list[DecisionView]:
    """Destroy now what the policy does not keep; with `dry_run` only tell.

    Raises:
        Refused: the target is not active here.
    """
    if body.dry_run:
        return await services.run(_explain_one, body.target, body.policy)
    name = ScheduleName(body.target, body.policy)
    row = await services.run(_runnable, name)
    target = await services.run(taking.target_of, row)
    async with services.scheduler.scope(target.scope):
        decisions = await services.run(taking.prune, row)
    return [_decision_view(row, decision) for decision in decisions]


def _explain_one(node: Node, target: str, policy: str) -> list[DecisionView]:
    row = find(node, target, policy)
    return [_decision_view(row, decision) for decision in taking.explain(node, row)]


async def explain(services: Services, body: ScheduleExplain, params: Params) -> list[DecisionView]:
    """Why each snapshot of the target stays, or when it goes; oldest first."""
    return await services.run(_explain, body)


def _explain(node: Node, body: ScheduleExplain) -> list[DecisionView]:
    if body.policy:
        return _explain_one(node, body.target, body.policy)
    views, explained = list[DecisionView](), set[str]()
    target = taking.volumes_of(node, *_target(node, body.target))
    for row in node.policies.all():
        made = node.policies.made(row.uuid)
        if {one.volume for one in made}.isdisjoint(volume.uuid for volume in target):
            continue
        explained |= {one.guid for one in made}
        views += [_decision_view(row, decision) for decision in taking.explain(node, row)]
    for snapshot in list_snapshots(node, body.target):
        if snapshot.guid not in explained:
            views.append(
                DecisionView(snapshot.name, snapshot.time, "", "keep", "no policy made it")
            )
    return sorted(views, key=lambda view: view.time or "")


def _decision_view(row: PolicyRow, decision: Decision) -> DecisionView:
    return DecisionView(
        snapshot=decision.snapshot.name,
        time=when(decision.snapshot.time_ns),
        policy=row.name,
        verdict=decision.verdict.value,
        reason=decision.reason,
    )


def attention(views: tuple[ScheduleView, ...]) -> list[str]:
    """Sentences about policies that do not do their work."""
    said = []
    for view in views:
        name = f"policy {view.policy} of {view.target}"
        if view.state == "broken":
            said.append(f"{name}: {view.reason}")
        elif view.result == "failed":
            times = "" if view.failures < 2 else f" {view.failures} times since its last snapshot"
            said.append(f"{name} failed{times}: {view.detail}")
        elif view.state == "paused":
            said.append(f"{name} is paused")
    return said
