"""Whether a failover to this node would work now, and what it would lose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from nasfs.errors import Failed, NasError, Refused
from nasfs.volume import ROOT_INO, Access, open_volume
from replication.roles import GroupView, SnapGroup
from sharecfg.model import Share

from ..context import Node
from ..disks import LITTLE_BYTES
from ..drills.drills import came_up
from ..inventory import volume_view
from ..messages import when
from ..mountdir import is_free
from ..policy.following import lacking_hooks
from ..records import Group, VolumeRow
from ..shares import staging
from ..shares.identities import identity_check
from ..shares.share_files import Server, ShareFile, share_files
from ..shares.share_servers import run_tool
from ..words import render_size
from .loss import Word, ask, last_word
from .observing import observe
from .progress import describe
from .readiness_messages import CheckView, LastTestView, LossView, ReadinessView

SCARCE = 0.05
"""A disk of which a smaller part is free gets a warning."""
INODES = 1000


class _Checks:
    """Collects what each check says."""

    def __init__(self) -> None:
        self.views: list[CheckView] = []

    def ok(self, what: str, detail: str = "") -> None:
        self.views.append(CheckView(what, "ok", detail))

    def warning(self, what: str, detail: str) -> None:
        self.views.append(CheckView(what, "warning", detail))

    def problem(self, what: str, detail: str) -> None:
        self.views.append(CheckView(what, "problem", detail))

    def told(self, result: str) -> tuple[str, ...]:
        return tuple(f"{v.what}: {v.detail}" for v in self.views if v.result == result)


def readiness(node: Node, name: str) -> ReadinessView:
    """Look at everything that a failover needs.

    Raises:
        Refused: the group is not passive here.
    """
    group = node.state.group(name)
    if group.role != "passive":
        raise Refused(
            f"group {name} is {group.role} on this node",
            hint="readiness is asked where the group is passive: on its partner",
        )
    checks = _Checks()
    rows = node.state.members(group.uuid)
    _check_tools(checks)
    _check_under_way(node, group, checks)
    readable = [_check_volume(node, row, checks) for row in rows]
    view = observe(node, group) if all(readable) and rows else None
    newest = _check_newest(view, checks) if view is not None else None
    _check_servers(node, group, checks)
    _check_policies(node, group, checks)
    word = _check_partner(node, group, view, checks)
    last_test = _check_test(node, group, checks)
    now = view.now_ns if view is not None else 0
    return ReadinessView(
        group=name,
        ready=not checks.told("problem"),
        role=group.role,
        term=group.term,
        peer_reachable=view is not None and view.peer_reachable,
        last_snapshot=newest.name if newest else None,
        last_snapshot_time=when(newest.time_ns) if newest else None,
        age_s=max(0, now - newest.time_ns) // 1_000_000_000 if newest else None,
        problems=checks.told("problem"),
        warnings=checks.told("warning"),
        checks=tuple(checks.views),
        loss=_loss(word, newest),
        last_test=last_test,
    )


def _check_tools(checks: _Checks) -> None:
    """What mounting needs."""
    lacking = [] if os.access("/dev/fuse", os.R_OK | os.W_OK) else ["/dev/fuse"]
    lacking += [] if shutil.which("fusermount3") else ["fusermount3"]
    if lacking:
        checks.problem("FUSE", f"{' and '.join(lacking)} is missing: apt install fuse3")
    else:
        checks.ok("FUSE")


def _check_under_way(node: Node, group: Group, checks: _Checks) -> None:
    journal = node.bond.journal(group.uuid)
    if journal is not None:
        checks.problem("roles", describe(journal)[0])


def _check_volume(node: Node, row: VolumeRow, checks: _Checks) -> bool:
    """It opens, there is a place for it, and room; whether it opens."""
    name = str(node.state.volume_name(row))
    try:
        path = node.volume_path(row)
        with open_volume(path, Access.READ_ONLY) as volume:
            sealed = list(volume.ancestors())
            if sealed:
                volume.view(sealed[-1].epoch).getattr(ROOT_INO)
        problem = volume_view(node, row).problem
    except (NasError, OSError) as exc:
        checks.problem(name, f"cannot be read: {exc}")
        return False
    checks.ok(name, f"can be read; {len(sealed)} snapshots")
    if problem:
        checks.warning(name, problem)
    _check_mountpoint(name, node.mountpoint(row), checks)
    _check_space(name, path, checks)
    return True


def _check_mountpoint(name: str, mountpoint: Path, checks: _Checks) -> None:
    what = f"{name}'s mount point"
    for place in (mountpoint, *mountpoint.parents):
        if place.is_symlink() or place.exists():
            if not place.is_dir():
                checks.problem(what, f"{mountpoint} can't be made: {place} is no directory")
                return
            break
    if not is_free(mountpoint):
        checks.problem(what, f"{mountpoint} is busy: something is mounted there")
    elif mountpoint.exists() and any(mountpoint.iterdir()):
        checks.warning(what, f"there are files in {mountpoint}, which the volume will hide")
    else:
        checks.ok(what, str(mountpoint))


def _check_space(name: str, path: Path, checks: _Checks) -> None:
    found = os.statvfs(path)
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    told = f"{render_size(free)} of {render_size(size)} are free"
    what = f"{name}'s disk"
    if free < LITTLE_BYTES:
        checks.problem(what, told)
    elif found.f_files and found.f_favail < INODES:
        checks.problem(what, f"{found.f_favail} more files can be made on it")
    elif free < SCARCE * size:
        checks.warning(what, told)
    else:
        checks.ok(what, told)


def _check_newest(view: GroupView, checks: _Checks) -> SnapGroup | None:
    newest = view.newest
    if newest is None:
        checks.problem("snap group", "none has arrived completely yet")
        return None
    newer = sum(
        snapshot.time_ns > newest.time_ns
        for volume in view.volumes
        for snapshot in volume.snapshots
    )
    age = max(0, view.now_ns - newest.time_ns) // 1_000_000_000
    part = "; a newer one has arrived in part" if newer else ""
    checks.ok("snap group", f"@{newest.name} is complete, {age} s old{part}")
    return newest


# shares


def _check_servers(node: Node, group: Group, checks: _Checks) -> None:
    shares = _shares(node, group, checks)
    smb = [share.name for share in shares if share.smb and share.smb.enabled]
    nfs = [share.name for share in shares if share.nfs and share.nfs.enabled]
    files = share_files(node.places, node.config.shares)
    if smb:
        _check_samba(files.get(Server.SAMBA), checks)
    if nfs and not {Server.KERNEL, Server.GANESHA} & files.keys():
        checks.problem("NFS", f"{_some(nfs)} need an NFS server, and none is set up here")
    elif nfs:
        _check_nfs(files.keys(), checks)


def _shares(node: Node, group: Group, checks: _Checks) -> list[Share]:
    found = {
        share.key: share
        for row in node.state.members(group.uuid)
        for share in node.shares.of_volume(row.uuid)
    }
    try:
        staged = staging.newest(node, group)
    except NasError as exc:
        checks.problem("staged shares", str(exc))
        return list(found.values())
    if staged is None:
        checks.ok("shares", f"{len(found)} of this node; the partner told of none")
    else:
        found |= {share.key: share for share in staged[1].shares}
        came = when(staged[0].time_ns)
        checks.ok("shares", f"{len(found)}; the partner's came {came}, as of @{staged[0].snapshot}")
    return list(found.values())


def _check_samba(file: ShareFile | None, checks: _Checks) -> None:
    if file is None or shutil.which("smbd") is None:
        checks.problem("Samba", "shares need it, and it is not set up here: apt install samba")
        return
    if not file.is_included():
        checks.problem("Samba", f"{file.main} does not include {file.own}: nasfs share connect smb")
    elif "PONG" not in run_tool(["smbcontrol", "-s", str(file.main), "smbd", "ping"]).stdout:
        checks.problem("Samba", "smbd does not run")
    else:
        checks.ok("Samba", "smbd answers")


def _check_nfs(servers: Iterable[Server], checks: _Checks) -> None:
    if Server.KERNEL in set(servers):
        if shutil.which("exportfs") is None:
            checks.problem("NFS", "exportfs is missing: apt install nfs-kernel-server")
        elif not Path("/proc/fs/nfsd/threads").exists():
            checks.problem("NFS", "the kernel's NFS server does not run")
        else:
            checks.ok("NFS", "the kernel's server runs")
    elif shutil.which("ganesha.nfsd") is None:
        checks.problem("NFS", "Ganesha has a configuration and is not installed")
    else:
        checks.ok("NFS", "Ganesha is installed")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# the partner


def _check_policies(node: Node, group: Group, checks: _Checks) -> None:
    """Hooks stay on their node: a snapshot without them may not be what was meant."""
    try:
        lacking = lacking_hooks(node, group)
    except Failed as exc:
        checks.warning("schedules", str(exc))
        return
    if lacking:
        checks.warning(
            "schedules",
            f"{', '.join(lacking)}: hooks on the partner and none here:"
            f" nasfs schedule set {group.name} {lacking[0]} --before COMMAND",
        )
    elif node.policies.of_group(group.uuid):
        checks.ok("schedules")
    else:
        checks.warning("schedules", "no policy: nothing takes snapshots after a failover")


def _check_partner(
    node: Node, group: Group, view: GroupView | None, checks: _Checks
) -> Word | None:
    """Whether it answers, what it says of people, and what it says, or said, of a loss."""
    if view is None or not view.peer_reachable:
        checks.warning("partner", "does not answer")
        return last_word(node, group)
    checks.ok("partner", "answers")
    _quietly(checks, "what is not replicated", lambda: ask(node, group))
    _quietly(checks, "users and groups", lambda: _check_people(node, group, checks))
    return last_word(node, group)


def _quietly(checks: _Checks, what: str, does: Callable[[], object]) -> None:
    try:
        does()
    except (NasError, OSError) as exc:
        checks.warning(what, str(exc))


def _check_people(node: Node, group: Group, checks: _Checks) -> None:
    found = identity_check(node, group.name)
    if found.ok:
        checks.ok("users and groups", "mean the same on both nodes")
    else:
        wrong = sum(one.wrong for one in found.compared)
        checks.warning(
            "users and groups",
            f"{wrong} mean somebody else here: nasfs identity check {group.name}",
        )


def _loss(word: Word | None, newest: SnapGroup | None) -> LossView | None:
    """What it said counts from a snap group; a newer one may have arrived since."""
    if word is None:
        return None
    said = word.unreplicated
    arrived = newest is not None and said.newest_ns and newest.time_ns >= said.newest_ns
    behind = said.snap_groups if not arrived else 0
    return LossView(
        as_of=when(word.heard_ns),
        snap_groups=behind,
        files=said.files if behind else 0,
        bytes=said.bytes if behind else 0,
        written_since=said.written_since,
    )


def _check_test(node: Node, group: Group, checks: _Checks) -> LastTestView | None:
    """The test failover that is there, or the latest."""
    drill = node.drills.of_group(group.uuid) or node.drills.last_report(group.uuid)
    what = "test failover"
    hint = f"nasfs test-failover start {group.name}"
    if drill is None:
        checks.warning(what, f"there was none: {hint}")
        return None
    failed = [f"{p.where}: {p.what}" for p in drill.probes if p.result == "failed"]
    ok = came_up(drill) and not failed
    if not ok:
        why = _some(failed) or drill.problem or "it did not come up"
        checks.warning(what, f"the latest, on @{drill.snapshot}, did not go well: {why}")
    else:
        checks.ok(
            what, f"clients could work after {drill.serving_s:.1f} s ({when(drill.began_ns)})"
        )
    return LastTestView(
        when(drill.began_ns), drill.snapshot, ok, not drill.ended_ns, round(drill.serving_s, 3)
    )
