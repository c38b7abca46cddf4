"""Which numbers the files of a group's volumes use: counted once for each newest snapshot."""

from __future__ import annotations

import msgspec

from nasfs.volume import Access, IdentityCounts, newest_counts, open_volume

from ..context import Node
from ..engine import info
from ..records import Group, VolumeRow


def count_ahead(node: Node, group: Group) -> None:
    """Have the numbers of a group's newest snapshots counted before a failover needs them.

    The first time that reads every inode, of which there may be millions.
    """
    for row in node.state.members(group.uuid):
        if info(node, row).snapshots:  # else it is the first copy, under way
            volume_counts(node, row)


def volume_counts(node: Node, row: VolumeRow) -> IdentityCounts:
    """Of the newest snapshot; without one, of what is committed.

    Costs what changed since the snapshot that was counted last, if that is still there.
    """
    stored = node.database.row("SELECT guid, body FROM identity_count WHERE volume = ?", row.uuid)
    known = {stored[0]: msgspec.json.decode(stored[1], type=IdentityCounts)} if stored else {}
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        guid, counts = newest_counts(volume, known)
    if guid and guid not in known:
        node.database.do_soon(
            "INSERT OR REPLACE INTO identity_count VALUES (?, ?, ?)",
            row.uuid, guid, msgspec.json.encode(counts).decode(),
        )  # fmt: skip
    return counts
