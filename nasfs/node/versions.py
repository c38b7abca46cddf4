"""Earlier states of a volume: what is different from one, and how to go back to it."""

from __future__ import annotations

from nasfs.errors import ConfigError
from nasfs.fuse.control import ControlClient
from nasfs.volume import Diff, DiffEntry, diff_volume

from .context import Node
from .engine import find_server
from .inventory import check_writable
from .messages import DiffEntryView
from .paths import text_and_raw
from .records import VolumeRow
from .words import VolumeName, parse_snapshot

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
    volume, name = _parse(old)
    row = node.state.volume(volume)
    other = None if new in ("", LIVE) else _other(volume, new)
    if other is None:
        check_writable(node, row)
        _commit(node, row)
    return diff_volume(node.volume_path(row), name, other)


def _parse(text: str) -> tuple[VolumeName, str]:
    target = parse_snapshot(text)
    if target.volume is None:
        raise ConfigError(f"{text!r}: name one volume's snapshot, POOL/VOLUME@SNAPSHOT")
    return target.volume, target.snapshot


def _other(volume: VolumeName, text: str) -> str:
    found, name = _parse(f"{volume}{text}" if text.startswith("@") else text)
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
