"""``nasfs failover`` and ``nasfs readiness``."""

from __future__ import annotations

from typing import Annotated

import typer

from .session import DryRun, Json, client, print_fields, print_json


def failover(
    group: str,
    force: Annotated[
        bool, typer.Option("--force", help="Although the partner has not agreed.")
    ] = False,
    lose_unreplicated: Annotated[
        bool,
        typer.Option("--lose-unreplicated", help="What was not replicated will be lost here."),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make this node the primary of a group.  Given again, it goes on where it was stopped."""
    from nasfs.node.client import group_url
    from nasfs.node.messages import FailoverRequest, PlanView

    body = FailoverRequest(force, lose_unreplicated, dry_run)
    plan = client().post(f"{group_url(group)}/failover", PlanView, body)
    if as_json:
        print_json(plan)
        return
    typer.echo(f"failover of {plan.group}, term {plan.term}:")
    for number, step in enumerate(plan.steps, start=1):
        typer.echo(f"{number}. {step.text}" + (" (done)" if step.done else ""))
    if plan.losing:
        typer.echo(plan.losing)


def readiness(group: str, as_json: Json = False) -> None:
    """Would a failover to this node work now, and what would it lose; exit 1 if it would not."""
    from nasfs.node.client import group_url
    from nasfs.node.messages import ReadinessView

    view = client().get(f"{group_url(group)}/readiness", ReadinessView)
    if as_json:
        print_json(view)
    else:
        lost = f"what was written in the last {view.age_s} s" if view.age_s is not None else ""
        print_fields(
            [
                ("group", view.group),
                ("ready", "yes" if view.ready else "no"),
                ("role", f"{view.role}, term {view.term}"),
                ("partner", "answers" if view.peer_reachable else "does not answer"),
                ("last snap group", view.last_snapshot),
                ("taken", view.last_snapshot_time),
                ("would lose", lost),
                *(("problem", problem) for problem in view.problems),
            ]
        )
    if not view.ready:
        raise typer.Exit(1)
