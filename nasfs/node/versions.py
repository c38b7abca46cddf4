"""Earlier states of a volume: what is different from one, and how to go back to it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from nasfs.errors import ConfigError, Failed, Refused
from nasfs.fuse.control import ControlClient, Restored
from nasfs.volume import Access, Diff, DiffEntry, Restore, Volume, diff_volume, open_volume

from .context import Node
from .engine import find_server, info
from .inventory import check_mountpoint, check_writable, move_mountpoint, volume_view
from .messages import (
    DiffCounts,
    DiffEntryView,
    RestoreView,
    RollbackView,
    SnapshotRestore,
    VolumeSet,
    VolumeView,
)
from .paths import from_text_or_raw, show_path, split_path, text_and_raw
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
        raise ConfigError(
            f"{text!r} is not the snapshot of one volume", hint="write POOL/VOLUME@SNAPSHOT"
        )
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

    have_done(node, row, "rollback", {"name": name, "keep_as": kept}, direct)
    node.note("volume rolled back", text, f"what it was before is kept as {kept}")
    return RollbackView(text, f"{volume}@{kept}", None)


def restore(node: Node, request: SnapshotRestore) -> RestoreView:
    """A file or tree of a snapshot comes back, whole or not at all; durable on return.

    Raises:
        NoSuchSnapshot, ConfigError
        Failed: there is no such path, or the place is not there.
        Refused: something is in the way and may not be replaced, or the group is not active here.
    """
    volume, name = parse_version(request.snapshot)
    row = node.state.volume(volume)
    check_writable(node, row)
    source = split_path(from_text_or_raw(request.path, request.path_raw))
    target = source
    if request.to is not None:
        target = split_path(from_text_or_raw(request.to, request.to_raw))
    if target[:1] == (b".snapshots",):
        raise ConfigError("nothing can be restored into .snapshots", hint="name another --to")
    keep = request.keep and request.replace
    keep_as = fresh_name(node, row, "before-restore") if keep else ""

    def direct(opened: Volume) -> Restored:
        work = Restore(opened, name, source, target, replace=request.replace)
        kept = work.run(keep_as)
        return Restored(work.summary(), kept != "")

    if request.dry_run:
        done = _foresee(node, row, name, source, target, request)
    else:
        args = {
            "name": name,
            "source": list(source),
            "target": list(target),
            "replace": request.replace,
            "keep_as": keep_as,
        }
        answer = have_done(node, row, "restore", args, direct)
        done = msgspec.convert(answer, Restored)
    shown, place = show_path(b"/".join(source)), show_path(b"/".join(target))
    if not request.dry_run:
        kept = f"; what was there is kept as {keep_as}" if done.kept else ""
        node.note("files restored", volume, f"{shown} of {name} to {place}{kept}")
    summary = done.summary
    return RestoreView(
        snapshot=request.snapshot,
        path=shown,
        to=place,
        files=summary.files,
        directories=summary.directories,
        shared_bytes=summary.shared_bytes,
        copied_bytes=summary.copied_bytes,
        replaced=summary.replaced,
        kept_as=f"{volume}@{keep_as}" if done.kept else None,
    )


def _foresee(
    node: Node,
    row: VolumeRow,
    name: str,
    source: tuple[bytes, ...],
    target: tuple[bytes, ...],
    request: SnapshotRestore,
) -> Restored:
    """What a restore would do now."""
    _commit(node, row)
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        work = Restore(volume, name, source, target, replace=request.replace)
        for _ in work.plan():
            pass
        summary = work.summary()
    return Restored(summary, request.keep and summary.replaced > 0)


def set_volume(node: Node, name: VolumeName, request: VolumeSet) -> VolumeView:
    """Change what is given; all of it is looked at before anything changes."""
    row = node.state.volume(name)
    if request.mountpoint:
        check_mountpoint(node, request.mountpoint, but=row.uuid)
    if request.list_snapshots is not None:
        _set_listing(node, name, row, request.list_snapshots)
    if request.mountpoint:
        move_mountpoint(node, name, request.mountpoint)
    return volume_view(node, node.state.volume(name))


def _set_listing(node: Node, name: VolumeName, row: VolumeRow, on: bool) -> None:
    """Whether the volume's mounts list ``.snapshots`` in their root; at once, and durable."""
    check_writable(node, row)

    def direct(volume: Volume) -> None:
        volume.list_snapshots_nowait(on)
        volume.commit()

    have_done(node, row, "list_snapshots", {"on": on}, direct)
    node.note("volume changed", name, f".snapshots is {'listed' if on else 'hidden'}")


def have_done(
    node: Node, row: VolumeRow, op: str, args: dict[str, Any], direct: Callable[[Volume], object]
) -> Any:
    """The answer of the mount process, or of *direct* if nobody has the volume mounted.

    Never both: what a mount process that died meanwhile has done is not known.
    """
    if find_server(node, row.uuid) is not None:
        client = ControlClient(node.places.control_socket(row.uuid), timeout_s=LONG_S)
        return client.call(op, **args)
    with open_volume(node.volume_path(row)) as volume:
        try:
            return direct(volume)
        except Failed as exc:  # nothing was done: let the volume go as usual
            problem = exc
    raise problem


def fresh_name(node: Node, row: VolumeRow, what: str) -> str:
    """A name for a snapshot of now that the volume has not: ``WHAT-2026.11.23-07.15.00`` (UTC)."""
    taken = {snapshot.name for snapshot in info(node, row).snapshots}
    name = base = f"{what}-{datetime.now(UTC):%Y.%m.%d-%H.%M.%S}"
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name
