"""``nasfs share``: directories of volumes, exported by Samba and NFS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from nasfs.errors import ConfigError, Failed
from nasfs.node.words import parse_volume

from . import share_options as o
from .session import DryRun, Json, client, path, print_fields, print_json, print_table, warn

if TYPE_CHECKING:
    from nasfs.node.share_messages import ShareView

app = typer.Typer(help="Shares: what Samba and NFS export.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME")]
Server = Annotated[str, typer.Argument(metavar="samba|kernel|ganesha")]


@app.command()
def create(
    name: Name,
    volume: Annotated[str, typer.Argument(metavar="POOL/VOLUME")],
    directory: Annotated[
        str, typer.Option(metavar="DIR", help="Below the volume's root; else the whole volume.")
    ] = "",
    comment: o.Comment = None,
    enabled: o.Enabled = None,
    with_smb: o.WithSmb = None,
    read_only: o.ReadOnly = None,
    listed: o.Listed = None,
    listed_for_users: o.ListedForUsers = None,
    guests: o.Guests = None,
    user: o.Users = None,
    deny_user: o.Deny = None,
    reader: o.Readers = None,
    writer: o.Writers = None,
    admin: o.Admins = None,
    host: o.Hosts = None,
    deny_host: o.DenyHosts = None,
    vfs: o.Modules = None,
    nt_acls: o.NtAcls = False,
    apple: o.Apple = False,
    previous_versions: o.Previous = None,
    create_mask: o.CreateMask = None,
    directory_mask: o.DirectoryMask = None,
    force_user: o.ForceUser = None,
    force_group: o.ForceGroup = None,
    smb_line: o.SmbLines = None,
    with_nfs: o.WithNfs = None,
    nfs_client: o.NfsClients = None,
    pseudo: o.Pseudo = None,
    ganesha_line: o.GaneshaLines = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Share a volume, or a directory in it: by SMB, by NFS, or both."""
    given = dict(locals())
    from nasfs.node.share_messages import ShareCreate, ShareView
    from sharecfg.model import Share

    parse_volume(volume)
    share = o.apply(Share(name=name, volume=volume, directory=directory.strip("/")), given)
    if share.smb is None and share.nfs is None:
        raise ConfigError("shared by what?", hint="--smb, or --nfs-client '10.0.0.0/8(rw)'")
    view = client().post("/v1/shares", ShareView, ShareCreate(share, dry_run))
    _tell(view, as_json)


@app.command("set")
def set_(
    name: Name,
    volume: Annotated[str, typer.Option(metavar="POOL/VOLUME", help="Of another volume.")] = "",
    directory: Annotated[
        str | None, typer.Option(metavar="DIR", help="Another directory of the volume.")
    ] = None,
    new_name: Annotated[str, typer.Option("--name", metavar="NEW", help="Another name.")] = "",
    comment: o.Comment = None,
    enabled: o.Enabled = None,
    with_smb: o.WithSmb = None,
    read_only: o.ReadOnly = None,
    listed: o.Listed = None,
    listed_for_users: o.ListedForUsers = None,
    guests: o.Guests = None,
    user: o.Users = None,
    deny_user: o.Deny = None,
    reader: o.Readers = None,
    writer: o.Writers = None,
    admin: o.Admins = None,
    host: o.Hosts = None,
    deny_host: o.DenyHosts = None,
    vfs: o.Modules = None,
    nt_acls: o.NtAcls = False,
    apple: o.Apple = False,
    previous_versions: o.Previous = None,
    create_mask: o.CreateMask = None,
    directory_mask: o.DirectoryMask = None,
    force_user: o.ForceUser = None,
    force_group: o.ForceGroup = None,
    smb_line: o.SmbLines = None,
    with_nfs: o.WithNfs = None,
    nfs_client: o.NfsClients = None,
    pseudo: o.Pseudo = None,
    ganesha_line: o.GaneshaLines = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Change what is named; the rest stays."""
    given = dict(locals())
    from msgspec.structs import replace

    from nasfs.node.share_messages import ShareSet, ShareView

    old = _get(name).share
    new = o.apply(old, given)
    new = replace(
        new,
        name=new_name or new.name,
        volume=str(parse_volume(volume)) if volume else new.volume,
        directory=new.directory if directory is None else directory.strip("/"),
    )
    if new == old and not as_json:
        warn(f"share {name} is like that already")
        return
    _tell(client().post("/v1/shares/set", ShareView, ShareSet(old, new, dry_run)), as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All shares, and whether they are served."""
    from nasfs.node.share_messages import ShareView

    views = client().get("/v1/shares", list[ShareView])
    if as_json:
        print_json(views)
        return
    print_table(
        ["SHARE", "VOLUME", "DIRECTORY", "SMB", "NFS", "STATE"],
        [
            (
                view.share.name,
                view.share.volume,
                view.share.directory or ".",
                _by(view.share.smb),
                _by(view.share.nfs),
                view.state + (" (see share show)" if view.notes else ""),
            )
            for view in views
        ],
    )


def _by(protocol: Any) -> str:
    return "no" if protocol is None else "open" if protocol.enabled else "closed"


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """One share with everything."""
    view = _get(name)
    if as_json:
        print_json(view)
        return
    import yaml
    from msgspec import to_builtins

    print_fields([("path", view.path), ("state", view.state), *_notes(view)])
    typer.echo(
        yaml.safe_dump(to_builtins(view.share), sort_keys=False, allow_unicode=True), nl=False
    )


@app.command()
def delete(name: Name) -> None:
    """Share it no more.  The files stay."""
    client().post(f"/v1/shares/delete/{quote(name, safe='')}", type(None))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", parser=path, help="- is the input.")],
    format: Annotated[
        str,
        typer.Option("--format", metavar="yaml|samba|exports|ganesha", help="Else by its name."),
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Instead of shares of the same name.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take shares from a file of `share export`, or from the configuration of a server."""
    from nasfs.node.share_messages import ImportView, ShareImport

    body = ShareImport(str(file), format or _format(file), _read(file), replace, dry_run)
    view = client().post("/v1/shares/import", ImportView, body)
    if as_json:
        print_json(view)
        return
    for one in view.taken:
        typer.echo(f"{'would take' if dry_run else 'took'} {one.share.name}: {one.path}")
        _print_notes(one)
    for left in view.left:
        warn(f"left: {left}")
    for note in view.notes:
        warn(f"note: {note}")


def _format(file: Path) -> str:
    endings = {".yaml": "yaml", ".yml": "yaml", ".exports": "exports"}
    names = {"smb.conf": "samba", "exports": "exports", "ganesha.conf": "ganesha"}
    found = names.get(file.name) or endings.get(file.suffix)
    if found is None:
        raise ConfigError(f"what is {file}?", hint="--format yaml, samba, exports or ganesha")
    return found


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as exc:
        raise Failed(f"cannot read {file}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{file} is not UTF-8") from exc


@app.command()
def export() -> None:
    """Print all shares, as a file that `share import` takes."""
    typer.echo(client().get("/v1/shares/export", str), nl=False)


@app.command()
def render(server: Server) -> None:
    """Print what a server is told of the shares that are served now."""
    typer.echo(client().get(f"/v1/shares/render/{quote(server, safe='')}", str), nl=False)


@app.command()
def connect(server: Server, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Add one line to your smb.conf or ganesha.conf, that includes what nasfs writes."""
    from nasfs.node.share_messages import ConnectView, ShareConnect

    view = client().post("/v1/shares/connect", ConnectView, ShareConnect(server, dry_run))
    if as_json:
        print_json(view)
        return
    did = "would add to" if dry_run else "added to"
    typer.echo(f"{did if view.changed else 'is in'} {view.file}: {view.line or '(nothing)'}")
    for note in view.notes:
        warn(f"note: {note}")


def _get(name: str) -> ShareView:
    from nasfs.node.share_messages import ShareView

    return client().get(f"/v1/shares/show/{quote(name, safe='')}", ShareView)


def _notes(view: ShareView) -> list[tuple[str, str]]:
    return [("note", note) for note in view.notes]


def _print_notes(view: ShareView) -> None:
    for note in view.notes:
        warn(f"note: {note}")


def _tell(view: ShareView, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    if view.state != "served":
        warn(f"note: not served now: {view.state}")
    _print_notes(view)
