"""Sending a group: its snap groups in order, each whole before the next, held meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from nasfs.volume import Snapshot
from replication.client import create_replication, peer_status
from replication.compression import AUTO
from replication.endpoint import GroupSpec, GroupStatus, Source, VolumeSpec
from replication.errors import PeerUnreachable, RefusedByPeer
from replication.local import VolumeSource
from replication.plan import Retention, SnapGroup, plan_snap_groups
from replication.sender import Account, replicate

from ..context import Node
from ..leases import hold, older, release
from ..records import Group, Replication, VolumeRow
from .beside import Beside
from .governor import Governor
from .members import Members
from .peerline import PeerLine
from .reports import Both, Done, Running

COMPRESSION_LEVELS = {"off": 0, "auto": AUTO, **{str(n): n for n in range(1, 10)}}
"""The words of the option, and the level of zstandard that they mean (0: none)."""

AT_A_TIME = 16
"""Snap groups of a group of one volume that go in one conversation, before it is planned anew."""

Say = Callable[[Running | Both], None]


def group_spec(
    node: Node,
    group: Group,
    made: Replication,
    names: dict[str, str],
    sizes: dict[str, int],
) -> GroupSpec:
    """What the partner is asked to have; by volume UUID its name there, and its size."""
    volumes = tuple(
        VolumeSpec(
            uuid=row.uuid,
            pool=made.to_pool,
            name=names.get(row.uuid, row.name),
            size=sizes[row.uuid],
            provision=made.provision,
        )
        for row in node.state.members(group.uuid)
    )
    return GroupSpec(group.uuid, group.name, group.term, volumes, made.max_snapshots)


class Waiting:
    """What this site has and the partner lacks, as of one look."""

    def __init__(
        self, members: Members, made: Replication, theirs: set[str], retention: Retention
    ) -> None:
        """*theirs*: the GUIDs of what the partner has."""
        self._theirs = theirs
        rows = members.rows
        self.snapshots = {row.uuid: grouped(members.snapshots(row)) for row in rows}
        whole = complete(list(self.snapshots.values()))
        there = [number for number, group in enumerate(whole) if self.is_there(group)]
        self.common = whole[there[-1]] if there else None
        later = whole[there[-1] + 1 :] if there else whole
        held = members.others_hold() if made.max_lag_s and len(later) > 1 else set()
        groups = [self._snap_group(rows[0], name, held) for name in later]
        self.chosen = plan_snap_groups(
            groups,
            there=len(there),
            retention=retention,
            now_ns=time.time_ns(),
            max_lag_ns=made.max_lag_s * 1_000_000_000,
        )
        self.skipped = len(groups) - len(self.chosen)

    def is_there(self, snap_group: str) -> bool:
        """The partner has all of it."""
        return all(held[snap_group].guid in self._theirs for held in self.snapshots.values())

    def lacks(self, row: VolumeRow, snap_group: str) -> bool:
        """The partner lacks that volume's part."""
        return self.snapshots[row.uuid][snap_group].guid not in self._theirs

    def _snap_group(self, row: VolumeRow, name: str, held: set[str]) -> SnapGroup:
        snapshot = self.snapshots[row.uuid][name]
        wanted = any(volume[name].guid in held for volume in self.snapshots.values())
        return SnapGroup(name, snapshot.name, snapshot.time_ns, wanted)


class Outgoing:
    """One attempt to bring the partner up to date with a group; a context manager.

    Attributes:
        both_have: the newest snap group that both sites have; empty: none.
    """

    def __init__(
        self,
        node: Node,
        group: Group,
        made: Replication,
        governor: Governor,
        say: Say,
        line: PeerLine,
        *,
        patience_s: float,
    ) -> None:
        self._node = node
        self._group = group
        self._made = made
        self._level = COMPRESSION_LEVELS[made.compression]
        self._governor = governor
        self._say = say
        self._line = line
        self._patience_s = patience_s
        self._began = time.monotonic()
        self._done = Done()
        self._rows = node.state.members(group.uuid)
        self._members = Members(node, self._rows)
        self._beside = Beside()
        self._skew_ns = 0
        self._sizes: dict[str, int] = {}
        self.both_have = ""
        self._under_way: tuple[SnapGroup, ...] = ()
        self._offered = False
        self._rested: Future[GroupStatus | None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._members:
            self._beside.__exit__(kind, error, trace)

    def run(self) -> Done:
        """Have the partner make what is missing there, then send what it lacks, oldest first.

        The partner closes its volumes, and holds are released, beside what the caller does until
        the context ends.
        """
        self._say(Running(phase="connecting"))
        status = self._agree(self._spec())
        theirs = {found.guid for volume in status.volumes for found in volume.snapshots}
        keeps = Retention(status.keep_most or self._made.max_snapshots, status.keep_least)
        while (waiting := Waiting(self._members, self._made, theirs, keeps)).chosen:
            self._note_common(waiting, waiting.common)
            self._done = _more(self._done, skipped=waiting.skipped)
            self._send(waiting, theirs)
        self._note_common(waiting, waiting.common)
        self._rested = self._beside.begin(self._rest, status)
        self._let_go(waiting.common)
        return self._done

    def partner_has(self) -> GroupStatus | None:
        """What it has after `run`; None: it went away."""
        return self._rested.result() if self._rested else None

    def _rest(self, status: GroupStatus) -> GroupStatus | None:
        return self._line.rest(self._group.uuid) if self._offered else status

    def _let_go(self, common: str | None) -> None:
        """Of what lies before it; not waited for."""
        for row in self._rows:
            held = self._members.held(row)
            before = older(self._members.snapshots(row), common)
            surplus = [snapshot for snapshot in before if snapshot.guid in held]
            if surplus:
                self._beside.begin(release, self._node, row, surplus)

    # talking to the partner

    def _spec(self) -> GroupSpec:
        names = self._node.bond.remote_names()
        sizes = {row.uuid: self._members.volume(row).size for row in self._rows}
        return group_spec(self._node, self._group, self._made, names, sizes)

    def _agree(self, spec: GroupSpec) -> GroupStatus:
        """What the partner has.  The connection waits for the first volume."""
        try:
            return self._ask(spec)
        except PeerUnreachable:
            if not self._line.kept:
                raise
        return self._ask(spec)

    def _ask(self, spec: GroupSpec) -> GroupStatus:
        if self._line.agreed == spec:
            with contextlib.suppress(RefusedByPeer):  # it will say why
                status = self._ask_status()
                if (status.role, status.term) == ("passive", spec.term):
                    return status
        self._line.agreed = None
        with self._line.lend(self._level) as connection:
            connection.share_link(self._governor.throttle)
            create_replication(connection, spec)
        status = self._ask_status()
        self._line.agreed = spec
        return status

    def _ask_status(self) -> GroupStatus:
        with self._line.lend(self._level) as connection:
            connection.share_link(self._governor.throttle)
            began = time.time_ns()
            status = peer_status(connection, self._group.uuid)
        if status.time_ns:
            self._skew_ns = status.time_ns - (began + time.time_ns()) // 2
        return status

    # sending

    def _send(self, waiting: Waiting, theirs: set[str]) -> None:
        """The first of the chosen snap groups, or several at once if there is one volume.

        *theirs* gets what has arrived.
        """
        count = AT_A_TIME if len(self._rows) == 1 else 1
        self._under_way = waiting.chosen[:count]
        self._hold([group.uuid for group in waiting.chosen], waiting)
        for row in self._rows:
            mine = waiting.snapshots[row.uuid]
            lacking = [
                mine[group.uuid] for group in self._under_way if waiting.lacks(row, group.uuid)
            ]
            if lacking:
                self._send_volume(row, lacking, len(waiting.chosen))
                theirs.update(snapshot.guid for snapshot in lacking)
        self._beside.join()
        self._note_common(waiting, self._under_way[-1].uuid)

    def _hold(self, snap_groups: list[str], waiting: Waiting) -> None:
        """Beside the transfer: while one of them is read, it is leased."""
        reason = f"group {self._group.name} is replicated from here"
        for row in self._rows:
            held, mine = self._members.held(row), waiting.snapshots[row.uuid]
            chosen = [mine[uuid] for uuid in snap_groups if mine[uuid].guid not in held]
            if chosen:
                self._beside.begin(hold, self._node, row, chosen, reason)

    def _send_volume(self, row: VolumeRow, snapshots: list[Snapshot], left: int) -> None:
        def tell(account: Account) -> None:
            self._progress(account, left)

        self._offered = True
        with contextlib.closing(self._source(row)) as source:
            account = replicate(
                source,
                lambda: self._line.take(self._level),
                self._group.uuid,
                self._group.term,
                targets=[snapshot.guid for snapshot in snapshots],
                patience=self._patience_s,
                throttle=self._governor.throttle,
                leave=self._line.give_back,
                on_progress=tell,
            )
        self._done = _more(
            self._done,
            snapshots=account.snapshots_sent,
            rows=account.sent.rows,
            bytes=account.sent.bytes,
            wire_bytes=account.wire_bytes,
            seconds=time.monotonic() - self._began - self._done.seconds,
        )

    def _source(self, row: VolumeRow) -> Source:
        return VolumeSource(self._node.volume_path(row))

    def _note_common(self, waiting: Waiting, snap_group: str | None) -> None:
        if snap_group is None or not self._rows:
            return
        self.both_have = snap_group
        newest = waiting.snapshots[self._rows[0].uuid][snap_group]
        self._say(Both(snap_group, newest.name, newest.time_ns, self._skew_ns))

    def _progress(self, account: Account, left: int) -> None:
        """Also says how far the snap groups have got, where several go in one conversation."""
        sent = account.snapshots_sent
        if (
            len(self._rows) == 1
            and 0 < sent < len(self._under_way)
            and account.phase.value != "done"
        ):
            newest = self._under_way[sent - 1]
            self._say(Both(newest.uuid, newest.name, newest.time_ns, self._skew_ns))
        self._say(
            Running(
                phase=f"waiting: {account.reason}" if account.reason else account.phase.value,
                snapshot=account.snapshot.name if account.snapshot else "",
                rows_done=account.done.rows,
                rows_total=account.total.rows,
                bytes_done=account.done.bytes,
                bytes_total=account.total.bytes,
                wire_bytes=self._done.wire_bytes + account.wire_bytes,
                seconds=time.monotonic() - self._began,
                bytes_left=max(0, account.total.bytes - account.done.bytes),
                snapshots_left=left - (sent if len(self._rows) == 1 else 0),
                level=account.level,
            )
        )


def _more(
    done: Done,
    *,
    snapshots: int = 0,
    rows: int = 0,
    bytes: int = 0,
    wire_bytes: int = 0,
    seconds: float = 0.0,
    skipped: int = 0,
) -> Done:
    return Done(
        done.snapshots + snapshots,
        done.rows + rows,
        done.bytes + bytes,
        done.wire_bytes + wire_bytes,
        done.seconds + seconds,
        done.skipped + skipped,
    )


def grouped(snapshots: tuple[Snapshot, ...]) -> dict[str, Snapshot]:
    """By snap group, oldest first."""
    return {snapshot.snap_group: snapshot for snapshot in snapshots if snapshot.snap_group}


def complete(volumes: list[dict[str, Snapshot]]) -> list[str]:
    """The snap groups that every volume has, in the order of the first volume."""
    if not volumes:
        return []
    return [name for name in volumes[0] if all(name in volume for volume in volumes)]
