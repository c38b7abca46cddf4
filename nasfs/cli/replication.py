"""``nasfs replication``: sending a group's snapshots to the partner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nasfs.errors import ConfigError
from nasfs.node.words import check_name, parse_volume, render_size
from replication.link import render_rate

from . import verify
from .link import ENCRYPTION_HELP, LANES_HELP, register
from .session import DryRun, Json, client, print_fields, print_json, print_table, warn

if TYPE_CHECKING:
    from nasfs.node.messages import DeltaView, ReplicationView

app = typer.Typer(help="Replication of groups to the partner.", no_args_is_help=True)


@app.command()
def create(
    group: str,
    to_pool: Annotated[str, typer.Option(metavar="POOL", help="The partner's pool.")],
    volume: Annotated[
        list[str], typer.Option(metavar="LOCAL=REMOTE", help="A volume's name on the partner.")
    ] = [],  # noqa: B006  # typer makes a new list each time
    provision: Annotated[
        str,
        typer.Option(help="Of the partner's copies. thin, or exact: its disk keeps all of it."),
    ] = "thin",
    max_snapshots: Annotated[int, typer.Option(help="How many the partner keeps, 1-1000.")] = 64,
    compression: Annotated[str, typer.Option(help="off, auto or 1 to 9.")] = "auto",
    priority: Annotated[int, typer.Option(help="Per cent of the link that it may have.")] = 100,
    rate: Annotated[str, typer.Option(help="A second, at most: 50M, 100Mbit.")] = "",
    window: Annotated[
        list[str],
        typer.Option(
            metavar="WINDOW",
            help="When it may send: 'mon-fri 20:00-06:00 rate=50M zone=Europe/Berlin'; several"
            " are possible, none means always.",
        ),
    ] = [],  # noqa: B006
    max_lag: Annotated[
        str, typer.Option(metavar="SPAN", help="Further behind, snap groups are left out.")
    ] = "",
    rpo: Annotated[
        str, typer.Option(metavar="SPAN", help="So old may the partner's copy become.")
    ] = "",
    lanes: Annotated[str, typer.Option(help=LANES_HELP)] = "auto",
    encryption: Annotated[str, typer.Option(help=ENCRYPTION_HELP)] = "on",
) -> None:
    """Replicate a group: the partner makes passive volumes of the same identity."""
    from nasfs.node.messages import ReplicationCreate, ReplicationView

    check_name(group, "group")
    names = {}
    for pair in volume:
        local, equals, remote = pair.partition("=")
        if not equals or not remote:
            raise ConfigError(f"{pair!r} is not LOCAL=REMOTE", hint="--volume POOL/VOLUME=NAME")
        names[str(parse_volume(local))] = remote
    body = ReplicationCreate(
        group, to_pool, names, provision, max_snapshots, compression, priority, rate,
        tuple(window), max_lag, rpo, lanes, encryption,
    )  # fmt: skip
    client().post("/v1/replications", ReplicationView, body)


@app.command()
def run(
    group: str,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is done, with progress.")] = False,
    dry_run: DryRun = False,
    rebase: Annotated[
        bool,
        typer.Option(
            "--rebase",
            help="Without a common snapshot: compare contents, and send what differs.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Replicate what is waiting now."""
    from nasfs.node.client import replication_url
    from nasfs.node.messages import DeltaView, ReplicationView
    from nasfs.node.sending.replication_messages import ReplicationRun

    if rebase and dry_run:
        verify.show_rebase(group, as_json=as_json)
        return
    if dry_run:
        deltas = client().get(f"{replication_url(group)}/delta", list[DeltaView])
        _print_deltas(deltas, as_json)
        return
    body = ReplicationRun(rebase)
    view = client().post(f"{replication_url(group)}/run", ReplicationView, body)
    if wait:
        from .progress import wait_for_attempt

        view = wait_for_attempt(client(), view)
    if as_json:
        print_json(view)


def _print_deltas(views: list[DeltaView], as_json: bool) -> None:
    if as_json:
        print_json(views)
        return
    if not views:
        typer.echo("nothing is waiting")
        return
    print_table(
        ["VOLUME", "FROM", "TO", "ROWS", "FILES", "BYTES", "RATIO", "THERE IN"],
        [
            (v.volume, v.base or "(empty)", v.target, v.rows, v.files, render_size(v.bytes),
             f"{v.ratio:.2f}", "-" if v.seconds is None else f"{v.seconds:.0f}s")
            for v in views
        ],
    )  # fmt: skip


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All groups that this node replicates."""
    from nasfs.node.messages import ReplicationView

    views = client().get("/v1/replications", list[ReplicationView])
    if as_json:
        print_json(views)
        return
    print_table(
        ["GROUP", "TO POOL", "STATE", "WAITING", "LAG", "RPO", "LAST SUCCESS", "REASON"],
        [(v.group, v.to_pool, _state(v), v.waiting_snapshots, f"{v.lag_s:.0f}s", v.rpo or "-",
          v.last_success or "-", v.reason) for v in views],
    )  # fmt: skip


def _state(view: ReplicationView) -> str:
    return "split" if view.split else "paused" if view.paused else view.state


@app.command()
def show(group: str, as_json: Json = False) -> None:
    """How a group's replication stands."""
    from nasfs.node.client import replication_url
    from nasfs.node.messages import ReplicationView

    view = client().get(replication_url(group), ReplicationView)
    if as_json:
        print_json(view)
        return
    running = view.state == "running"
    print_fields(
        [
            ("group", f"{view.group} ({view.role})"),
            *(("volume", f"{here} -> {there}") for here, there in view.remote_volumes.items()),
            ("state", _state(view) + (f", {view.phase} {view.snapshot}" if running else "")),
            ("reason", view.reason),
            ("hint", view.hint),
            ("waiting snapshots", view.waiting_snapshots),
            ("lag", _lag(view)),
            ("done at", view.eta),
            ("newest on both", f"{view.common}, {view.age_s:.0f} s old" if view.common else "-"),
            ("RPO", f"{view.rpo_s} s: {view.rpo}" if view.rpo else ""),
            ("last success", view.last_success or "never"),
            ("latest transfer", f"{view.rows_done} rows, {render_size(view.bytes_done)}, "
             f"{render_size(view.wire_bytes)} on the wire, {view.seconds:.1f} s"),
            ("compression", view.compression + (f", level {view.level} now" if view.level else "")),
            ("lanes", view.lanes),
            ("encryption", "off: bulk data travels in the clear" * (view.encryption == "off")),
            ("priority", f"{view.priority} %"),
            ("rate", f"{render_rate(view.rate)} a second" if view.rate else ""),
            *(("window", window) for window in view.windows),
            ("left out", f"what waits for longer than {view.max_lag_s} s" * bool(view.max_lag_s)),
            ("partner keeps", f"{view.max_snapshots} snapshots"),
        ]
    )  # fmt: skip


def _lag(view: ReplicationView) -> str:
    known = view.lag_bytes is not None and view.waiting_snapshots
    size = f", {render_size(view.lag_bytes or 0)} to send" if known else ""
    return f"{view.lag_s:.0f} s{size}"


def _change(group: str, action: str) -> None:
    from nasfs.node.client import replication_url
    from nasfs.node.messages import ReplicationView

    client().post(f"{replication_url(group)}/{action}", ReplicationView)


@app.command()
def pause(group: str) -> None:
    """Stop sending; nothing that arrived is sent again later."""
    _change(group, "pause")


@app.command()
def resume(group: str) -> None:
    """Send again."""
    _change(group, "resume")


@app.command()
def split(group: str) -> None:
    """Part the two sites: nothing is sent, and only what both have is held here."""
    _change(group, "split")


@app.command()
def join(group: str) -> None:
    """Bring the sites together again: what happened meanwhile is sent."""
    _change(group, "join")


@app.command()
def delete(
    group: str,
    force: Annotated[
        bool,
        typer.Option("--force", help="Although the partner is gone, or both sides wrote to it."),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """End it, on both nodes; the copies become ordinary volumes, and nothing is destroyed."""
    from nasfs.node.client import replication_url
    from nasfs.node.part_messages import EndView, ReplicationDelete

    url = f"{replication_url(group)}/delete"
    view = client().post(url, EndView, ReplicationDelete(force, dry_run))
    if as_json:
        print_json(view)
        return
    for where, done in (("here", view.here), ("partner", view.partner)):
        for line in done:
            typer.echo(f"{where}: {line}")
    if not view.told and not dry_run:
        warn(
            "the partner does not know; there as well, when it is back:"
            f" nasfs replication delete {group}"
        )


register(app)
verify.register(app)
