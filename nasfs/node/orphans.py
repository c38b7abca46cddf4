"""What only a snapshot has, brought back beside what is there now: as copies NAME.orphan.

For what a node had written when the roles changed without it, and what a rollback undid: what was
added or changed between the newest state that is common to both and the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator

from nasfs.errors import ConfigError, Failed, Refused
from nasfs.volume import DiffEntry, Restore, Snapshot, Volume, diff_volume

from .context import Node
from .engine import info
from .inventory import check_writable
from .messages import OrphansView, OrphanView, SnapshotOrphans
from .paths import from_text_or_raw, split_path, text_and_raw
from .records import VolumeRow
from .versions import have_done, parse_version

SUFFIX = b".orphan"
CONTENT = {"data", "target", "device"}
"""Of what a file can differ in: what a copy is worth making for."""

PathName = tuple[bytes, ...]


def bring_orphans(node: Node, request: SnapshotOrphans) -> OrphansView:
    """Each file and tree is whole or not there; once more brings what was left and not the rest.

    Raises:
        NoSuchSnapshot, ConfigError
        Failed: nothing is common to the snapshot and what is there now.
        Refused: the group is not active here.
    """
    volume, name = parse_version(request.snapshot)
    row = node.state.volume(volume)
    check_writable(node, row)
    below = split_path(from_text_or_raw(request.path, request.path_raw))
    since = request.since or _common(node, row, name).name
    views = []
    with diff_volume(node.volume_path(row), since, name) as diff:
        for path in _lost(diff.entries(), below):
            problem = "" if request.dry_run else _bring(node, row, name, path)
            views.append(_view(path, problem))
    done = sum(not view.problem for view in views)
    if done and not request.dry_run:
        detail = f"{done} files and trees of {name}, as *{SUFFIX.decode()}"
        node.note("files restored", str(volume), detail)
    return OrphansView(request.snapshot, f"{volume}@{since}", tuple(views))


def _common(node: Node, row: VolumeRow, name: str) -> Snapshot:
    """The newest from which both the snapshot and what is there now descend."""
    told = info(node, row)
    found = next((one for one in told.snapshots if one.name == name), None)
    if found is None:
        raise Failed(f"there is no snapshot {name}", hint="nasfs snapshot list shows them")
    older = [one for one in told.ancestors if one.epoch < found.epoch]
    if not older:
        raise Failed(
            f"no snapshot that is older than {name} is left",
            hint="say --since SNAPSHOT, or restore by path without --orphans",
        )
    return older[-1]


def _lost(entries: Iterator[DiffEntry], below: PathName) -> Iterator[PathName]:
    """Files whose content is new, and new directories as a whole."""
    tree: PathName | None = None
    for entry in entries:
        path = split_path(entry.path)
        if path[: len(below)] != below or (tree is not None and path[: len(tree)] == tree):
            continue
        if entry.change == "added":
            if entry.type == "directory":
                tree = path
            yield path
        elif entry.change in ("changed", "renamed") and CONTENT & set(entry.what):
            yield path


def _bring(node: Node, row: VolumeRow, name: str, source: PathName) -> str:
    """Why it could not be; empty: it is there now."""
    if not source:
        return "it is the root"
    target = (*source[:-1], source[-1] + SUFFIX)
    if len(target[-1]) > 255:
        return "its name is too long for another ending"
    args = {
        "name": name, "source": list(source), "target": list(target), "replace": False,
        "keep_as": "",
    }  # fmt: skip

    def direct(opened: Volume) -> object:
        return Restore(opened, name, source, target, replace=False).run("")

    try:
        have_done(node, row, "restore", args, direct)
    except (Failed, Refused, ConfigError) as exc:
        return str(exc)
    return ""


def _view(source: PathName, problem: str) -> OrphanView:
    path, path_raw = text_and_raw(b"/".join(source))
    return OrphanView(path, path_raw, problem)
