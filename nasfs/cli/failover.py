"""``nasfs failover``, ``failback-join``, ``failback``, ``rollback``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .session import DryRun, Json, client, print_json, warn

if TYPE_CHECKING:
    from nasfs.node.messages import PlanView, Request

CutOff = Annotated[
    bool,
    typer.Option("--force", help="Although files are in use on the partner."),
]


def failover(
    group: str,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Although files are in use on the partner; with --lose-unreplicated: although it"
            " has not agreed.",
        ),
    ] = False,
    lose_unreplicated: Annotated[
        bool,
        typer.Option("--lose-unreplicated", help="What was not replicated will be lost here."),
    ] = False,
    to: Annotated[
        str, typer.Option("--to", metavar="SNAPSHOT", help="An older snap group to go back to.")
    ] = "",
    call_off: Annotated[
        bool,
        typer.Option("--call-off", help="Give up one that waits for the partner; on either node."),
    ] = False,
    without_partner: Annotated[
        bool,
        typer.Option(
            "--without-partner",
            help="On a primary that has come back: go on although the partner does not answer.",
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make this node the primary of a group.  Given again, it goes on where it was stopped."""
    from nasfs.errors import ConfigError
    from nasfs.node.messages import FailoverRequest

    if call_off and (force or lose_unreplicated or to or dry_run):
        raise ConfigError("--call-off goes with no other option")
    if without_partner and (force or lose_unreplicated or to or dry_run or call_off):
        raise ConfigError("--without-partner goes with no other option")
    body = FailoverRequest(force, lose_unreplicated, dry_run, to, call_off, without_partner)
    plan = _post(group, "failover", body)
    if as_json:
        print_json(plan)
    elif call_off:
        typer.echo(f"called off; what has become of it: nasfs group show {group}")
    elif without_partner:
        typer.echo(f"group {group} goes on here as the primary, in term {plan.term}")
    else:
        _print_plan(plan)


def failback_join(group: str, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Take the old primary back as the secondary of a group that this node has taken over."""
    from nasfs.node.messages import RoleRequest

    plan = _post(group, "failback-join", RoleRequest(dry_run=dry_run))
    print_json(plan) if as_json else _print_plan(plan)


def failback(
    group: str, force: CutOff = False, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Make the original primary the primary again; the partner hands the group over."""
    from nasfs.node.messages import RoleRequest

    plan = _post(group, "failback", RoleRequest(force, dry_run))
    print_json(plan) if as_json else _print_plan(plan)


def rollback(
    snapshot: Annotated[str, typer.Argument(metavar="GROUP@SNAPSHOT|POOL/VOLUME@SNAPSHOT")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """A group, or a volume in none, becomes what it was; what it is now is kept as a snapshot."""
    from nasfs.node.messages import GroupRollback
    from nasfs.node.words import parse_snapshot

    from .snapshot import rollback as roll_volume_back

    target = parse_snapshot(snapshot)
    if target.volume is not None:
        roll_volume_back(snapshot, dry_run, as_json)
        return
    plan = _post(target.group, "rollback", GroupRollback(target.snapshot, dry_run))
    print_json(plan) if as_json else _print_plan(plan)


def _post(group: str, operation: str, body: Request) -> PlanView:
    from nasfs.node.client import group_url
    from nasfs.node.messages import PlanView
    from nasfs.node.words import LONG_S

    return client().post(f"{group_url(group)}/{operation}", PlanView, body, timeout_s=LONG_S)


def _print_plan(plan: PlanView) -> None:
    typer.echo(f"{plan.kind} of {plan.group}, term {plan.term}:")
    for number, step in enumerate(plan.steps, start=1):
        took = "" if step.seconds is None else f", {step.seconds:.2f} s"
        typer.echo(f"{number}. {step.text}" + (f" (done{took})" if step.done else ""))
    typer.echo(plan.losing or "nothing is lost")
    if plan.seconds:
        typer.echo(f"done after {plan.seconds:.1f} s")
    whose = "what there was before" if plan.kind == "rollback" else "what only the partner had"
    for snapshot in plan.kept:
        typer.echo(f"{whose} is kept as {snapshot}")
    for note in plan.notes:
        warn(f"note: {note}")
