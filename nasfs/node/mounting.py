"""``nasfs mount`` and ``nasfs unmount``: what they check, then the mount process itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nasfs.errors import Refused
from nasfs.fuse.mountpoint import resolve

from .context import Node
from .kept_mounts import check_not_kept
from .mountdir import prepare
from .places import Places
from .words import VolumeName


def mount_volume(
    places: Places,
    name: VolumeName,
    directory: Path,
    *,
    snapshot: str | None,
    foreground: bool,
    without_partner: bool = False,
    on_ready: Callable[[], None],
) -> None:
    """Mount *name* on *directory*; in the foreground this is the mount process until its end.

    A volume that is received is mounted read-only, as of its newest snapshot and those to come.

    Raises:
        Refused: the role of its group forbids that.
        Failed: unknown volume, busy mount point, or the volume is mounted already.
    """
    from nasfs.fuse.mount import mount_in_background, run_mount

    from .inventory import check_writable, is_received
    from .roles.hearing import hear_first
    from .shares.merges import identity_map

    with Node.open(places) as node:
        row = node.state.volume(name)
        follow = snapshot is None and is_received(node, row)
        if snapshot is None and not follow:
            hear_first(node, row, without_partner=without_partner)
            check_writable(node, row)
        if follow and resolve(directory) == resolve(node.mountpoint(row)):
            raise Refused(
                f"{directory} is kept free for {name}, which a failover mounts there",
                hint="mount it at another directory to read what has arrived",
            )
        path = node.volume_path(row)
        commit_interval_s = node.config.commit_interval_s
        identities = identity_map(node, row.uuid)
        control = None if snapshot or follow else places.control_socket(row.uuid)
    places.make()
    prepare(directory)
    fsname = f"{name}@{snapshot}" if snapshot else str(name)
    if foreground:
        run_mount(
            path,
            directory,
            snapshot=snapshot,
            control=control,
            fsname=fsname,
            commit_interval_s=commit_interval_s,
            identities=identities,
            follow=follow,
            on_ready=on_ready,
        )
        return
    mount_in_background(
        path,
        directory,
        snapshot=snapshot,
        control=control,
        fsname=fsname,
        commit_interval_s=commit_interval_s,
        identities=identities,
        follow=follow,
        log_file=None if snapshot or follow else places.mount_log(row.uuid),
    )


def unmount_directory(places: Places, directory: Path) -> None:
    """Unmount; everything is durable on return.

    Raises:
        Refused: the daemon keeps that mount up.
        Failed: it is in use, or nothing of ours is mounted there.
    """
    from nasfs.fuse.mount import unmount

    check_not_kept(places, directory)
    unmount(directory)
