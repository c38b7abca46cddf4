"""``nasfs mount`` and ``nasfs unmount``: without the daemon; what /sbin/mount.fuse.nasfs calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nasfs.node.words import parse_volume

from .session import path, places


def mount(
    volume: Annotated[str, typer.Argument(metavar="POOL/VOLUME")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", parser=path)],
    snapshot: Annotated[
        str, typer.Option(metavar="NAME", help="Read-only, as of that snapshot.")
    ] = "",
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay; print one line when mounted.")
    ] = False,
    without_partner: Annotated[
        bool,
        typer.Option(
            "--without-partner",
            help="Its group has come back and the partner does not answer: go on as the primary.",
        ),
    ] = False,
) -> None:
    """Mount a volume, or one of its snapshots."""
    from nasfs.node.mounting import mount_volume

    mount_volume(
        places(),
        parse_volume(volume),
        directory.absolute(),
        snapshot=snapshot or None,
        foreground=foreground,
        without_partner=without_partner,
        on_ready=_say_mounted,
    )


def _say_mounted() -> None:
    """One line for who started us; nobody may be listening any more."""
    try:
        sys.stdout.write("mounted\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None


def unmount(
    directory: Annotated[Path, typer.Argument(metavar="DIR", parser=path)],
) -> None:
    """Unmount; everything is durable when it returns."""
    from nasfs.node.mounting import unmount_directory

    unmount_directory(places(), directory.absolute())
