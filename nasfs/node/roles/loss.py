"""What a failover would lose: asked of the active node while it lives, and remembered.

The active node knows what was not replicated.  The passive one asks it now and then, so that it
can tell when the active one is gone.
"""

from __future__ import annotations

import logging
import stat
import time

import msgspec
import trio

from nasfs.errors import NasError, Refused
from nasfs.volume import Access, Epoch, Inode, Snapshot, open_volume
from replication.client import operate

from ..context import Node
from ..engine import changed_since, info
from ..inventory import WRITABLE_ROLES
from ..pairing import connect_peer
from ..records import Group, VolumeRow
from ..sending.outgoing import complete, grouped
from ..shares.identity_counts import count_ahead

log = logging.getLogger(__name__)

OPERATION = "unreplicated"
EVERY_S = 60.0
"""How often the active node is asked (seconds); less often if answering takes it long."""
SHARE = 0.05
"""So much of the time may be spent on it."""
PEER_S = 5.0
"""So long it may take to answer a connection (seconds)."""


class Question(msgspec.Struct, frozen=True):
    snap_group: str
    """The newest that is complete on the passive node; empty: none."""


class Unreplicated(msgspec.Struct, frozen=True):
    """What the active node has behind a snap group, as of `time_ns`."""

    time_ns: int
    """By the clock of the active node."""
    snap_groups: int
    """Taken since, and not complete on the other side."""
    files: int
    """Regular files in them that are new or changed."""
    bytes: int
    """Of data in them."""
    newest_ns: int
    """When the newest of them was taken; 0: there is none."""
    written_since: bool
    """Something was written after it, that is in no snap group."""


class Word(msgspec.Struct, frozen=True):
    """What the active node said, and when it was heard here."""

    heard_ns: int
    snap_group: str
    unreplicated: Unreplicated


# the active side


def answer(node: Node, group: Group, body: bytes) -> bytes:
    """Raises Refused if the group is not active here, or the snap group is unknown."""
    question = msgspec.msgpack.decode(body, type=Question)
    if group.role not in WRITABLE_ROLES:
        raise Refused(f"group {group.name} is {group.role} on the partner")
    return msgspec.msgpack.encode(unreplicated(node, group, question.snap_group))


def unreplicated(node: Node, group: Group, snap_group: str) -> Unreplicated:
    """What lies behind that snap group; without one, all.

    Costs what was changed since.

    Raises:
        Refused: it is not here any more.
    """
    rows = node.state.members(group.uuid)
    found = [grouped(info(node, row).snapshots) for row in rows]
    known = complete(found)
    if snap_group and snap_group not in known:
        raise Refused("the partner does not have that snap group any more")
    behind = known[known.index(snap_group) + 1 :] if snap_group else known
    newest = behind[-1] if behind else snap_group
    files = size = 0
    written = False
    for row, mine in zip(rows, found, strict=True):
        if behind:
            counted = _count(node, row, mine.get(snap_group), mine[newest])
            files, size = files + counted[0], size + counted[1]
        written = written or not newest or changed_since(node, row, mine[newest].guid)
    taken = max((mine[newest].time_ns for mine in found), default=0) if behind else 0
    return Unreplicated(time.time_ns(), len(behind), files, size, taken, written)


def _count(node: Node, row: VolumeRow, base: Snapshot | None, target: Snapshot) -> tuple[int, int]:
    """Regular files and bytes of data of a delta."""
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        first = volume.snapshot(base.guid).epoch if base else Epoch(0)
        delta = volume.delta(first, volume.snapshot(target.guid).epoch)
        files = sum(
            stat.S_ISREG(Inode(*change.row).mode)
            for change in delta.rows()
            if change.sort == "inode" and not change.gone
        )
        size = sum(extent.stop - extent.start for extent in delta.extents() if extent.layer)
    return files, size


# the passive side


def ask(node: Node, group: Group) -> Word | None:
    """Ask the active node, and remember what it says; None: it does not answer.

    Raises:
        NasError: it answers, and can't tell.
    """
    newest = _newest(node, group)
    try:
        connection = connect_peer(node, timeout_s=PEER_S)
    except NasError:
        return None
    with connection:
        body = msgspec.msgpack.encode(Question(newest))
        said = operate(connection, group.uuid, OPERATION, body)
    word = Word(time.time_ns(), newest, msgspec.msgpack.decode(said, type=Unreplicated))
    node.drills.hear(group.uuid, msgspec.json.encode(word).decode())
    return word


def last_word(node: Node, group: Group) -> Word | None:
    """What it said last; None: it never did."""
    body = node.drills.heard(group.uuid)
    return msgspec.json.decode(body, type=Word) if body else None


def _newest(node: Node, group: Group) -> str:
    rows = node.state.members(group.uuid)
    known = complete([grouped(info(node, row).ancestors) for row in rows])
    return known[-1] if known else ""


async def hear_partner(node: Node) -> None:
    """Ask for each passive group, and count what a failover needs, until cancelled."""
    while True:
        began = trio.current_time()
        await trio.to_thread.run_sync(_hear, node)
        took = trio.current_time() - began
        await trio.sleep(max(EVERY_S, took / SHARE))


def _hear(node: Node) -> None:
    if node.bond.peer() is None:
        return
    for group in node.state.groups():
        if group.role == "passive":
            try:
                ask(node, group)
            except (NasError, OSError) as exc:
                log.debug("group %s: what is not replicated is not known: %s", group.name, exc)
            try:
                count_ahead(node, group)
            except (NasError, OSError) as exc:
                log.debug("group %s: owners of files are not counted: %s", group.name, exc)
