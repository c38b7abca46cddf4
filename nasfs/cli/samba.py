"""``nasfs volume samba``: what smb.conf needs so that Windows shows a volume's snapshots."""

from __future__ import annotations

import posixpath
from typing import Annotated

import typer

from nasfs.node.words import parse_volume

from .session import Json, client, print_json

HEAD = """\
# For the section of a share in smb.conf: Previous Versions of {name}.
# A share has one line "vfs objects", and it replaces that of [global]: what else belongs
# there, acl_xattr for instance, is named with --vfs and comes first.
"""


def samba(
    name: Annotated[str, typer.Argument(metavar="POOL/VOLUME")],
    path: Annotated[
        str,
        typer.Option(metavar="DIR", help="The directory that the share is, below the mount point."),
    ] = "",
    vfs: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Another VFS module of the share; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the lines of smb.conf that show its snapshots as Previous Versions."""
    from nasfs.node.client import volume_url
    from nasfs.node.messages import VolumeView
    from sharecfg.samba import PreviousVersions, render_previous_versions

    volume = parse_volume(name)
    mountpoint = client().get(volume_url(volume.pool, volume.volume), VolumeView).mountpoint
    share = posixpath.normpath(posixpath.join(mountpoint, path))
    text = render_previous_versions(PreviousVersions(mountpoint, share, tuple(vfs or ())))
    if as_json:
        print_json(dict(line.strip().split(" = ", 1) for line in text.splitlines()))
    else:
        typer.echo(HEAD.format(name=name) + text, nl=False)
