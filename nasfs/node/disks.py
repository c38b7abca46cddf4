"""The disks that a node lives on: whether there is room left."""

from __future__ import annotations

import os
from pathlib import Path

from .context import Node
from .words import render_size

LITTLE_BYTES = 256 << 20
"""A disk with less free is a problem."""
STATE_BYTES = 32 << 20
"""So much is enough for what a node remembers."""


def free_bytes(path: Path) -> int:
    """Of its disk, for who is not root.  Raises OSError."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def attention(node: Node) -> list[str]:
    """Sentences about disks that are nearly full; what cannot be read is told elsewhere."""
    said = []
    for path, least, what in (
        (
            node.places.state,
            STATE_BYTES,
            "when it is full no policy runs, and nothing that changes the node succeeds",
        ),
        *(
            (Path(pool.path), LITTLE_BYTES, f"pool {pool.name} is on it; when it is full, so are"
             " its volumes")
            for pool in node.state.pools()
        ),
    ):  # fmt: skip
        try:
            free = free_bytes(path)
        except OSError:
            continue
        if free < least:
            said.append(f"the disk of {path} has {render_size(free)} left: {what}")
    return said
