"""``nasfs readiness``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from nasfs.node.words import render_size

from .session import Json, client, print_fields, print_json

if TYPE_CHECKING:
    from nasfs.node.roles.readiness_messages import ReadinessView


def readiness(group: str, as_json: Json = False) -> None:
    """Would a failover to this node work now, and what would it lose; exit 1 if it would not."""
    from nasfs.node.client import group_url
    from nasfs.node.roles.readiness_messages import ReadinessView

    view = client().get(f"{group_url(group)}/readiness", ReadinessView)
    if as_json:
        print_json(view)
    else:
        _print(view)
    if not view.ready:
        raise typer.Exit(1)


def _print(view: ReadinessView) -> None:
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
            ("of it known", _loss(view)),
        ]
    )
    for check in view.checks:
        detail = f": {check.detail}" if check.detail else ""
        typer.echo(f"{check.result:7}  {check.what}{detail}")


def _loss(view: ReadinessView) -> str:
    if view.loss is None:
        return "nothing: the partner has never said what it has not replicated"
    loss = view.loss
    more = ", and what was written after them" if loss.written_since else ""
    many = "" if loss.snap_groups == 1 else "s"
    told = f"{loss.snap_groups} snap group{many} with {loss.files} files, {render_size(loss.bytes)}"
    if not loss.snap_groups:
        told, more = "no snap group", ", but something was written" if loss.written_since else ""
    return f"{told}{more} (the partner, {loss.as_of})"
