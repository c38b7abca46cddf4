"""What a policy does to its volumes: take a snapshot and remember whose it is, look, destroy.

Plain functions that may wait for the disk.  Taking and destroying are those of people
(`snapshots`), with all their refusals.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nasfs.errors import Failed, NasError, Refused, Unreachable
from nasfs.schedule.naming import snapshot_name
from nasfs.schedule.policy import parse_policy
from nasfs.schedule.retention import Candidate, Decision, Verdict, plan_retention
from nasfs.volume import Access, Hold, Snapshot, VolumeBusy, open_volume

from ..coming_back import why_it_waits
from ..context import Node
from ..engine import changed_since, info
from ..inventory import WRITABLE_ROLES
from ..records import HOLDER, Group, VolumeRow
from ..roles.progress import change_under_way
from ..snapshots import destroy_snapshots, take_snapshot
from .policies import Claim, PolicyRow

CLAIM_S = 3600.0
"""A snapshot that nobody has found so long after it was asked for was never taken."""
PARTIAL_S = 120.0
"""So long after it was asked for, a snap group is whole or will never be (seconds)."""
BATCH = 50
"""Snapshots, or snap groups, destroyed at once."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a policy takes snapshots of."""

    label: str
    """POOL/VOLUME or GROUP"""
    rows: tuple[VolumeRow, ...]
    group: Group | None
    """The group that it is, or that the volume is in."""
    busy: str = ""
    """Of the group: why no snapshot is taken or destroyed for the moment."""

    @property
    def scope(self) -> str:
        """Who shares it takes snapshots one after the other."""
        return self.group.uuid if self.group else self.rows[0].uuid

    @property
    def obstacle(self) -> str:
        """Why nothing is taken and nothing destroyed here, in words; empty: nothing prevents it."""
        if self.group is not None and self.group.role not in WRITABLE_ROLES:
            return f"group {self.group.name} is {self.group.role} here"
        if self.busy:
            return self.busy
        return "" if self.rows else f"group {self.label} has no volumes"


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that a policy has taken."""

    name: str
    guid: str
    """Of the volume's snapshot, or of the snap group."""


def target_of(node: Node, policy: PolicyRow) -> Target:
    """Raises Failed if it is gone."""
    if policy.group:
        group = node.state.find_group(policy.group)
        if group is None:
            raise Failed(f"the group of policy {policy.name} is gone")
        rows = tuple(node.state.members(group.uuid))
        return Target(group.name, rows, group, _busy(node, group))
    row = node.state.find_volume(policy.volume)
    if row is None:
        raise Failed(f"the volume of policy {policy.name} is gone")
    group = node.state.find_group(row.group) if row.group else None
    busy = _busy(node, group) if group else ""
    return Target(str(node.state.volume_name(row)), (row,), group, busy)


def _busy(node: Node, group: Group) -> str:
    return why_it_waits(node, group) or change_under_way(node, group)


def volumes_of(node: Node, volume_uuid: str, group_uuid: str) -> list[VolumeRow]:
    """The volume, or the group's volumes; one of the two is empty."""
    if group_uuid:
        return node.state.members(group_uuid)
    row = node.state.find_volume(volume_uuid)
    return [row] if row else []


def newest_if_unchanged(node: Node, policy: PolicyRow) -> str:
    """The name of the policy's newest snapshot, if no volume was changed since; else empty."""
    guids = {one.volume: one.guid for one in node.policies.newest_run(policy.uuid)}
    name = ""
    for row in target_of(node, policy).rows:
        names = {snapshot.guid: snapshot.name for snapshot in info(node, row).snapshots}
        name = names.get(guids.get(row.uuid, ""), "")
        if not name or changed_since(node, row, guids[row.uuid]):
            return ""
    return name


def take(node: Node, policy: PolicyRow, now_ns: int) -> Taken:
    """A snapshot of the policy's target now; durable, and known as the policy's, on return.

    Args:
        now_ns: for its name.

    Raises:
        Unreachable, VolumeBusy: it is not known whether it was taken; if so, it is the policy's.
        NasError: it was not taken.
    """
    target = target_of(node, policy)
    taken = {s.name for row in target.rows for s in info(node, row).snapshots}
    name = snapshot_name(policy.name, now_ns, taken)
    node.policies.claim(policy.uuid, name, time.time_ns(), [row.uuid for row in target.rows])
    try:
        views = take_snapshot(node, f"{target.label}@{name}")
    except (Unreachable, VolumeBusy):
        raise
    except NasError:
        node.policies.drop_claim(policy.uuid, name)
        raise
    uuids = {str(node.state.volume_name(row)): row.uuid for row in target.rows}
    node.policies.remember(policy.uuid, name, {uuids[v.volume]: v.guid for v in views})
    return Taken(name, views[0].snap_group or views[0].guid)


def settle_claims(node: Node, policy: PolicyRow) -> list[str]:
    """Find what was taken while the daemon was killed, or did not answer; the names found.

    What a kill has left of a snap group, not whole, is destroyed.
    """
    settled = []
    for claim in node.policies.claims(policy.uuid):
        age_s = (time.time_ns() - claim.since_ns) / 1e9
        found = {row.uuid: s.guid for row, s in _find(node, claim)}
        if found and len(found) == len(claim.volume_uuids):
            node.policies.remember(policy.uuid, claim.name, found)
            settled.append(claim.name)
        elif found and not 0 <= age_s < PARTIAL_S:
            texts = [f"{node.state.volume_name(row)}@{s.name}" for row, s in _find(node, claim)]
            destroy_snapshots(node, tuple(texts), dry_run=False)
            node.policies.drop_claim(policy.uuid, claim.name)
        elif not 0 <= age_s < CLAIM_S:
            node.policies.drop_claim(policy.uuid, claim.name)
    return settled


def _find(node: Node, claim: Claim) -> list[tuple[VolumeRow, Snapshot]]:
    found = []
    for volume_uuid in claim.volume_uuids:
        row = node.state.find_volume(volume_uuid)
        if row is None:
            continue
        for snapshot in info(node, row).snapshots:
            if snapshot.name == claim.name and snapshot.time_ns >= claim.since_ns:
                found.append((row, snapshot))
    return found


# retention


@dataclass(frozen=True, slots=True)
class _Unit:
    """The snapshots of one run that are still there."""

    candidate: Candidate
    texts: tuple[str, ...]
    guids: tuple[str, ...]


def prune(node: Node, policy: PolicyRow) -> list[Decision]:
    """Destroy what the policy's rule does not keep; all decisions, in the order of the runs.

    What somebody holds in the same moment stays, and is decided about the next time.
    """
    settle_claims(node, policy)
    units, decisions = _decide(node, policy)
    doomed = [units[d.snapshot.key] for d in decisions if d.verdict is Verdict.DESTROY]
    for start in range(0, len(doomed), BATCH):
        _destroy(node, doomed[start : start + BATCH])
    return decisions


def explain(node: Node, policy: PolicyRow) -> list[Decision]:
    """What `prune` would decide now, of the policy's own snapshots."""
    return _decide(node, policy)[1]


def _decide(node: Node, policy: PolicyRow) -> tuple[dict[str, _Unit], list[Decision]]:
    units = {unit.candidate.key: unit for unit in _units(node, policy)}
    candidates = [unit.candidate for unit in units.values()]
    rule = parse_policy(policy.written).rule
    return units, plan_retention(candidates, policy.uuid, rule)


@dataclass(frozen=True, slots=True)
class _Member:
    """One volume's snapshot of a run."""

    volume: str
    """POOL/VOLUME"""
    snapshot: Snapshot
    holds: Sequence[Hold]
    obstacle: str
    """Of the group that the volume is in now."""


def _units(node: Node, policy: PolicyRow) -> list[_Unit]:
    """By run, oldest first.  What others have destroyed is forgotten on the way."""
    made = node.policies.made(policy.uuid)
    target = target_of(node, policy)
    present: dict[str, _Member] = {}
    for volume_uuid in {one.volume for one in made}:
        row = node.state.find_volume(volume_uuid)
        if row is not None:  # else it was destroyed just now, and what was made with it
            present.update(_members(node, row))
    gone = [one.guid for one in made if one.guid not in present]
    if gone:
        node.policies.forget_made(gone)
    runs: dict[int, list[_Member]] = {}
    for one in made:
        if one.guid in present:
            runs.setdefault(one.run, []).append(present[one.guid])
    return [_unit(policy, target, run, members) for run, members in runs.items()]


def _members(node: Node, row: VolumeRow) -> dict[str, _Member]:
    """All snapshots of a volume, by GUID."""
    label = str(node.state.volume_name(row))
    group = node.state.find_group(row.group) if row.group else None
    obstacle = Target(label, (row,), group).obstacle
    with open_volume(node.volume_path(row), Access.READ_ONLY) as volume:
        holds = volume.all_holds()
        return {
            s.guid: _Member(label, s, holds.get(s.guid, ()), obstacle) for s in volume.snapshots()
        }


def _unit(policy: PolicyRow, target: Target, run: int, members: Sequence[_Member]) -> _Unit:
    obstacles = [target.obstacle] if target.obstacle else []
    for member in members:
        where = f" ({member.volume})" if len(members) > 1 else ""
        obstacles += [f"{_why(hold)}{where}" for hold in member.holds]
        obstacles += [member.obstacle] if member.obstacle else []
    first = members[0].snapshot
    return _Unit(
        Candidate(
            key=f"run {run}",
            name=f"{target.label}@{first.name}",
            time_ns=first.time_ns,
            policy=policy.uuid,
            obstacles=tuple(dict.fromkeys(obstacles)),
        ),
        tuple(f"{member.volume}@{member.snapshot.name}" for member in members),
        tuple(member.snapshot.guid for member in members),
    )


def _why(hold: Hold) -> str:
    if hold.owner == HOLDER:
        return "the next delta to the partner is computed from it, or it is on its way there"
    return f"held by {hold.owner}" + (f": {hold.reason}" if hold.reason else "")


def _destroy(node: Node, units: Sequence[_Unit]) -> None:
    try:
        destroy_snapshots(node, tuple(t for unit in units for t in unit.texts), dry_run=False)
    except NasError:
        if len(units) == 1:
            raise
        for unit in units:  # one of them can't go: the others shall
            try:
                _destroy(node, [unit])
            except Refused:
                continue
        return
    node.policies.forget_made([guid for unit in units for guid in unit.guids])
