"""What the partner asks of a snapshot's contents here, answered from the disks of this node.

All questions of a comparison come over one connection, so to one process: it keeps the volume open
and the snapshot leased until the connection ends.  It stands back for whoever else wants the
processors or the disk.
"""

from __future__ import annotations

import os

import msgspec

from nasfs.errors import Refused
from nasfs.volume import Access, open_volume
from replication.digests import OPERATION
from replication.endpoint import SnapshotRef
from replication.witness import LocalWitness, read_question

from ..context import Node
from ..records import Group, VolumeRow

NEWEST = "newest"
"""The name of an operation: the newest snapshot of a volume, from which the next delta begins."""

HUMBLE = 19
"""Niceness; the kernel's disk scheduler goes by it, too (ioprio_set(2))."""

_open: dict[tuple[str, str], LocalWitness] = {}
"""Of this process, which ends with the connection."""


def stand_back() -> None:
    """Of this thread."""
    os.setpriority(os.PRIO_PROCESS, 0, HUMBLE)


def digest(node: Node, group: Group, body: bytes) -> bytes:
    """One question of `replication.digests`.

    Raises:
        Refused: that volume is not in the group.
        NoSuchSnapshot: it is not here, or not any more.
    """
    question = read_question(body)
    key = (question.volume, question.snapshot)
    witness = _open.get(key)
    if witness is None:
        stand_back()
        for other in list(_open):  # one volume after the other
            _open.pop(other).close()
        path = node.volume_path(_member(node, group, question.volume))
        witness = _open[key] = LocalWitness(path, question.snapshot)
    return witness.answer(question)


def newest(node: Node, group: Group, body: bytes) -> bytes:
    """The snapshot of a volume (its UUID is the body) where the next delta begins, or nil."""
    row = _member(node, group, body.decode("ascii", "replace"))
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        found = volume.ancestors()
    ref = None
    if found:
        last = found[-1]
        ref = SnapshotRef(last.guid, last.name, last.time_ns, last.snap_group)
    return msgspec.msgpack.encode(ref)


def _member(node: Node, group: Group, volume_uuid: str) -> VolumeRow:
    for row in node.state.members(group.uuid):
        if row.uuid == volume_uuid:
            return row
    raise Refused("that volume is not in the group")


ANSWERS = {OPERATION: digest, NEWEST: newest}
