"""A share together with where its volume is mounted on this node.  Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from .checks import check_share, unsayable_path
from .complaints import Complaint, misconfigured
from .model import Share


@dataclass(frozen=True, slots=True)
class Placed:
    """A share that can be rendered for the servers of this node.

    Raises:
        Misconfigured: the share is not well, or the mount point can't be said.
    """

    share: Share
    mountpoint: str
    """Of the volume: absolute."""

    def __post_init__(self) -> None:
        complaints = list(check_share(self.share))
        where = f"share {self.share.name}"
        mountpoint = self.mountpoint
        if not mountpoint.startswith("/") or posixpath.normpath(mountpoint) != mountpoint:
            reason = f"{mountpoint!r} is not a plain absolute path"
            complaints.append(Complaint(where, "mount point", reason))
        elif reason := unsayable_path(mountpoint):
            complaints.append(Complaint(where, "mount point", reason))
        if complaints:
            raise misconfigured(complaints)

    @property
    def path(self) -> str:
        return posixpath.join(self.mountpoint, self.share.directory).rstrip("/") or "/"


def locate(path: str, mountpoints: dict[str, str]) -> tuple[str, str] | None:
    """The volume (its UUID) and the directory in it of a path; None: it is in no volume.

    Args:
        mountpoints: of each volume, by UUID.
    """
    path = posixpath.normpath(path)
    best: tuple[str, str] | None = None
    depth = -1
    for volume, mountpoint in mountpoints.items():
        if posixpath.commonpath([mountpoint, path]) == mountpoint and len(mountpoint) > depth:
            best, depth = (volume, path[len(mountpoint) :].strip("/")), len(mountpoint)
    return best
