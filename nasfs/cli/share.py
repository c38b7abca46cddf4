"""``nasfs share``: directories of volumes, exported by Samba and NFS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from nasfs.errors import ConfigError, Failed
from nasfs.node.words import parse_volume

from .options import with_options
from .session import DryRun, Json, client, path, print_fields, print_json, print_table, warn
from .share_options import ShareOptions, apply

if TYPE_CHECKING:
    from nasfs.node.shares.share_messages import ShareView

app = typer.Typer(help="Shares: what Samba and NFS export.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME")]
Server = Annotated[str, typer.Argument(metavar="smb|exports|ganesha")]


@app.command()
@with_options(ShareOptions)
def add(
    name: Name,
    volume: Annotated[str, typer.Argument(metavar="POOL/VOLUME[:/PATH]")],
    options: ShareOptions,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Share a volume, or a directory in it: by SMB or, with --nfs, by NFS; with both, by both."""
    from msgspec.structs import replace

    from nasfs.node.shares.share_messages import ShareCreate, ShareView
    from sharecfg.model import Share, Smb

    of, directory = _place(volume)
    share = apply(Share(name=name, volume=of, directory=directory), options)
    if share.smb is None and share.nfs is None:
        if options.smb or options.nfs:
            raise ConfigError("shared by what?", hint="--smb on, or --nfs '10.0.0.0/8:rw'")
        share = apply(replace(share, smb=Smb()), options)
    view = client().post("/v1/shares", ShareView, ShareCreate(share, dry_run))
    _tell(view, as_json)


@app.command("set")
@with_options(ShareOptions)
def set_(
    name: Name,
    options: ShareOptions,
    volume: Annotated[str, typer.Option(metavar="POOL/VOLUME[:/PATH]", help="Another place.")] = "",
    new_name: Annotated[str, typer.Option("--name", metavar="NEW", help="Another name.")] = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Change what is named; the rest stays."""
    from msgspec.structs import replace

    from nasfs.node.shares.share_messages import ShareSet, ShareView

    old = _get(name).share
    of, directory = _place(volume) if volume else (old.volume, old.directory)
    new = replace(apply(old, options), name=new_name or old.name, volume=of, directory=directory)
    if new == old and not as_json:
        warn(f"share {name} is like that already")
        return
    _tell(client().post("/v1/shares/set", ShareView, ShareSet(old, new, dry_run)), as_json)


def _place(text: str) -> tuple[str, str]:
    """`POOL/VOLUME`, and the directory in it."""
    volume, _, directory = text.partition(":")
    return str(parse_volume(volume)), directory.strip("/")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """All shares, and whether they are served."""
    from nasfs.node.shares.share_messages import ShareView

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
def remove(name: Name) -> None:
    """Share it no more.  The files stay."""
    client().post(f"/v1/shares/delete/{quote(name, safe='')}", type(None))


@app.command("import")
def import_(
    format: Annotated[str, typer.Argument(metavar="smb.conf|exports|ganesha|yaml")],
    file: Annotated[Path, typer.Argument(metavar="FILE", parser=path, help="- is the input.")],
    instead: Annotated[
        bool, typer.Option("--replace", help="Instead of shares of the same name.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take shares from a file of `share export`, or from the configuration of a server."""
    from nasfs.node.shares.share_messages import ImportView, ShareImport

    body = ShareImport(str(file), format, _read(file), instead, dry_run)
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


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise Failed(f"{file} is not there") from exc
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
    from nasfs.node.shares.share_messages import ConnectView, ShareConnect

    view = client().post("/v1/shares/connect", ConnectView, ShareConnect(server, dry_run))
    if as_json:
        print_json(view)
        return
    did = "would add to" if dry_run else "added to"
    typer.echo(f"{did if view.changed else 'is in'} {view.file}: {view.line or '(nothing)'}")
    for note in view.notes:
        warn(f"note: {note}")


def _get(name: str) -> ShareView:
    from nasfs.node.shares.share_messages import ShareView

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
