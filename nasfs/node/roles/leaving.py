"""Ends, as the process of a connection needs to know them: little, for it is started often."""

from __future__ import annotations

import msgspec

from nasfs.errors import Refused
from nasfs.volume import ROOT_INO, Access, diff_volume, open_volume

from ..context import MountPhase, Node
from ..inventory import mount_state
from ..records import Group, VolumeRow

LEAVE = "leave-pair"
"""The operation by which a node ends the pair; it is about no group."""


class Ended(msgspec.Struct, frozen=True):
    done: tuple[str, ...] = ()
    problem: str = ""
    """Why nothing was done."""
    hint: str = ""


def related(node: Node) -> list[Group]:
    """The groups that are replicated in either direction."""
    return [
        group
        for group in node.state.groups()
        if group.role != "active" or node.bond.replication(group.uuid) is not None
    ]


def partner_leaves(node: Node) -> bytes:
    """The partner has ended the pair; in the process of its connection."""
    peer = node.bond.peer()
    left = related(node)
    if left:
        names = ", ".join(group.name for group in left)
        problem = f"groups are replicated on the other node still: {names}"
        return msgspec.msgpack.encode(Ended((), problem))
    if peer is not None:
        node.bond.forget_peer()
        node.state.note("partner", "pair removed", peer.name)
    return msgspec.msgpack.encode(Ended())


def check_unwritten(node: Node, row: VolumeRow) -> None:
    """An ordinary volume that shall receive again: nothing of its own may be lost.

    Raises:
        Refused: it is mounted, or was written to since its newest snapshot.
    """
    name = str(node.state.volume_name(row))
    if row.wanted or mount_state(node, row).phase is not MountPhase.UNMOUNTED:
        raise Refused(
            f"{name} is mounted on the partner", hint=f"there: nasfs volume unmount {name}"
        )
    path = node.volume_path(row)
    with open_volume(path, Access.READ_ONLY) as volume:
        sealed = volume.ancestors()
        written = not sealed and bool(volume.readdir(ROOT_INO, 0, 1))
    if sealed and not sealed[-1].snap_group:
        written = True  # a snapshot of this volume alone: it was taken here
    elif sealed:
        written = any(True for _ in diff_volume(path, sealed[-1].guid, None).entries())
    if written:
        raise Refused(
            f"{name} on the partner was written to, and that would be lost",
            hint="choose another name there (--volume LOCAL=REMOTE); or go back there: nasfs"
            f" snapshot rollback {name}@SNAPSHOT",
        )
