"""``nasfs schedule``: policies that take snapshots by themselves, and what of them stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nasfs.errors import ConfigError
from nasfs.node.words import parse_target

from .options import with_options
from .schedule_options import PolicyOptions
from .session import DryRun, Json, client, print_fields, print_json, print_table

if TYPE_CHECKING:
    from nasfs.node.messages import DecisionView, ScheduleName, ScheduleView

app = typer.Typer(help="Scheduled snapshots, and which of them stay.", no_args_is_help=True)

Target = Annotated[str, typer.Argument(metavar="POOL/VOLUME|GROUP")]
Policy = Annotated[str, typer.Argument(metavar="POLICY")]


@app.command()
@with_options(PolicyOptions)
def add(
    target: Target,
    policy: Policy,
    options: PolicyOptions,
    as_json: Json = False,
) -> None:
    """Take snapshots of a volume or a group by a policy: --every or --at, and --keep or --thin."""
    import msgspec

    from nasfs.node.messages import ScheduleCreate, ScheduleView
    from nasfs.schedule.policy import PolicySpec

    _check_target(target)
    spec = msgspec.convert(options.named(), PolicySpec)
    body = ScheduleCreate(target, policy, spec)
    view = client().post("/v1/schedules", ScheduleView, body)
    if as_json:
        print_json(view)
    else:
        typer.echo(f"{view.target} {view.policy}: {view.rhythm}; the first at {view.next_run}")


@app.command("set")
@with_options(PolicyOptions)
def set_(
    target: Target,
    policy: Policy,
    options: PolicyOptions,
    as_json: Json = False,
) -> None:
    """Change what is named, leave the rest; '' takes an option away (--keep 0, --before '')."""
    from nasfs.node.messages import ScheduleSet, ScheduleView

    _check_target(target)
    changes = options.named()
    if not changes:
        raise ConfigError("nothing to change was named", hint="for instance --keep 24")
    view = client().post("/v1/schedules/set", ScheduleView, ScheduleSet(target, policy, changes))
    if as_json:
        print_json(view)


def _check_target(text: str) -> None:
    target = parse_target(text)
    if target.snapshot:
        raise ConfigError(f"{text!r}: name a volume or a group, without @SNAPSHOT")


def _body(target: str, policy: str) -> ScheduleName:
    from nasfs.node.messages import ScheduleName

    _check_target(target)
    return ScheduleName(target, policy)


@app.command("list")
def list_(
    target: Annotated[str, typer.Argument(metavar="[POOL/VOLUME|GROUP]")] = "",
    as_json: Json = False,
) -> None:
    """Policies of the node, or of one volume or group."""
    from nasfs.node.messages import ScheduleView

    if target:
        _check_target(target)
    views = client().get("/v1/schedules", list[ScheduleView], target=target)
    if as_json:
        print_json(views)
    else:
        print_schedules(views)


def print_schedules(views: Sequence[ScheduleView]) -> None:
    print_table(
        ["TARGET", "POLICY", "RUNS", "KEEPS", "STATE", "NEXT RUN", "LAST RUN", "LAST SNAPSHOT"],
        [
            (v.target, v.policy, v.rhythm, v.retention, v.state, v.next_run or "-",
             v.result, v.last_snapshot_time or "never")
            for v in views
        ],
    )  # fmt: skip


@app.command()
def show(target: Target, policy: Policy, as_json: Json = False) -> None:
    """One policy, when it runs next, and how its last run ended."""
    from nasfs.node.messages import ScheduleView

    view = client().post("/v1/schedules/show", ScheduleView, _body(target, policy))
    if as_json:
        print_json(view)
        return
    spec = view.spec
    print_fields(
        [
            ("target", view.target),
            ("policy", view.policy),
            ("uuid", view.uuid),
            ("runs", view.rhythm),
            ("keeps", view.retention),
            ("missed runs", spec.missed),
            ("unchanged", spec.unchanged),
            ("before", _hook(spec.before, spec.before_timeout)),
            ("after", _hook(spec.after, spec.after_timeout)),
            ("state", view.state),
            ("reason", view.reason),
            ("next run", view.next_run),
            ("last run", f"{view.result} at {view.result_time}" if view.result_time else "never"),
            ("detail", view.detail),
            ("last snapshot", view.last_snapshot_time or "never"),
            ("failures since", view.failures or ""),
            ("snapshots", view.snapshots),
        ]
    )


def _hook(command: str | tuple[str, ...], timeout: str) -> str:
    if not command:
        return ""
    import shlex

    return f"{command if isinstance(command, str) else shlex.join(command)}  (at most {timeout})"


@app.command()
def remove(target: Target, policy: Policy) -> None:
    """Forget a policy; the snapshots that it took stay, and no policy destroys them any more."""
    client().post("/v1/schedules/remove", type(None), _body(target, policy))


@app.command()
def pause(target: Target, policy: Policy) -> None:
    """Take none until it is resumed; nothing is destroyed meanwhile."""
    from nasfs.node.messages import ScheduleView

    client().post("/v1/schedules/pause", ScheduleView, _body(target, policy))


@app.command()
def resume(target: Target, policy: Policy) -> None:
    """Go on; what passed while it was paused is not made up for."""
    from nasfs.node.messages import ScheduleView

    client().post("/v1/schedules/resume", ScheduleView, _body(target, policy))


@app.command()
def run(target: Target, policy: Policy, as_json: Json = False) -> None:
    """One run now, hooks and retention included, beside its schedule."""
    from nasfs.node.messages import RunView

    view = client().post("/v1/schedules/run", RunView, _body(target, policy))
    if as_json:
        print_json(view)
    else:
        typer.echo(view.snapshot or f"{view.result}: {view.detail}")


@app.command()
def prune(target: Target, policy: Policy, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Destroy now what the policy does not keep (every run does that, too)."""
    from nasfs.node.messages import DecisionView, SchedulePrune

    _check_target(target)
    body = SchedulePrune(target, policy, dry_run)
    views = client().post("/v1/schedules/prune", list[DecisionView], body)
    if as_json:
        print_json(views)
        return
    for view in views:
        if view.verdict == "destroy":
            typer.echo(f"destroy {view.snapshot}: {view.reason}")
    if dry_run:
        typer.echo(f"{sum(view.verdict == 'keep' for view in views)} would stay")


@app.command()
def explain(
    target: Target,
    policy: Annotated[str, typer.Argument(metavar="[POLICY]")] = "",
    as_json: Json = False,
) -> None:
    """Why each snapshot stays or goes: of one policy, or all of the volume or group."""
    from nasfs.node.messages import DecisionView, ScheduleExplain

    _check_target(target)
    body = ScheduleExplain(target, policy)
    views = client().post("/v1/schedules/explain", list[DecisionView], body)
    if as_json:
        print_json(views)
    else:
        _print_decisions(views)


def _print_decisions(views: Sequence[DecisionView]) -> None:
    print_table(
        ["SNAPSHOT", "TIME", "POLICY", "VERDICT", "WHY"],
        [(v.snapshot, v.time, v.policy or "-", v.verdict, v.reason) for v in views],
    )
