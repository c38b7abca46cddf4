"""Which Ganesha serves which volume: one of them serves one volume.  Pure.

All FUSE mounts are one file system to Ganesha's VFS module as soon as handles do not hold the
number of the mount, which is another one whenever it is mounted.  So a handle of one volume would
open the file with the same inode number in another.  The administrator's own Ganesha (port 0)
serves one volume; every other volume has one at a port of its own, on both nodes the same.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from msgspec.structs import replace

from .model import Share

FIRST = 2050
"""Ports of nasfs's own Ganeshas begin here."""


def with_port(
    share: Share,
    others: Iterable[Share],
    avoid: Container[int] = (),
    *,
    is_ganesha: bool = True,
) -> Share:
    """The share at the port of its volume; at a free one, if another volume has that.

    Args:
        others: the shares of the node; an older form of the same share may be among them.
        avoid: ports that shall not be given, too.
        is_ganesha: there is one on the node; else any number of volumes may be at port 0.
    """
    if share.nfs is None:
        return share
    known = {other.volume: other.nfs.port for other in others if other.nfs}
    port = known.pop(share.volume, None)
    if port is None:
        port, taken = share.nfs.port, set(known.values())
        if port in taken and (port or is_ganesha):
            port = next(n for n in range(FIRST, 1 << 16) if n not in taken and n not in avoid)
    return replace(share, nfs=replace(share.nfs, port=port))


def with_ports(shares: Iterable[Share]) -> tuple[Share, ...]:
    """Shares of which no two volumes have the same port; those that are first keep theirs."""
    settled: list[Share] = []
    for share in shares:
        settled.append(with_port(share, settled))
    return tuple(settled)


def at_port(shares: Iterable[Share], volume: str, port: int) -> tuple[Share, ...]:
    """With all NFS shares of a volume at that port."""
    return tuple(
        replace(share, nfs=replace(share.nfs, port=port))
        if share.nfs and share.volume == volume
        else share
        for share in shares
    )
