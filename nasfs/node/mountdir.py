"""The directory that a volume is mounted on, made when it is needed."""

from __future__ import annotations

from pathlib import Path

from nasfs.errors import Failed
from nasfs.fuse.mountpoint import check_mountpoint, detach_dead, find_mount, is_dead, resolve


def prepare(mountpoint: Path) -> None:
    """Make the directory; a mount whose process is gone may be there until the next one comes.

    Raises:
        Failed: it cannot be made, is no directory, or something is mounted there.
    """
    if find_mount(resolve(mountpoint)) is None:
        try:
            # While nothing is mounted there, nobody shall put files into it.
            mountpoint.mkdir(mode=0, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as exc:
            raise Failed(f"the mount point {mountpoint} is not a directory") from exc
        except OSError as exc:
            raise Failed(f"cannot make the mount point {mountpoint}: {exc.strerror}") from exc
    check_mountpoint(mountpoint)


def clear_dead(mountpoint: Path) -> None:
    """Take away a mount whose process is gone, if one is there."""
    mount = find_mount(resolve(mountpoint))
    if mount is not None and is_dead(mount):
        detach_dead(mount.path)


def is_free(mountpoint: Path) -> bool:
    """Whether nothing is mounted there."""
    return find_mount(resolve(mountpoint)) is None
