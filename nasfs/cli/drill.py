"""``nasfs test-failover``: a failover that changes nothing, to see that one would work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from nasfs.errors import ConfigError

from .session import DryRun, Json, client, path, print_fields, print_json, print_table

if TYPE_CHECKING:
    from nasfs.node.drills.drill_messages import DrillView

app = typer.Typer(
    help="Test failover: writable clones of a snap group, shared and tried, and thrown away.",
    no_args_is_help=True,
)
LONG_S = 3600.0
"""Probes may wait for slow disks (seconds)."""


@app.command()
def start(
    group: str,
    snapshot: Annotated[
        str, typer.Option(metavar="NAME", help="A snap group; else the newest complete one.")
    ] = "",
    prefix: Annotated[str, typer.Option(help="Before the names of the shares.")] = "",
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS[:PORT]", help="Of the test's smbd.")
    ] = "127.0.0.1",
    mountpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=path, help="Where the clones appear, as POOL/VOLUME."),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=path, help="Where what is written is kept meanwhile."),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a group's clones here, share and try them; exit 1 if something did not work."""
    from nasfs.node.drills.drill_messages import DrillStart, DrillView

    address, port = _split(listen)
    body = DrillStart(
        snapshot, prefix, address, port, _absolute(mountpoint), _absolute(space), dry_run
    )
    view = client().post(f"{_url(group)}/start", DrillView, body, timeout_s=LONG_S)
    _print(view, as_json)
    if not view.ok:
        raise typer.Exit(1)


@app.command()
def show(
    group: Annotated[str, typer.Argument(help="Without it: the latest of each group.")] = "",
    as_json: Json = False,
) -> None:
    """The test that is there, or the report of the latest."""
    from nasfs.node.drills.drill_messages import DrillView

    if group:
        _print(client().get(_url(group), DrillView), as_json)
        return
    views = client().get("/v1/test-failovers", list[DrillView])
    if as_json:
        print_json(views)
        return
    print_table(
        ["GROUP", "STATE", "WELL", "SNAP GROUP", "BEGAN", "SERVING AFTER"],
        [
            (v.group, v.state, "yes" if v.ok else "no", v.snapshot, v.began, f"{v.serving_s:.1f} s")
            for v in views
        ],
    )


@app.command()
def stop(group: str, as_json: Json = False) -> None:
    """Take it away: mounts, smbd, holds, and all that was written into the clones."""
    from nasfs.node.drills.drill_messages import DrillView

    view = client().post(f"{_url(group)}/stop", DrillView, timeout_s=LONG_S)
    if as_json:
        print_json(view)
    else:
        typer.echo(f"the test failover of {view.group} is over; nothing of it is left")


def _url(group: str) -> str:
    return f"/v1/test-failovers/{quote(group, safe='')}"


def _absolute(place: Path | None) -> str:
    return str(place.absolute()) if place else ""


def _split(listen: str) -> tuple[str, int]:
    """ADDRESS or ADDRESS:PORT; an IPv6 address with a port has brackets around it."""
    if listen.startswith("["):
        address, _, port = listen[1:].partition("]")
        port = port.removeprefix(":")
    elif listen.count(":") == 1:
        address, _, port = listen.partition(":")
    else:
        address, port = listen, ""
    if port and not port.isdigit():
        raise ConfigError(f"{listen!r} is not ADDRESS:PORT")
    return address, int(port or 0)


def _print(view: DrillView, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    stages = ", ".join(f"{stage.name} {stage.seconds:.2f} s" for stage in view.stages)
    print_fields(
        [
            ("group", view.group),
            ("state", view.state),
            ("snap group", f"{view.snapshot}, taken {view.snapshot_time}"),
            ("would lose", f"what was written in the {view.age_s} s before" if view.began else ""),
            ("began", view.began),
            ("ended", view.ended),
            *(("clone", f"{one.volume} at {one.path}: {one.state}") for one in view.clones),
            ("smbd", view.listen),
            ("Ganesha", view.nfs),
            *(("share", f"{one.name}: {one.note or one.path}") for one in view.shares),
            *(("export", f"{one.name}: {one.nfs}") for one in view.shares if one.nfs),
            ("stages", stages),
            ("serving after", f"{view.serving_s:.2f} s" if view.stages else ""),
            *(("problem", problem) for problem in view.problems),
        ]
    )
    for number, step in enumerate(view.plan, start=1):
        typer.echo(f"{number}. {step}")
    for probe in view.probes:
        typer.echo(
            f"{probe.result:9}  {probe.where}: {probe.what} ({probe.seconds:.2f} s)"
            f"{': ' if probe.detail else ''}{probe.detail}"
        )
