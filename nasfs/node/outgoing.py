"""Sending a group: its snap groups in order, each whole before the next, held meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from nasfs.volume import Access, Snapshot, Volume, open_volume
from replication.client import create_replication, peer_status
from replication.compression import AUTO
from replication.connection import Connection
from replication.endpoint import GroupSpec, GroupStatus, VolumeSpec
from replication.local import VolumeSource
from replication.sender import Account, replicate

from .context import Node
from .engine import change, info
from .pairing import connect_peer
from .records import HOLDER, Group, Replication, VolumeRow
from .reports import Done, Running

COMPRESSION_LEVELS = {"off": 0, "auto": AUTO, **{str(n): n for n in range(1, 10)}}
"""The words of the option, and the level of zstandard that they mean (0: none)."""


def group_spec(node: Node, group: Group, made: Replication, names: dict[str, str]) -> GroupSpec:
    """What the partner is asked to have; *names*: volume UUID to its name there."""
    volumes = tuple(
        VolumeSpec(
            uuid=row.uuid,
            pool=made.to_pool,
            name=names.get(row.uuid, row.name),
            size=info(node, row).size,
            provision=made.provision,
        )
        for row in node.state.members(group.uuid)
    )
    return GroupSpec(group.uuid, group.name, group.term, volumes, made.max_snapshots)


class Outgoing:
    """One attempt to bring the partner up to date with a group."""

    def __init__(
        self,
        node: Node,
        group: Group,
        made: Replication,
        report: Callable[[Running], None],
        *,
        patience_s: float,
    ) -> None:
        self._node = node
        self._group = group
        self._level = COMPRESSION_LEVELS[made.compression]
        self._report = report
        self._patience_s = patience_s
        self._began = time.monotonic()
        self._done = Done()

    def _connect(self) -> Connection:
        return connect_peer(self._node, level=self._level)

    def agree(self, spec: GroupSpec) -> None:
        """Have the partner make what is missing there."""
        self._report(Running(phase="connecting"))
        with self._connect() as connection:
            create_replication(connection, spec)

    def send(self) -> Done:
        """Every complete snap group that the partner lacks, oldest first; what it came to."""
        rows = self._node.state.members(self._group.uuid)
        with self._connect() as connection:
            theirs = _guids(peer_status(connection, self._group.uuid))
        snapshots = {row.uuid: _grouped(info(self._node, row).snapshots) for row in rows}
        waiting = [
            snap_group
            for snap_group in _complete(list(snapshots.values()))
            if any(snapshots[row.uuid][snap_group].guid not in theirs for row in rows)
        ]
        for row in rows:
            self._hold(row, [snapshots[row.uuid][name] for name in waiting])
        if len(rows) == 1 and waiting:  # one conversation for all of them
            self._send_volume(rows[0], None)
        else:
            for snap_group in waiting:
                for row in rows:
                    self._send_volume(row, snapshots[row.uuid][snap_group])
        for row in rows:
            self._release_older(row)
        return self._done

    def _send_volume(self, row: VolumeRow, snapshot: Snapshot | None) -> None:
        source = VolumeSource(self._node.volume_path(row))
        try:
            account = replicate(
                source,
                self._connect,
                self._group.uuid,
                self._group.term,
                targets=None if snapshot is None else [snapshot.guid],
                patience=self._patience_s,
                on_progress=self._progress,
            )
        finally:
            source.close()
        self._done = Done(
            snapshots=self._done.snapshots + account.snapshots_sent,
            rows=self._done.rows + account.sent.rows,
            bytes=self._done.bytes + account.sent.bytes,
            wire_bytes=self._done.wire_bytes + account.wire_bytes,
            seconds=time.monotonic() - self._began,
        )

    def _progress(self, account: Account) -> None:
        self._report(
            Running(
                phase=f"waiting: {account.reason}" if account.reason else account.phase.value,
                snapshot=account.snapshot.name if account.snapshot else "",
                rows_done=account.done.rows,
                rows_total=account.total.rows,
                bytes_done=account.done.bytes,
                bytes_total=account.total.bytes,
                wire_bytes=self._done.wire_bytes + account.wire_bytes,
                seconds=time.monotonic() - self._began,
            )
        )

    # holds: nobody deletes what is on its way, or the newest that both sides have

    def _hold(self, row: VolumeRow, snapshots: list[Snapshot]) -> None:
        for snapshot in snapshots:
            args = {"name": snapshot.name, "owner": HOLDER, "reason": self._reason()}
            change(self._node, row, "hold", args, _holder(snapshot.name, self._reason()))

    def _reason(self) -> str:
        return f"group {self._group.name} is replicated from here"

    def _release_older(self, row: VolumeRow) -> None:
        """The newest snapshot of a snap group is common now; the holds on older ones go."""
        grouped = list(_grouped(info(self._node, row).snapshots).values())
        with open_volume(self._node.volume_path(row), Access.READ_ONLY) as volume:
            held = [
                snapshot.name
                for snapshot in grouped[:-1]
                if any(hold.owner == HOLDER for hold in volume.holds(snapshot.name))
            ]
        for name in held:
            args = {"name": name, "owner": HOLDER}
            change(self._node, row, "release", args, _releaser(name))


def _holder(name: str, reason: str) -> Callable[[Volume], None]:
    return lambda volume: volume.hold(name, HOLDER, reason)


def _releaser(name: str) -> Callable[[Volume], None]:
    return lambda volume: volume.release_hold(name, HOLDER)


def _grouped(snapshots: tuple[Snapshot, ...]) -> dict[str, Snapshot]:
    """By snap group, oldest first."""
    return {snapshot.snap_group: snapshot for snapshot in snapshots if snapshot.snap_group}


def _complete(volumes: list[dict[str, Snapshot]]) -> list[str]:
    """The snap groups that every volume has, in the order of the first volume."""
    if not volumes:
        return []
    return [name for name in volumes[0] if all(name in volume for volume in volumes)]


def _guids(status: GroupStatus) -> set[str]:
    return {snapshot.guid for volume in status.volumes for snapshot in volume.snapshots}
