"""This node as a receiving connection sees it: `replication.endpoint.Site` on node.db."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from nasfs.errors import NasError, Refused
from nasfs.volume import (
    NoSuchVolume,
    Snapshot,
    Volume,
    VolumeBusy,
    open_pool,
    volume_info,
)
from replication.endpoint import (
    Batch,
    GroupSpec,
    GroupStatus,
    PeerIdentity,
    Progress,
    Sink,
    SnapshotRef,
    VolumeSpec,
    VolumeStatus,
)
from replication.errors import Fenced, PeerBusy
from replication.local import VolumeSink, create_passive
from replication.pair import Invitation as PairInvitation
from replication.pair import check_secret
from replication.roles import check_term

from ..context import Node
from ..engine import reclaim_all
from ..pairing import identity
from ..records import HOLDER, Group, Invitation, Pool, VolumeRow
from ..roles import leaving
from ..roles.progress import still_receives
from ..shares.share_travel import staged_digest
from ..words import check_name
from . import partner
from .receivers import announce, take_over, withdraw

TAKE_OVER_S = 15.0
"""So long an earlier connection's process may take to let a volume go (seconds)."""


class NodeSite:
    """The node around one receiving connection."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def identity(self) -> PeerIdentity:
        return identity(self._node)

    def peer(self) -> PeerIdentity | None:
        return self._node.bond.peer()

    def accept_pairing(self, secret: str, candidate: PeerIdentity) -> None:
        def check(invitation: Invitation | None) -> None:
            known = None
            if invitation is not None:
                known = PairInvitation(invitation.digest, invitation.expires_ns)
            check_secret(known, secret, time.time_ns())

        if candidate.uuid == self._node.state.node_uuid():
            raise Refused("a node cannot be its own partner")
        self._node.bond.accept_pairing(candidate, check)
        self._node.state.note("partner", "paired", candidate.name, candidate.address)

    # groups

    def create_replication(self, spec: GroupSpec) -> None:
        group = self._node.state.find_group(spec.uuid)
        if group is None:
            self._create(spec)
        else:
            self._renew(group, spec)

    def _create(self, spec: GroupSpec) -> None:
        check_name(spec.name, "group")
        if any(group.name == spec.name for group in self._node.state.groups()):
            raise Refused(f"the partner has a group {spec.name} of its own")
        pools = {pool.name: pool for pool in self._node.state.pools()}
        rows = [self._make_volume(pools, volume) for volume in spec.volumes]
        with self._node.state.change():
            self._node.state.add_group(Group(spec.uuid, spec.name, "passive", spec.term, 0))
            for row in rows:
                if self._node.state.find_volume(row.uuid) is None:
                    self._node.state.add_volume(row)
            self._node.state.join_group(rows, spec.uuid)
            self._node.bond.set_reception(spec.uuid, spec.max_snapshots)
        self._node.state.note("partner", "passive group created", spec.name)

    def _make_volume(self, pools: dict[str, Pool], spec: VolumeSpec) -> VolumeRow:
        """The passive volume; one that an interrupted attempt left is taken as it is."""
        check_name(spec.name, "volume")
        if spec.pool not in pools:
            raise Refused(
                f"the partner has no pool {spec.pool}", hint="make it there: nasfs pool create"
            )
        pool = pools[spec.pool]
        row = VolumeRow(spec.uuid, pool.uuid, spec.name, "", 0, "")
        known = self._node.state.find_volume(spec.uuid)
        path = Path(pool.path) / spec.name
        try:
            present = volume_info(path).uuid
        except NoSuchVolume:
            if known is not None:
                raise Refused("the partner knows that volume under another name") from None
            create_passive(open_pool(Path(pool.path)), spec)
            return row
        if present != spec.uuid:
            raise Refused(
                f"the partner has another volume {spec.pool}/{spec.name}",
                hint="choose another name there: nasfs replication create --volume LOCAL=REMOTE",
            )
        if known is not None and not known.group:
            leaving.check_unwritten(self._node, known)
        return known or row

    def _renew(self, group: Group, spec: GroupSpec) -> None:
        if spec.term < group.term:
            raise Fenced(ours=spec.term, theirs=group.term)
        if group.role != "passive":
            raise Refused(
                f"group {group.name} is {group.role} on the partner, in term {group.term}"
            )
        here = {row.uuid for row in self._node.state.members(group.uuid)}
        if here != {volume.uuid for volume in spec.volumes}:
            raise Refused(f"group {group.name} has other volumes on the partner")
        kept = self._node.bond.reception(group.uuid)
        if group.term == spec.term and kept and kept.max_snapshots == spec.max_snapshots:
            return  # as it is; a change would wait for the disk
        with self._node.state.change():
            self._node.state.change_role(group, role="passive", term=spec.term)
            self._node.bond.set_reception(group.uuid, spec.max_snapshots)

    def group_term(self, group_uuid: str) -> int:
        return self._group(group_uuid).term

    def group_status(self, group_uuid: str) -> GroupStatus:
        group = self._group(group_uuid)
        volumes = []
        for row in self._node.state.members(group_uuid):
            snapshots = volume_info(self._node.volume_path(row)).snapshots
            refs = tuple(SnapshotRef(s.guid, s.name, s.time_ns, s.snap_group) for s in snapshots)
            volumes.append(VolumeStatus(row.uuid, refs))
        kept = self._node.bond.reception(group_uuid)
        return GroupStatus(
            group.uuid,
            group.term,
            group.role,
            tuple(volumes),
            time_ns=time.time_ns(),
            keep_most=kept.keeps if kept else 0,
            keep_least=kept.keep_least if kept else 0,
            staged=staged_digest(self._node, group) if group.role == "passive" else "",
        )

    def operate(self, group: str, operation: str, body: bytes) -> bytes:
        if operation == leaving.LEAVE:  # it is about no group
            return leaving.partner_leaves(self._node)
        return partner.answer(self._node, self._group(group), operation, body)

    def _group(self, group_uuid: str) -> Group:
        group = self._node.state.find_group(group_uuid)
        if group is None:
            raise Refused("the partner does not know that group")
        return group

    # volumes

    def open_sink(self, group_uuid: str, term: int, volume_uuid: str) -> Sink:
        row = next((r for r in self._node.state.members(group_uuid) if r.uuid == volume_uuid), None)
        if row is None:
            raise Refused("that volume is not in the group")
        self._check_receiving(group_uuid, term)
        sink = self._open(row)
        try:
            announce(self._node.places, volume_uuid)
            self._check_receiving(group_uuid, term)  # a failover may have begun meanwhile
        except BaseException:
            sink.close()
            raise
        kept = self._node.bond.reception(group_uuid)
        return _NodeSink(sink, self._node, row, kept.keeps if kept else 0)

    def _check_receiving(self, group_uuid: str, term: int) -> None:
        group = self._group(group_uuid)
        check_term(group.name, group.term, term)
        if group.role != "passive":
            raise Refused(f"group {group.name} is {group.role} on the partner")
        journal = self._node.bond.journal(group_uuid)
        if journal is not None and not still_receives(journal):
            raise Refused(f"a failover of group {group.name} is under way on the partner")

    def _open(self, row: VolumeRow) -> VolumeSink:
        path = self._node.volume_path(row)
        try:
            return VolumeSink(path)
        except VolumeBusy:
            take_over(self._node.places, row.uuid, wait_s=TAKE_OVER_S)
        deadline = time.monotonic() + TAKE_OVER_S
        while True:
            try:
                return VolumeSink(path)
            except VolumeBusy as exc:
                if time.monotonic() > deadline:
                    raise PeerBusy(str(exc)) from exc
                time.sleep(0.05)


class _NodeSink:
    """A sink that holds what came last, and keeps to the number of snapshots, once it is closed."""

    def __init__(self, sink: VolumeSink, node: Node, row: VolumeRow, keep: int) -> None:
        self._sink = sink
        self._node = node
        self._row = row
        self._keep = keep
        self._sealed = False

    @property
    def volume_uuid(self) -> str:
        return self._sink.volume_uuid

    def snapshots(self) -> list[SnapshotRef]:
        return self._sink.snapshots()

    def resize(self, size: int) -> None:
        self._sink.resize(size)

    def progress(self) -> Progress | None:
        return self._sink.progress()

    def begin(self, progress: Progress) -> None:
        self._sink.begin(progress)

    def apply(self, batch: Batch) -> None:
        self._sink.apply(batch)

    def commit(self, progress: Progress) -> None:
        self._sink.commit(progress)

    def seal(self, target: SnapshotRef) -> None:
        volume = self._sink.volume
        self._sink.seal(target, lambda newest: _hold_newest(volume, newest))
        self._sealed = True

    def close(self) -> None:
        try:
            if self._sealed and not self._sink.volume.changed:
                _keep_to(self._keep, self._sink.volume, self._node)
        finally:
            self._sink.close()
            withdraw(self._node.places, self._row.uuid)


def _hold_newest(volume: Volume, newest: Snapshot) -> None:
    """It, and none before it, is held by replication from now on."""
    for guid, holds in volume.all_holds().items():
        if guid != newest.guid and any(hold.owner == HOLDER for hold in holds):
            volume.release_hold_nowait(volume.snapshot(guid).name, HOLDER)
    reason = "the newest that has arrived: the next delta begins there"
    volume.hold_nowait(newest.name, HOLDER, reason)


def _keep_to(count: int, volume: Volume, node: Node) -> None:
    """Destroy what is more than so many (0: nothing), but what is held; give its space back."""
    surplus = volume.ancestors()[:-count] if count else []
    with node.state.change():  # no test failover begins on what is just going
        node.drills.settle(volume)
        for snapshot in surplus:
            with contextlib.suppress(NasError):  # held: it stays until it is released
                volume.destroy_snapshot(snapshot.name)
    reclaim_all(volume)
