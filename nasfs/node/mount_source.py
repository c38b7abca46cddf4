"""The first word of an fstab line: which volume, or which of its snapshots, shall be mounted.

It is POOL/VOLUME, for a volume that this node knows, or the path of a volume's directory; with
@SNAPSHOT behind it, that snapshot.  A path needs no node, but when the node knows the volume its
rules hold all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nasfs.errors import ConfigError, Failed, Unreachable
from nasfs.fuse.control import ControlClient
from nasfs.fuse.identity import IdentityMap
from nasfs.volume import NoSuchSnapshot, VolumeInfo, volume_info

from .config import read_config
from .context import Node
from .engine import PING_S
from .inventory import check_writable
from .places import Places
from .roles.hearing import hear_first
from .shares.merges import identity_map
from .words import parse_volume


@dataclass(frozen=True, slots=True)
class MountSource:
    """What to mount, and where its mount process listens and logs."""

    path: Path
    """The volume's directory."""
    snapshot: str | None
    control: Path | None
    """None for a snapshot: nothing can be asked of it."""
    log_file: Path | None
    commit_interval_s: float
    follow: bool = False
    """Read-only as of the newest snapshot, and of those to come."""
    identities: IdentityMap | None = None


def split_source(text: str) -> tuple[str, str]:
    """The volume and the snapshot, empty for none, in VOLUME@SNAPSHOT."""
    directory, slash, name = text.rpartition("/")
    volume, _, snapshot = name.partition("@")
    return f"{directory}{slash}{volume}", snapshot


def find_source(
    places: Places, text: str, *, snapshot: str = "", follow: bool = False
) -> MountSource:
    """Look up what *text* means; *snapshot* is the one that an option names.

    Args:
        follow: the newest snapshot is meant, and those to come.

    Raises:
        ConfigError: it is neither POOL/VOLUME nor a path, or two snapshots are named.
        Failed: there is no such pool, volume or snapshot.
        Refused: the role of its group forbids to write to the volume here.
    """
    named, at = split_source(text)
    if at and snapshot and at != snapshot:
        raise ConfigError(f"{text} names one snapshot, the options another: {snapshot}")
    wanted = snapshot or at
    if named.startswith("/"):
        path = Path(named)
    else:
        with Node.open(places) as node:
            path = node.volume_path(node.state.volume(parse_volume(named)))
    info = volume_info(path)
    if wanted and all(wanted not in (found.name, found.guid) for found in info.snapshots):
        raise NoSuchSnapshot(f"{named} has no snapshot {wanted}")
    if wanted and follow:
        raise ConfigError(f"{wanted} is one snapshot, and does not follow others")
    if not wanted and not follow:
        _check_live(places, path, info)
    places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    return MountSource(
        path,
        wanted or None,
        None if wanted or follow else places.control_socket(info.uuid),
        None if wanted or follow else places.mount_log(info.uuid),
        read_config(places.config).commit_interval_s,
        follow,
        _identities(places, info.uuid),
    )


def _identities(places: Places, volume_uuid: str) -> IdentityMap | None:
    if not places.database.exists():
        return None
    with Node.open(places) as node:
        return identity_map(node, volume_uuid)


def _check_live(places: Places, path: Path, info: VolumeInfo) -> None:
    """Whether this directory may be what is meant by its UUID here.

    A copy of a volume has the same UUID: mounted beside it, it would take its control socket, and
    the next snapshot would be one of the copy.
    """
    if places.database.exists():
        with Node.open(places) as node:
            row = node.state.find_volume(info.uuid)
            if row is not None:
                known = node.volume_path(row)
                if known.exists() and not known.samefile(path):
                    raise Failed(
                        f"{path} is a copy of the volume at {known}, with the same UUID",
                        hint=f"its snapshots can be mounted: {path}@SNAPSHOT",
                    )
                hear_first(node, row)
                check_writable(node, row)
    _check_silent(places.control_socket(info.uuid), path)


def _check_silent(control: Path, path: Path) -> None:
    """Nobody serves a volume with that UUID."""
    if not control.exists():
        return
    try:
        answer = ControlClient(control, timeout_s=PING_S).call("ping")
    except Unreachable:  # left by a process that was killed
        return
    raise Failed(
        f"{path}, or a volume that it is a copy of, is mounted at {answer['mountpoint']} already"
    )
