"""``nasfs volume``: NAS file systems in pools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasfs.node.words import parse_size, parse_volume, render_size

from .samba import samba
from .session import (
    DryRun,
    Json,
    client,
    path,
    places,
    print_fields,
    print_json,
    print_table,
    warn,
)

if TYPE_CHECKING:
    from nasfs.node.messages import VolumeView

app = typer.Typer(help="Volumes: NAS file systems in pools.", no_args_is_help=True)
Volume = Annotated[str, typer.Argument(metavar="POOL/VOLUME")]


def _url(text: str) -> str:
    from nasfs.node.client import volume_url

    name = parse_volume(text)
    return volume_url(name.pool, name.volume)


@app.command()
def create(
    name: Volume,
    size: Annotated[str, typer.Option(help="For instance 500M, 100G or 1.5T.")],
    provision: Annotated[
        str,
        typer.Option(
            help="thin: only what is written takes space; exact: the pool's disk keeps it all."
        ),
    ] = "thin",
    mountpoint: Annotated[Path | None, typer.Option(metavar="DIR", parser=path)] = None,
) -> None:
    """Make an empty volume."""
    from nasfs.node.messages import VolumeCreate, VolumeView

    parse_volume(name)
    where = str(mountpoint.absolute()) if mountpoint else ""
    body = VolumeCreate(name, parse_size(size), provision, where)
    client().post("/v1/volumes", VolumeView, body)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All volumes."""
    from nasfs.node.messages import VolumeView

    views = client().get("/v1/volumes", list[VolumeView])
    if as_json:
        print_json(views)
        return
    print_table(
        ["VOLUME", "USED", "SIZE", "SNAPSHOTS", "PROVISION", "RESERVED", "GROUP", "STATE",
         "MOUNT POINT"],
        [
            (v.name, *figures(v), v.provision or "?", _reserved(v) or "-", v.group or "-",
             v.mount_state, v.mountpoint)
            for v in views
        ],
    )  # fmt: skip


@app.command()
def show(name: Volume, as_json: Json = False) -> None:
    """One volume."""
    from nasfs.node.messages import VolumeView

    view = client().get(_url(name), VolumeView)
    if as_json:
        print_json(view)
    else:
        _print(view)


def figures(view: VolumeView) -> tuple[str, str, str]:
    """Used, size, snapshots for a table; nothing is told of a volume that can't be read."""
    if not view.provision:
        return "?", "?", "?"
    return render_size(view.used), render_size(view.size), str(view.snapshots)


def _reserved(view: VolumeView) -> str:
    return render_size(view.reserved) if view.provision == "exact" else ""


def _print(view: VolumeView) -> None:
    print_fields(
        [
            ("volume", view.name),
            ("uuid", view.uuid),
            ("size", f"{render_size(view.size)} ({view.provision})" if view.provision else ""),
            *(
                (
                    ("used", f"{render_size(view.used)}, {render_size(view.live)} of it live"),
                    ("reserved", _reserved(view)),
                    ("inodes", view.inodes),
                    ("snapshots", view.snapshots),
                    (".snapshots", "listed" if view.list_snapshots else "hidden"),
                )
                if view.provision
                else ()
            ),
            ("group", view.group),
            ("mount point", view.mountpoint),
            ("state", view.mount_state + (" (kept mounted)" if view.wanted else "")),
            ("process", view.mount_pid or ""),
            ("problem", view.problem),
        ]
    )


@app.command()
def mount(
    name: Volume,
    without_partner: Annotated[
        bool,
        typer.Option(
            "--without-partner",
            help="Its group has come back and the partner does not answer: go on as the primary.",
        ),
    ] = False,
) -> None:
    """Mount at its mount point, now and whenever the daemon starts."""
    from nasfs.node.messages import VolumeMount, VolumeView

    body = VolumeMount(without_partner)
    typer.echo(client().post(f"{_url(name)}/mount", VolumeView, body).mountpoint)


@app.command()
def unmount(name: Volume) -> None:
    """Unmount, and leave it unmounted."""
    from nasfs.node.messages import VolumeView

    client().post(f"{_url(name)}/unmount", VolumeView)


@app.command("set")
def set_(
    name: Volume,
    mountpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where it is mounted, from its next mount on."),
    ] = None,
    list_snapshots: Annotated[
        str, typer.Option(metavar="on|off", help="Whether `ls -a` of its root shows .snapshots.")
    ] = "",
) -> None:
    """Change where it is mounted, or what its root shows."""
    from nasfs.errors import ConfigError
    from nasfs.node.messages import VolumeSet, VolumeView

    if list_snapshots not in ("", "on", "off"):
        raise ConfigError(f"--list-snapshots {list_snapshots}: it is on or off")
    if mountpoint is None and not list_snapshots:
        raise ConfigError("nothing to set", hint="give --mountpoint or --list-snapshots")
    body = VolumeSet(
        "" if mountpoint is None else str(mountpoint.absolute()),
        list_snapshots == "on" if list_snapshots else None,
    )
    client().patch(_url(name), VolumeView, body)


@app.command()
def resize(
    name: Volume,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="For instance 500M, 100G or 1.5T.")],
    as_json: Json = False,
) -> None:
    """Grow or shrink, mounted or not; never below what it holds, snapshots included."""
    from nasfs.node.messages import VolumeResize, VolumeView

    view = client().post(f"{_url(name)}/resize", VolumeView, VolumeResize(parse_size(size)))
    if as_json:
        print_json(view)


@app.command()
def rename(
    name: Volume,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="NEW or POOL/NEW.")],
) -> None:
    """Another name in the same pool, for an unmounted volume in no group."""
    from nasfs.errors import ConfigError
    from nasfs.node.messages import VolumeRename, VolumeView

    pool, slash, rest = new_name.rpartition("/")
    if slash and pool != parse_volume(name).pool:
        raise ConfigError("a volume stays in its pool", hint=f"nasfs volume rename {name} {rest}")
    client().post(f"{_url(name)}/rename", VolumeView, VolumeRename(rest))


@app.command()
def destroy(
    name: Volume,
    lose_data: Annotated[
        bool, typer.Option("--lose-data", help="Its files and all its snapshots will be lost.")
    ] = False,
) -> None:
    """Remove an unmounted volume in no group."""
    from nasfs.node.messages import VolumeDestroy

    client().post(f"{_url(name)}/destroy", type(None), VolumeDestroy(lose_data))


@app.command()
def check(
    name: Volume,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what follows from the rest; unmounted only.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Prove the invariants of docs/FORMAT.md; exit 1 and a list where one is broken."""
    from nasfs.errors import ConfigError
    from nasfs.node import checking

    from .progress import check_display

    if dry_run and not repair:
        raise ConfigError("--dry-run is for --repair", hint="a check alone changes nothing")
    volume = parse_volume(name)
    with check_display(quiet=as_json) as display:
        if repair:
            outcome = checking.repair(places(), volume, display, dry_run=dry_run)
            repairs, findings = outcome.repairs, outcome.left
        else:
            repairs, findings = (), tuple(checking.check(places(), volume, display))
    if as_json:
        left = [{"invariant": f.invariant, "detail": f.detail} for f in findings]
        done = [{"invariant": r.invariant, "detail": r.detail} for r in repairs]
        print_json({"repairs": done, "findings": left} if repair else left)
    else:
        for done_one in repairs:
            typer.echo(f"{'would repair' if dry_run else 'repaired'} {done_one}")
        for finding in findings:
            typer.echo(str(finding))
        if not findings:
            typer.echo(f"{name}: {'would be clean' if dry_run and repairs else 'clean'}")
    if findings:
        if repair:
            warn("what is left does not follow from the rest: take it from a snapshot or the peer")
        raise typer.Exit(1)


app.command()(samba)
