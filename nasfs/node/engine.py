"""Doing something with a volume, mounted or not.

The owner of a mounted volume is its mount process: it is asked through its control socket.  An
unmounted volume is opened here for the moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasfs.errors import Failed, Unreachable
from nasfs.fuse.control import ControlClient
from nasfs.fuse.mount import unmount
from nasfs.volume import Access, Volume, VolumeInfo, open_volume, volume_info

from .context import Node
from .mountdir import clear_dead
from .records import VolumeRow
from .shares.ganeshas import release

PING_S = 10.0
"""A mount process that is busy with a commit may take so long to answer (seconds)."""


def info(node: Node, row: VolumeRow) -> VolumeInfo:
    """What the volume holds, as of its last commit."""
    return volume_info(node.volume_path(row))


def change(
    node: Node,
    row: VolumeRow,
    op: str,
    args: dict[str, Any],
    direct: Callable[[Volume], object],
    *,
    timeout_s: float = 60.0,
) -> None:
    """Have the mount process do *op*, or do it *direct* if nobody has the volume mounted."""
    try:
        client = ControlClient(node.places.control_socket(row.uuid), timeout_s=timeout_s)
        client.call(op, **args)
    except Unreachable:
        with open_volume(node.volume_path(row)) as volume:
            direct(volume)


def ask(node: Node, row: VolumeRow, op: str) -> Any:
    """What the mount process of a volume answers.  Raises Unreachable if there is none."""
    return ControlClient(node.places.control_socket(row.uuid), timeout_s=PING_S).call(op)


def changed_since(node: Node, row: VolumeRow, guid: str) -> bool:
    """Whether the volume was changed after that snapshot, mounted or not.

    Raises:
        NoSuchSnapshot: it has none with that GUID.
    """
    client = ControlClient(node.places.control_socket(row.uuid), timeout_s=PING_S)
    try:
        return bool(client.call("changed", snapshot=guid))
    except Unreachable:
        with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
            return volume.changed_since(guid)


@dataclass(frozen=True, slots=True)
class Server:
    """The mount process of a volume."""

    pid: int
    mountpoint: Path


def find_server(node: Node, volume_uuid: str) -> Server | None:
    """The mount process that answers for that volume, whoever started it."""
    path = node.places.control_socket(volume_uuid)
    if not path.exists():
        return None
    try:
        answer = ControlClient(path, timeout_s=PING_S).call("ping")
    except Unreachable:
        return None
    if answer["uuid"] != volume_uuid:
        return None
    return Server(int(answer["pid"]), Path(answer["mountpoint"]))


def end_server(node: Node, volume_uuid: str, *, force: bool) -> None:
    """Unmount a volume that somebody mounted by hand, or take away a mount without a process.

    Raises:
        Failed: files in it are in use, and *force* is false.
    """
    server = find_server(node, volume_uuid)
    if server is None:
        row = node.state.find_volume(volume_uuid)
        if row is not None:
            clear_dead(node.mountpoint(row))
        return
    release(node, volume_uuid)
    try:
        unmount(server.mountpoint)
    except Failed:
        if not force:
            raise
        ControlClient(node.places.control_socket(volume_uuid)).call("stop")


def reclaim_all(volume: Volume) -> None:
    """Give back all the space that destroyed snapshots leave; of a volume that nobody mounts."""
    before: dict[str, int] = {}
    while (left := volume.reclaim_pending()) != before and any(left.values()):
        before = left
        while volume.reclaim_step():
            pass
        volume.commit()
