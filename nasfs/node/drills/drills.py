"""Test failovers: a group's volumes as writable clones on the node that receives it, shared and
tried, while replication goes on; and all of it taken away again."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from nasfs.errors import ConfigError, Failed, NasError, Refused
from nasfs.volume import Access, Snapshot, VolumeBusy, open_volume

from ..context import Node
from ..engine import info
from ..messages import when
from ..records import Group
from ..sending.outgoing import complete, grouped
from .drill_clone import (
    check_free,
    check_place,
    clear_clones,
    clone_problem,
    has_server,
    mount_clone,
    mount_snapshot,
    rows_of,
)
from .drill_files import probe_files
from .drill_messages import CloneView, DrillStart, DrillView
from .drill_nfs import probe_exports, start_ganesha
from .drill_samba import names, served, start_smbd
from .drill_smb_probes import probe_shares
from .drill_table import HOLDER, Drill, DrillShare, DrillVolume, Phase, Stage

log = logging.getLogger(__name__)

FORGOTTEN_NS = 24 * 3600 * 1_000_000_000
"""A test that is there for longer is told of in `status`."""


def start(node: Node, name: str, request: DrillStart) -> DrillView:
    """Make the clones, share and try them; if that fails, nothing of it is left.

    Raises:
        Refused: the group is not passive here, nothing complete has arrived, a failover is under
            way, or another test runs.
        Failed: no such snap group, a mount point is busy, or a step failed.
    """
    group = node.state.group(name)
    drill = plan(node, group, request)
    if request.dry_run:
        return view(node, drill, "planned")
    node.drills.save(drill)
    node.note("test failover began", name, f"on @{drill.snapshot}")
    try:
        drill = _carry_out(node, drill)
    except (NasError, OSError) as exc:
        log.warning("test failover of %s: %s", name, exc)
        failed = node.drills.of_group(group.uuid) or drill
        end(node, replace(failed, problem=str(exc)))
        raise exc if isinstance(exc, NasError) else Failed(str(exc)) from exc
    node.note("test failover runs", name, f"clients could work after {drill.serving_s:.1f} s")
    return view(node, drill)


def plan(node: Node, group: Group, request: DrillStart) -> Drill:
    """What would be made.  Raises as `start` does."""
    _check_passive(node, group)
    volumes, snapshot = _choose(node, group, request.snapshot)
    ident = secrets.token_hex(4)
    common = node.places.state / "test-failover" / ident
    for text in (request.mountpoint, request.space):
        if text and not text.startswith("/"):
            raise ConfigError(f"{text!r} is not an absolute path")
    if not 0 <= request.port < 1 << 16:
        raise ConfigError(f"{request.port} is no port")
    where = request.mountpoint or str(node.places.test_mountpoint(group.name))
    drill = Drill(
        id=ident,
        group=group.uuid,
        name=group.name,
        phase=Phase.STARTING,
        snap_group=snapshot.snap_group,
        snapshot=snapshot.name,
        snapshot_ns=snapshot.time_ns,
        volumes=volumes,
        mountpoint=where,
        space=str(Path(request.space) / ident) if request.space else str(common),
        home=str(common),
        began_ns=time.time_ns(),
        listen=request.listen,
        port=request.port,
        prefix=request.prefix,
    )
    check_place(Path(drill.mountpoint), "as a mount point")
    check_place(Path(drill.space), "for what is written")
    check_place(Path(drill.home), "for its own mounts")
    if request.space and not Path(request.space).is_dir():
        raise Failed(f"{request.space} is no directory")
    check_free(drill)
    return replace(drill, shares=served(node, drill))


def _check_passive(node: Node, group: Group) -> None:
    if group.role != "passive":
        raise Refused(
            f"group {group.name} is {group.role} on this node",
            hint="a test failover is made where the group is passive: on the partner",
        )
    if node.bond.journal(group.uuid):
        raise Refused(f"a failover of group {group.name} is under way")
    if node.drills.of_group(group.uuid):
        raise Refused(
            f"there is a test failover of group {group.name} already",
            hint=f"nasfs test-failover stop {group.name}",
        )


def _choose(node: Node, group: Group, name: str) -> tuple[tuple[DrillVolume, ...], Snapshot]:
    """Each volume with its snapshot of the newest complete snap group, or of the one named."""
    rows = node.state.members(group.uuid)
    infos = [info(node, row) for row in rows]
    # Named: also one that is kept of another history; else what a failover would go back to.
    found = [grouped(one.snapshots if name else one.ancestors) for one in infos]
    candidates = complete(found)
    if not candidates:
        raise Refused(f"no snap group of {group.name} has arrived completely yet")
    if name:
        candidates = [one for one in candidates if found[0][one].name == name]
    if not candidates:
        raise Failed(
            f"group {group.name} has no complete snap group {name} here",
            hint=f"nasfs snapshot list {group.name} shows them",
        )
    chosen = candidates[-1]
    volumes = tuple(
        DrillVolume(row.uuid, str(node.state.volume_name(row)), snapshots[chosen].guid)
        for row, snapshots in zip(rows, found, strict=True)
    )
    return volumes, found[0][chosen]


def _carry_out(node: Node, drill: Drill) -> Drill:
    stages: list[Stage] = []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        stages.append(Stage(name, time.monotonic() - began))
        node.drills.save(replace(drill, stages=tuple(stages)))

    with stage("hold"):
        hold(node, drill)
    with stage("mount"):
        _each(drill, lambda volume: mount_snapshot(node, drill, volume))
    with stage("overlay"):
        exportable = [mount_clone(drill, volume) for volume in drill.volumes]
        if not all(exportable):
            drill = replace(drill, shares=tuple(map(_by_smb_alone, drill.shares)))
    with stage("export"):
        if names(drill.shares):
            drill = replace(drill, port=start_smbd(node, drill))
        if exports(drill):
            drill = replace(drill, nfs_port=start_ganesha(node, drill))
    with stage("probes"):
        probes = tuple(probe for volume in drill.volumes for probe in probe_files(drill, volume))
        tried = (*probe_shares(node, drill), *probe_exports(node, drill))
        drill = replace(drill, probes=(*probes, *tried))
    drill = replace(drill, phase=Phase.RUNNING, stages=tuple(stages))
    node.drills.save(drill)
    return drill


def _by_smb_alone(share: DrillShare) -> DrillShare:
    """The kernel gives no file handles to clones."""
    if not share.nfs:
        return share
    note = "by NFS only, and the kernel gives no handles to clones here" if share.note else ""
    return replace(share, nfs="", note=note)


def _each(drill: Drill, does: Callable[[DrillVolume], None]) -> None:
    for volume in drill.volumes:
        does(volume)


def hold(node: Node, drill: Drill) -> None:
    """Its row in node.db is a lease that receivers obey; a volume in nobody's hands is held, too.

    Raises:
        Failed: a snapshot is not there any more.
    """
    settle(node, drill)
    for row in rows_of(node, drill):
        here = {snapshot.guid for snapshot in info(node, row).snapshots}
        for volume in drill.volumes:
            if volume.uuid == row.uuid and volume.guid not in here:
                raise Failed(f"{volume.name}@{drill.snapshot} has just been destroyed")


def settle(node: Node, drill: Drill) -> bool:
    """Make the holds what the leases say; False: a receiver has a volume in its hands."""
    done = True
    for row in rows_of(node, drill):
        try:
            with open_volume(node.volume_path(row)) as volume, node.state.change():
                node.drills.settle(volume)
        except VolumeBusy:
            done = False
        except NasError as exc:
            log.warning("holds of %s: %s", row.name, exc)
            done = False
    return done


def is_held(node: Node, drill: Drill) -> bool:
    """Whether the holds of a test are in its volumes already; none that is gone counts."""
    guids = {volume.guid for volume in drill.volumes}
    for row in rows_of(node, drill):
        with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
            here = guids & {snapshot.guid for snapshot in volume.snapshots()}
            holds = volume.all_holds()
        for guid in here:
            if all(hold.owner != HOLDER for hold in holds.get(guid, [])):
                return False
    return True


def stop(node: Node, name: str) -> DrillView:
    """Take all of it away.  Raises Failed if there is none, or something can't be unmounted."""
    group = node.state.group(name)
    drill = node.drills.of_group(group.uuid)
    if drill is None:
        raise Failed(f"there is no test failover of group {name}")
    return view(node, end(node, drill), "ended")


def stop_if_any(node: Node, group_uuid: str, why: str) -> None:
    """For what has precedence: a failover, the end of the replication."""
    drill = node.drills.of_group(group_uuid)
    if drill is not None:
        end(node, replace(drill, problem=f"stopped for {why}"))


def end(node: Node, drill: Drill) -> Drill:
    """Whatever there is of it goes.  Again, after a crash in the middle, does the rest.

    Raises:
        Failed: something is mounted still.
    """
    drill = replace(drill, phase=Phase.STOPPING)
    node.drills.save(drill)
    clear_clones(drill)
    ended = replace(drill, phase=Phase.RELEASING, ended_ns=time.time_ns())
    with node.state.change():
        node.drills.save(ended)
        node.drills.report(ended)
    node.note("test failover ended", drill.name, drill.problem)
    if settle(node, ended):
        node.drills.forget(ended)
    return ended


# looking


def show(node: Node, name: str) -> DrillView:
    """The one that is there, else the latest.  Raises Failed if there was none."""
    group = node.state.group(name)
    drill = node.drills.of_group(group.uuid)
    if drill is not None:
        return view(node, drill)
    last = node.drills.last_report(group.uuid)
    if last is None:
        raise Failed(
            f"there was no test failover of group {name}",
            hint=f"nasfs test-failover start {name}",
        )
    return view(node, last, "failed" if not came_up(last) else "ended")


def list_drills(node: Node) -> list[DrillView]:
    """Those that are there, and the latest of the other groups."""
    here = [drill for drill in node.drills.all() if drill.phase is not Phase.RELEASING]
    groups = {drill.group for drill in here}
    over = [drill for drill in node.drills.reports() if drill.group not in groups]
    return [
        *(view(node, drill) for drill in here),
        *(view(node, drill, "ended" if came_up(drill) else "failed") for drill in over),
    ]


def came_up(drill: Drill) -> bool:
    """It served, and was tried."""
    return any(stage.name == "probes" for stage in drill.stages)


def problems(drill: Drill) -> list[str]:
    """Why a running test can't be used; never waits for its mounts."""
    if drill.phase is not Phase.RUNNING:
        return []
    found = [problem for volume in drill.volumes if (problem := clone_problem(drill, volume))]
    if names(drill.shares) and not has_server(drill.home, "smbd"):
        found.append("its smbd is gone")
    if exports(drill) and not has_server(drill.home, "ganesha.nfsd"):
        found.append("its Ganesha is gone")
    return found


def attention(node: Node) -> list[str]:
    """Tests that were forgotten, or can't be used."""
    told = []
    for drill in node.drills.all():
        if drill.phase is Phase.RELEASING:
            continue
        stop = f"nasfs test-failover stop {drill.name}"
        if wrong := problems(drill):
            told.append(f"the test failover of {drill.name} is broken: {wrong[0]}; {stop}")
        elif time.time_ns() - drill.began_ns > FORGOTTEN_NS:
            told.append(
                f"a test failover of {drill.name} is there since {when(drill.began_ns)}, and keeps"
                f" @{drill.snapshot}; {stop}"
            )
    return told


def view(node: Node, drill: Drill, state: str = "") -> DrillView:
    """How it stands, or stood."""
    wrong = [] if state else problems(drill)
    if drill.problem:
        wrong.append(drill.problem)
    state = state or ("broken" if wrong else drill.phase.value)
    tried = all(probe.result != "failed" for probe in drill.probes)
    serves = bool(names(drill.shares)) and drill.port and state != "planned"
    nfs = drill.nfs_port if state != "planned" else 0
    return DrillView(
        group=drill.name,
        state=state,
        ok=tried and (state == "planned" or came_up(drill)) and not wrong,
        snapshot=drill.snapshot,
        snapshot_time=when(drill.snapshot_ns),
        age_s=max(0, (drill.began_ns - drill.snapshot_ns) // 1_000_000_000),
        began=when(drill.began_ns) if state != "planned" else None,
        ended=when(drill.ended_ns) if drill.ended_ns else None,
        clones=tuple(
            CloneView(
                volume.name,
                str(drill.clone(volume)),
                (clone_problem(drill, volume) or "mounted")
                if state in ("running", "broken")
                else state,
            )
            for volume in drill.volumes
        ),
        listen=f"{drill.listen}:{drill.port}" if serves else "",
        nfs=f"{drill.listen}:{nfs}" if nfs else "",
        shares=drill.shares,
        stages=drill.stages,
        probes=drill.probes,
        serving_s=drill.serving_s,
        problems=tuple(wrong),
        plan=steps(node, drill) if state == "planned" else (),
    )


def exports(drill: Drill) -> str:
    """Names of what is served by NFS."""
    return ", ".join(share.name for share in drill.shares if share.nfs)


def steps(node: Node, drill: Drill) -> tuple[str, ...]:
    """What `start` does, for people."""
    told = [f"hold {volume.name}@{drill.snapshot}" for volume in drill.volumes]
    told += [f"mount {volume.name}@{drill.snapshot} read-only" for volume in drill.volumes]
    told += [
        f"make it writable at {drill.clone(volume)}; what is written goes to {drill.space}"
        for volume in drill.volumes
    ]
    if shown := names(drill.shares):
        port = drill.port or "a free port"
        told.append(f"serve {shown} by an smbd of its own at {drill.listen}, {port}")
    if shown := exports(drill):
        told.append(f"serve {shown} by a Ganesha of its own at {drill.listen}, a free port")
    idle = [share for share in drill.shares if share.note and not share.nfs]
    told += [f"do not serve {share.name}: {share.note}" for share in idle]
    told.append("list, read and write on each clone, and compare what users may do")
    if names(drill.shares):
        told.append("log in, list, read and write on each share")
    if exports(drill):
        told.append("list, read and write on each export")
    return tuple(told)
