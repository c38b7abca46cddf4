"""``nasfs replication``: the link's windows, rates and shares, its account, and the other side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nasfs.errors import ConfigError
from nasfs.node.words import check_name, render_size
from replication.link import make_window, render_rate

from .session import Json, client, print_fields, print_json, print_table

if TYPE_CHECKING:
    from nasfs.node.sending.replication_messages import ReceptionView

windows = typer.Typer(help="When a group may be sent.", no_args_is_help=True)


LANES_HELP = "Connections for bulk data: auto (by the link's delay) or 1 to 8."
ENCRYPTION_HELP = "Of bulk data: on, or off for a trusted line. All else is always encrypted."


def register(app: typer.Typer) -> None:
    """Add these commands to ``nasfs replication``."""
    app.add_typer(windows, name="window")
    for command in (set_, link, history, explain, reception):
        app.command(command.__name__.rstrip("_"))(command)


def set_(
    group: str,
    compression: Annotated[str | None, typer.Option(help="off, auto or 1 to 9.")] = None,
    max_snapshots: Annotated[
        int | None, typer.Option(help="How many the partner is asked to keep, 1-1000.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="Per cent of the link that it may have.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="A second, at most: 50M, 100Mbit; off: no limit.")
    ] = None,
    max_lag: Annotated[
        str | None, typer.Option(metavar="SPAN", help="Further behind, snap groups are left out.")
    ] = None,
    rpo: Annotated[
        str | None, typer.Option(metavar="SPAN", help="So old may the partner's copy become.")
    ] = None,
    lanes: Annotated[str | None, typer.Option(help=LANES_HELP)] = None,
    encryption: Annotated[str | None, typer.Option(help=ENCRYPTION_HELP)] = None,
) -> None:
    """Change what is named; it counts at once, for a transfer under way, too."""
    from nasfs.node.client import replication_url
    from nasfs.node.messages import ReplicationView
    from nasfs.node.sending.replication_messages import ReplicationSet

    body = ReplicationSet(
        compression, max_snapshots, priority, rate, max_lag, rpo, lanes, encryption
    )
    if body == ReplicationSet():
        raise ConfigError("nothing to change was named", hint="nasfs replication set --help")
    client().patch(replication_url(group), ReplicationView, body)


@windows.command("add")
def add_window(
    group: str,
    start: Annotated[str, typer.Option("--from", metavar="HH:MM")],
    stop: Annotated[str, typer.Option("--to", metavar="HH:MM", help="24:00 is the day's end.")],
    days: Annotated[str, typer.Option(help="mon-fri or sat,sun; none: every day.")] = "",
    rate: Annotated[str, typer.Option(help="A second, at most, in this window.")] = "",
    zone: Annotated[str, typer.Option("--timezone", help="Whose clocks are meant.")] = "UTC",
) -> None:
    """Send only in this window and the other ones of the group."""
    from nasfs.node.client import replication_url
    from nasfs.node.messages import ReplicationView
    from nasfs.node.sending.replication_messages import WindowAdd

    window = make_window(days, start, stop, rate, zone)
    client().post(f"{replication_url(group)}/windows", ReplicationView, WindowAdd(str(window)))


@windows.command("list")
def list_windows(group: str, as_json: Json = False) -> None:
    """The windows of a group; none: it may send always."""
    from nasfs.node.client import replication_url
    from nasfs.node.sending.replication_messages import WindowView

    views = client().get(f"{replication_url(group)}/windows", list[WindowView])
    if as_json:
        print_json(views)
        return
    if not views:
        typer.echo("no windows: it may send always")
        return
    print_table(
        ["NUMBER", "DAYS", "FROM", "TO", "ZONE", "RATE", "NOW", "UNTIL"],
        [
            (v.number, v.days, v.start, v.stop, v.zone, render_rate(v.rate),
             "open" if v.open else "closed", v.changes or "-")
            for v in views
        ],
    )  # fmt: skip


@windows.command("remove")
def remove_window(
    group: str,
    number: Annotated[int, typer.Argument(help="As `window list` counts.")] = 0,
    everyone: Annotated[bool, typer.Option("--all", help="All windows of the group.")] = False,
) -> None:
    """Take a window away; without any, the group may send always."""
    from nasfs.node.client import replication_url
    from nasfs.node.messages import ReplicationView
    from nasfs.node.sending.replication_messages import WindowRemove

    if everyone == bool(number) or number < 0:
        raise ConfigError("which window?", hint="a number of `window list`, or --all")
    url = f"{replication_url(group)}/windows/remove"
    client().post(url, ReplicationView, WindowRemove(number))


def link(
    rate: Annotated[
        str | None,
        typer.Option(help="All transfers together, a second: 50M, 100Mbit; off: no limit."),
    ] = None,
    transfers: Annotated[
        int | None, typer.Option(help="So many groups at a time, 1-64; others take turns.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or change what all groups share of the link to the partner."""
    from nasfs.node.sending.replication_messages import LinkSet, LinkView

    if rate is None and transfers is None:
        view = client().get("/v1/link", LinkView)
    else:
        view = client().patch("/v1/link", LinkView, LinkSet(rate, transfers))
    if as_json:
        print_json(view)
        return
    print_fields(
        [
            ("rate", render_rate(view.rate)),
            ("transfers at a time", view.transfers),
            ("sending now", ", ".join(view.sending) or "-"),
        ]
    )


def history(
    group: str,
    limit: Annotated[int, typer.Option(help="At most so many, the latest.")] = 20,
    as_json: Json = False,
) -> None:
    """The latest transfers of a group, newest first."""
    from nasfs.node.client import replication_url
    from nasfs.node.sending.replication_messages import PastView

    views = client().get(f"{replication_url(group)}/history", list[PastView], limit=str(limit))
    if as_json:
        print_json(views)
        return
    print_table(
        ["ENDED", "SECONDS", "RESULT", "SNAPSHOTS", "UP TO", "ROWS", "BYTES", "ON THE WIRE", ""],
        [
            (v.ended or "-", f"{v.seconds:.1f}", v.result, v.snapshots, v.snapshot or "-", v.rows,
             render_size(v.bytes), render_size(v.wire_bytes), v.detail)
            for v in views
        ],
    )  # fmt: skip


def explain(group: str, as_json: Json = False) -> None:
    """Why the partner is not up to date: every reason, and what to do about it."""
    from nasfs.node.client import replication_url
    from nasfs.node.sending.replication_messages import ReasonView

    views = client().get(f"{replication_url(group)}/reasons", list[ReasonView])
    if as_json:
        print_json(views)
        return
    for view in views:
        typer.echo(view.reason + (f"\n  {view.hint}" if view.hint else ""))
    if not views:
        typer.echo("nothing waits: the partner is up to date")


def reception(
    group: str,
    keep_least: Annotated[
        int | None,
        typer.Option("--keep-at-least", help="Never fewer, whatever the sender asks; 0: no rule."),
    ] = None,
    keep_most: Annotated[
        int | None, typer.Option("--keep-at-most", help="Never more; 0: no rule.")
    ] = None,
    as_json: Json = False,
) -> None:
    """On the receiving node: show or change what it keeps of a group, by its own rules."""
    from nasfs.node.sending.replication_messages import ReceptionSet, ReceptionView

    url = f"/v1/receptions/{check_name(group, 'group')}"
    if keep_least is None and keep_most is None:
        view = client().get(url, ReceptionView)
    else:
        view = client().patch(url, ReceptionView, ReceptionSet(keep_least, keep_most))
    if as_json:
        print_json(view)
        return
    _print_reception(view)


def _print_reception(view: ReceptionView) -> None:
    print_fields(
        [
            ("group", f"{view.group} ({view.role})"),
            ("newest", f"{view.newest}, taken {view.newest_time}" if view.newest else "-"),
            ("snap groups", view.snapshots),
            ("keeps", f"{view.keeps} snapshots of each volume"),
            ("the sender asks for", view.asked),
            ("at least", view.keep_least or "-"),
            ("at most", view.keep_most or "-"),
        ]
    )
