"""Which mounts the daemon keeps up: whoever unmounts one must ask the daemon."""

from __future__ import annotations

from pathlib import Path

from nasfs.errors import NasError, Refused
from nasfs.fuse.mountpoint import resolve

from .context import Node
from .daemon_lock import daemon_runs
from .engine import find_server
from .places import Places
from .records import VolumeRow
from .words import VolumeName


def check_not_kept(places: Places, directory: Path) -> None:
    """Raises Refused if the daemon runs and would mount again what is mounted at *directory*."""
    kept = _kept(places, resolve(directory))
    if kept is not None:
        raise Refused(
            f"the daemon keeps {kept} mounted at {directory}",
            hint=f"nasfs volume unmount {kept}",
        )


def _kept(places: Places, directory: Path) -> VolumeName | None:
    if not places.database.exists() or not daemon_runs(places):
        return None
    try:
        with Node.open(places) as node:
            for row in node.state.volumes():
                if row.wanted and _is_at(node, row, directory):
                    return node.state.volume_name(row)
    except NasError:
        return None  # unmounting must work with a damaged node.db
    return None


def _is_at(node: Node, row: VolumeRow, directory: Path) -> bool:
    """It is there, or will be.  A mount that the daemon has taken over may be anywhere."""
    if resolve(node.mountpoint(row)) == directory:
        return True
    server = find_server(node, row.uuid)
    return server is not None and server.mountpoint == directory
