"""``nasfs status`` and ``nasfs events``."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from .schedule import print_schedules
from .session import Json, client, print_json, print_line, print_table
from .volume import figures

if TYPE_CHECKING:
    from nasfs.node.messages import EventView, StatusView


WATCH_S = 1.0


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until ^C.")] = False,
    as_json: Json = False,
) -> None:
    """Everything at a glance: volumes, groups, roles, replication, what needs attention."""
    from nasfs.node.messages import StatusView

    with contextlib.suppress(KeyboardInterrupt):
        while True:
            view = client().get("/v1/status", StatusView)
            if watch and sys.stdout.isatty():
                typer.echo("\x1b[H\x1b[2J", nl=False)
            if as_json:
                print_json(view)
            else:
                _print_status(view)
            if not watch:
                return
            sys.stdout.flush()
            time.sleep(WATCH_S)


def _print_status(view: StatusView) -> None:
    from .progress import progress_line

    partner = f"partner {view.peer.name} at {view.peer.address}" if view.peer else "no partner"
    typer.echo(f"node {view.node.name}, nasfs {view.version}; {partner}\n")
    print_table(
        ["VOLUME", "USED", "SIZE", "SNAPSHOTS", "STATE", "MOUNT POINT"],
        [(v.name, *figures(v), v.mount_state, v.mountpoint) for v in view.volumes],
    )
    if view.groups:
        typer.echo()
        sends = {send.group: send for send in view.replications}
        print_table(
            ["GROUP", "ROLE", "TERM", "LAST SNAP GROUP", "TAKEN", "REPLICATION", "LAST SUCCESS"],
            [
                (g.name, g.role, g.term, g.last_snapshot or "-", g.last_snapshot_time or "-",
                 sends[g.name].state if g.name in sends else "-",
                 (sends[g.name].last_success or "never") if g.name in sends else "-")
                for g in view.groups
            ],
        )  # fmt: skip
    running = [send for send in view.replications if send.state == "running" and send.snapshot]
    for send in running:
        typer.echo(f"{send.group}: {progress_line(send)}")
    if view.schedules:
        typer.echo()
        print_schedules(view.schedules)
    typer.echo()
    for sentence in view.attention:
        typer.echo(f"attention: {sentence}")
    if not view.attention:
        typer.echo("nothing needs attention")


def events(
    after: Annotated[int, typer.Option(help="Only those with a higher number.")] = 0,
    limit: Annotated[int, typer.Option(help="At most so many, the newest.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", help="And those to come, until ^C.")] = False,
    as_json: Json = False,
) -> None:
    """Who did what, and what failed.  With --follow, --json prints one object a line."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            views = _events(after, limit)
            if as_json and not follow:
                print_json(views)
            for event in views:
                after = event.number
                if follow and as_json:
                    print_line(event)
                elif not as_json:
                    detail = f": {event.detail}" if event.detail else ""
                    typer.echo(
                        f"{event.number} {event.time} {event.actor} {event.kind}"
                        f" {event.subject}{detail}"
                    )
            if not follow:
                return
            sys.stdout.flush()
            time.sleep(WATCH_S)


def _events(after: int, limit: int) -> list[EventView]:
    from nasfs.node.messages import EventView

    return client().get("/v1/events", list[EventView], after=str(after), limit=str(limit))
