"""Earlier states of a volume: what is different from one, and how to go back to it."""

from __future__ import annotations

from datetime import UTC, datetime

from nasfs.errors import ConfigError, Refused
from nasfs.fuse.control import ControlClient
from nasfs.volume import Diff, DiffEntry, Volume, diff_volume

from .context import Node
from .engine import change, find_server, info
from .inventory import check_writable
from .messages import DiffCounts, DiffEntryView, RollbackView
from .paths import text_and_raw
from .records import VolumeRow
from .words import LONG_S, VolumeName, parse_snapshot

COMMIT_S = 300.0
"""So long a commit before a comparison may take (seconds)."""

LIVE = "live"


def open_diff(node: Node, old: str, new: str) -> Diff:
    """What *new* has that POOL/VOLUME@SNAPSHOT *old* has not, and the other way; for `with`.

    Args:
        new: another snapshot of the same volume (``@NAME`` is enough), or ``live``, which is
            also meant by an empty word: everything that returned before this call.

    Raises:
        NoSuchSnapshot, ConfigError
        Refused: the live view of a volume that receives is not to be looked at.
    """
    volume, name = parse_version(old)
    row = node.state.volume(volume)
    other = None if new in ("", LIVE) else _other(volume, new)
    if other is None:
        check_writable(node, row)
        _commit(node, row)
    return diff_volume(node.volume_path(row), name, other)


def parse_version(text: str) -> tuple[VolumeName, str]:
    """POOL/VOLUME@NAME.  Raises ConfigError, for a group's, too."""
    target = parse_snapshot(text)
    if target.volume is None:
        raise ConfigError(f"{text!r}: name one volume's snapshot, POOL/VOLUME@SNAPSHOT")
    return target.volume, target.snapshot


def _other(volume: VolumeName, text: str) -> str:
    found, name = parse_version(f"{volume}{text}" if text.startswith("@") else text)
    if found != volume:
        raise ConfigError(
            f"{text!r} is not a snapshot of {volume}", hint="only one volume's can be compared"
        )
    return name


def _commit(node: Node, row: VolumeRow) -> None:
    """Have the owner commit, if somebody has it mounted: who opens it sees commits only."""
    if find_server(node, row.uuid) is not None:
        ControlClient(node.places.control_socket(row.uuid), timeout_s=COMMIT_S).call("commit")


def diff_view(entry: DiffEntry) -> DiffEntryView:
    path, path_raw = text_and_raw(entry.path)
    old_path, old_path_raw = text_and_raw(entry.old_path)
    return DiffEntryView(
        change=entry.change,
        type=entry.type,
        path=path,
        path_raw=path_raw,
        old_path=old_path if entry.change == "renamed" else None,
        old_path_raw=old_path_raw,
        what=entry.what,
        inode=entry.ino,
    )


def roll_back(node: Node, text: str, *, dry_run: bool) -> RollbackView:
    """The volume becomes what it was at a snapshot; what it is now is sealed before, as another.

    Both are one instant of a mounted volume, whose caches in the kernel are right on return.

    Raises:
        NoSuchSnapshot, ConfigError
        Refused: the volume is in a group: those go back together.
    """
    volume, name = parse_version(text)
    row = node.state.volume(volume)
    group = node.state.find_group(row.group) if row.group else None
    if group is not None:
        raise Refused(
            f"volume {volume} is in group {group.name}, and a group goes back as a whole",
            hint=f"restore files of it instead: nasfs snapshot restore {text} PATH; or take the"
            f" volume out: nasfs group remove {group.name} {volume}",
        )
    kept = fresh_name(node, row, "before-rollback")
    if dry_run:
        with open_diff(node, text, LIVE) as diff:
            return RollbackView(text, f"{volume}@{kept}", DiffCounts(**diff.counts))

    def direct(opened: Volume) -> None:
        target = opened.snapshot(name)
        opened.seal(kept)
        opened.rollback(target.epoch)

    args = {"name": name, "keep_as": kept}
    change(node, row, "rollback", args, direct, timeout_s=LONG_S)
    node.note("volume rolled back", text, f"what it was before is kept as {kept}")
    return RollbackView(text, f"{volume}@{kept}", None)


def fresh_name(node: Node, row: VolumeRow, what: str) -> str:
    """A name for a snapshot of now that the volume has not: ``WHAT-2026.11.23-07.15.00`` (UTC)."""
    taken = {snapshot.name for snapshot in info(node, row).snapshots}
    name = base = f"{what}-{datetime.now(UTC):%Y.%m.%d-%H.%M.%S}"
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name
