"""A volume of a group as its owner, while nobody has it mounted and roles change."""

from __future__ import annotations

import time

from nasfs.errors import Refused
from nasfs.volume import Volume, VolumeBusy, open_volume

from ..context import Node
from ..records import VolumeRow

VOLUME_S = 30.0
"""So long a volume may be in somebody's hands before a step fails (seconds)."""


def find_member(node: Node, volume_uuid: str) -> VolumeRow:
    """Raises Refused if it is gone."""
    row = node.state.find_volume(volume_uuid)
    if row is None:
        raise Refused("a volume of the plan is no longer here")
    return row


def open_member(node: Node, volume_uuid: str) -> Volume:
    """Waits for a receiver, or a mount process, that is just letting go; for `with`."""
    row = find_member(node, volume_uuid)
    deadline = time.monotonic() + VOLUME_S
    while True:
        try:
            return open_volume(node.volume_path(row))
        except VolumeBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
