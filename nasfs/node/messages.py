"""What the API takes and gives: sizes in bytes, times RFC 3339 UTC or null, stable names."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from nasfs.schedule.policy import PolicySpec


def when(time_ns: int) -> str | None:
    """RFC 3339 of a time in nanoseconds; None for 0 (never)."""
    if time_ns == 0:
        return None
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all bodies: an unknown field is an error, never ignored."""


class Nothing(Request, frozen=True):
    """No body."""


class ErrorView(msgspec.Struct, frozen=True):
    message: str
    hint: str
    exit_code: int


# pools and volumes


class PoolCreate(Request, frozen=True):
    name: str
    path: str


class PoolView(msgspec.Struct, frozen=True):
    name: str
    uuid: str
    path: str
    volumes: int
    size: int
    """Of the host file system."""
    free: int
    problem: str = ""


class VolumeCreate(Request, frozen=True):
    name: str
    """POOL/VOLUME"""
    size: int
    provision: str = "thin"
    mountpoint: str = ""


class VolumeMount(Request, frozen=True):
    without_partner: bool = False
    """Go on as the primary of its group although the partner does not answer."""


class VolumeRename(Request, frozen=True):
    new_name: str
    """Only the volume's part: a volume stays in its pool."""


class VolumeSet(Request, frozen=True):
    """What is given is changed."""

    mountpoint: str = ""
    list_snapshots: bool | None = None


class VolumeResize(Request, frozen=True):
    size: int


class VolumeDestroy(Request, frozen=True):
    lose_data: bool = False


class VolumeView(msgspec.Struct, frozen=True):
    name: str
    uuid: str
    size: int
    used: int
    live: int
    inodes: int
    provision: str
    """``thin`` or ``exact``; empty if the volume cannot be read."""
    reserved: int
    """Bytes that an exact volume holds of the pool's disk, beyond what it uses."""
    unreserved: int
    """Bytes that its guarantee lacks, because others have taken them; 0 is well."""
    snapshots: int
    list_snapshots: bool
    """Whether its mounts show ``.snapshots`` in the listing of the root."""
    group: str
    mountpoint: str
    wanted: bool
    mount_state: str
    """``unmounted``, ``starting``, ``mounted``, ``stopping`` or ``failed``."""
    mount_pid: int
    problem: str


# snapshots


class SnapshotCreate(Request, frozen=True):
    target: str
    """POOL/VOLUME@NAME or GROUP@NAME"""


class SnapshotName(Request, frozen=True):
    snapshot: str
    """POOL/VOLUME@NAME"""


class SnapshotRename(Request, frozen=True):
    snapshot: str
    new_name: str


class SnapshotHold(Request, frozen=True):
    snapshot: str
    owner: str
    reason: str = ""


class SnapshotRelease(Request, frozen=True):
    snapshot: str
    owner: str


class SnapshotDestroy(Request, frozen=True):
    snapshots: tuple[str, ...]
    dry_run: bool = False


class HoldView(msgspec.Struct, frozen=True):
    owner: str
    reason: str


class SnapshotView(msgspec.Struct, frozen=True):
    name: str
    """POOL/VOLUME@NAME"""
    volume: str
    guid: str
    time: str | None
    snap_group: str
    number: int
    own: int
    """Bytes that nobody else sees: destroying this snapshot alone gives them back."""
    shared: int
    """Bytes that other snapshots or the live view see, too; with `own` all that it holds."""
    holds: tuple[HoldView, ...] = ()


class SnapshotRollback(Request, frozen=True):
    snapshot: str
    """POOL/VOLUME@NAME"""
    dry_run: bool = False


class SnapshotRestore(Request, frozen=True):
    """Paths begin at the volume's root; what is not UTF-8 is given as raw, in base 64."""

    snapshot: str
    """POOL/VOLUME@NAME"""
    path: str
    path_raw: str | None = None
    to: str | None = None
    to_raw: str | None = None
    replace: bool = False
    """What is at the target may go."""
    keep: bool = True
    """Take a snapshot first, if something is replaced."""
    dry_run: bool = False


class SnapshotOrphans(Request, frozen=True):
    """What a snapshot has and what is there now has not, to come back as copies."""

    snapshot: str
    """POOL/VOLUME@NAME"""
    path: str = ""
    """Below it; empty: of the whole volume."""
    path_raw: str | None = None
    since: str = ""
    """The snapshot that both have; empty: the newest one."""
    dry_run: bool = False


class OrphanView(msgspec.Struct, frozen=True):
    path: str
    """In the snapshot; the copy is beside it, with ``.orphan`` at the end."""
    path_raw: str | None
    problem: str
    """Why there is no copy; empty: there is, or would be."""


class OrphansView(msgspec.Struct, frozen=True):
    snapshot: str
    since: str
    """POOL/VOLUME@NAME"""
    orphans: tuple[OrphanView, ...]


class DiffEntryView(msgspec.Struct, frozen=True):
    """One path that differs; paths begin at the volume's root, without a slash."""

    change: str
    """``added``, ``removed``, ``renamed`` or ``changed``."""
    type: str
    """``file``, ``directory``, ``symlink``, ``fifo``, ``socket`` or a kind of ``device``."""
    path: str
    path_raw: str | None
    """The exact bytes in base 64, where the path is not UTF-8 (`path` shows it, escaped)."""
    old_path: str | None
    old_path_raw: str | None
    what: tuple[str, ...]
    """Of ``changed``: data, mode, owner, device, target, xattrs, times."""
    inode: int


class DiffCounts(msgspec.Struct, frozen=True):
    added: int = 0
    removed: int = 0
    renamed: int = 0
    changed: int = 0


class RestoreView(msgspec.Struct, frozen=True):
    snapshot: str
    path: str
    to: str
    files: int
    """All but directories."""
    directories: int
    shared_bytes: int
    """In blocks that the snapshot has, too."""
    copied_bytes: int
    replaced: int
    """Live files and directories that were in the place."""
    kept_as: str | None
    """POOL/VOLUME@NAME of the snapshot that keeps what was replaced."""


class RollbackView(msgspec.Struct, frozen=True):
    snapshot: str
    """POOL/VOLUME@NAME that the volume goes back to."""
    kept_as: str
    """POOL/VOLUME@NAME that keeps what the volume was before."""
    undone: DiffCounts | None
    """In a dry run: what has happened since the snapshot."""


# groups


class GroupCreate(Request, frozen=True):
    name: str
    volumes: tuple[str, ...]


class GroupMembers(Request, frozen=True):
    volumes: tuple[str, ...]


class GroupView(msgspec.Struct, frozen=True):
    name: str
    uuid: str
    role: str
    term: int
    volumes: tuple[str, ...]
    last_snapshot: str | None
    """The newest snap group that is complete here."""
    last_snapshot_time: str | None
    under_way: str
    """A plan that was begun and is not finished; empty for none."""
    next_step: str = ""
    """What comes next in it."""
    to_finish: str = ""
    """What a person can do about it."""
    is_original_primary: bool = True
    """This node is; else its partner."""
    waits: str = ""
    """Why it is not served although this node is the primary; empty: it may be."""
    waits_since: str | None = None
    to_go_on: str = ""
    """What a person can do about it."""


# snapshot policies


class ScheduleCreate(Request, frozen=True):
    target: str
    """POOL/VOLUME or GROUP"""
    policy: str
    spec: PolicySpec


class ScheduleSet(Request, frozen=True):
    """Only what is named changes."""

    target: str
    policy: str
    changes: dict[str, str | int | tuple[str, ...]]


class ScheduleName(Request, frozen=True):
    target: str
    policy: str


class ScheduleExplain(Request, frozen=True):
    target: str
    policy: str = ""
    """Empty: all policies of the target, and what no policy made."""


class SchedulePrune(Request, frozen=True):
    target: str
    policy: str
    dry_run: bool = False


class ScheduleView(msgspec.Struct, frozen=True):
    target: str
    policy: str
    uuid: str
    rhythm: str
    """A sentence: ``every 15m``, ``at 02:00 on sun Europe/Berlin``."""
    retention: str
    spec: PolicySpec
    state: str
    """``waiting``, ``running``, ``paused``, ``inactive`` (another node is active) or ``broken``."""
    reason: str
    """Why it is inactive or broken."""
    next_run: str | None
    result: str
    """Of the latest run: ``none``, ``done``, ``failed``, ``skipped`` or ``missed``."""
    detail: str
    result_time: str | None
    last_snapshot_time: str | None
    failures: int
    """Runs that failed since it took a snapshot."""
    snapshots: int


class RunView(msgspec.Struct, frozen=True):
    """A run that was asked for has ended."""

    result: str
    detail: str
    snapshot: str
    """TARGET@NAME; empty if none was taken."""


class DecisionView(msgspec.Struct, frozen=True):
    """Whether a snapshot, or a snap group, stays or goes, and why."""

    snapshot: str
    time: str | None
    policy: str
    """Who made it; empty: no policy of this node."""
    verdict: str
    """``keep`` or ``destroy``"""
    reason: str


# pair


class InvitationView(msgspec.Struct, frozen=True):
    code: str
    expires: str | None


class PairJoin(Request, frozen=True):
    code: str


class PairRemove(Request, frozen=True):
    force: bool = False


class PartnerQuestion(Request, frozen=True):
    """What the partner asks: the body of an operation, as the operation defines it."""

    body: bytes


class PartnerAnswer(msgspec.Struct, frozen=True):
    body: bytes


class NodeView(msgspec.Struct, frozen=True):
    name: str
    uuid: str
    address: str


class PairView(msgspec.Struct, frozen=True):
    node: NodeView
    peer: NodeView | None


# replication


class ReplicationCreate(Request, frozen=True):
    group: str
    to_pool: str
    volumes: dict[str, str] = {}
    """POOL/VOLUME here to the volume's name on the partner; others keep their names."""
    provision: str = "thin"
    max_snapshots: int = 64
    compression: str = "auto"
    priority: int = 100
    rate: str = ""
    windows: tuple[str, ...] = ()
    max_lag: str = ""
    rpo: str = ""
    lanes: str = "auto"
    encryption: str = "on"


class ReplicationView(msgspec.Struct, frozen=True):
    group: str
    role: str
    to_pool: str
    provision: str
    max_snapshots: int
    compression: str
    priority: int
    """Per cent of the link that it may have."""
    rate: int
    """Bytes a second; 0: no limit."""
    windows: tuple[str, ...]
    max_lag_s: int
    rpo_s: int
    lanes: str
    """``auto`` or the number of connections for the data of large deltas."""
    encryption: str
    """``off``: that data travels in the clear."""
    paused: bool
    split: bool
    remote_volumes: dict[str, str]
    state: str
    reason: str
    hint: str
    exit_code: int
    attempts: int
    finished_attempts: int
    """Counts every attempt that ended since the daemon started, well or badly."""
    asked_attempt: int
    """In the answer to ``run``: the attempt that will have seen everything; else 0."""
    last_success: str | None
    waiting_snapshots: int
    """Snap groups that were made here after the latest success."""
    snapshot: str
    phase: str
    rows_done: int
    rows_total: int
    bytes_done: int
    bytes_total: int
    wire_bytes: int
    seconds: float
    common: str | None
    """The newest snap group that both sides have whole."""
    common_time: str | None
    age_s: float | None
    """Of that: what was written later would be lost with this site."""
    lag_s: float
    """So long the first snap group that the partner lacks has been waiting."""
    lag_bytes: int | None
    """What is to be sent, before compression; null: not known now."""
    rate_now: float
    """Bytes on the wire in a second, lately."""
    ratio: float
    """Bytes before compression for each byte on the wire, lately."""
    level: int
    """Of compression, while something is sent; 0: none."""
    eta: str | None
    """When all that is waiting will be there, windows and limits considered; null: not known."""
    rpo: str
    """``met``, ``missed soon``, ``missed``; empty: nobody said how old the copy may be."""
    clock_skew_s: float
    """How far the partner's clock is ahead."""


class DeltaView(msgspec.Struct, frozen=True):
    """What would be sent of one volume for one snapshot."""

    volume: str
    base: str | None
    target: str
    rows: int
    bytes: int
    files: int
    """Regular files among the rows, new or changed in any way."""
    ratio: float
    """Bytes before compression for each after it, of samples of the data."""
    seconds: float | None
    """From now until this one will be there, windows and limits considered; null: not known."""


# failover


class FailoverRequest(Request, frozen=True):
    force: bool = False
    lose_unreplicated: bool = False
    dry_run: bool = False
    to: str = ""
    """The name of an older snap group to go back to; empty: the newest."""
    call_off: bool = False
    """Not a failover: give up one that waits for the partner."""
    without_partner: bool = False
    """Not a failover: go on as the primary that this node was before it came back."""


class RoleRequest(Request, frozen=True):
    """A failback or a failback join."""

    force: bool = False
    """Although files are in use on the partner."""
    dry_run: bool = False


class GroupRollback(Request, frozen=True):
    snapshot: str
    """The snap group's name."""
    dry_run: bool = False


class StepView(msgspec.Struct, frozen=True):
    text: str
    done: bool
    action: str = ""
    """What it does, in words that are the same for every volume."""
    seconds: float | None = None
    """How long it took; None: it is not done, or an earlier call did it."""


class PlanView(msgspec.Struct, frozen=True):
    group: str
    term: int
    losing: str
    """A sentence: what this loses."""
    steps: tuple[StepView, ...]
    kind: str = "failover"
    """``failover``, ``switchover``, ``failback``, ``failback-join`` or ``rollback``"""
    kept: tuple[str, ...] = ()
    """Snapshots that keep what would else be lost."""
    notes: tuple[str, ...] = ()
    """What was decided about shares and accounts, and what did not go well with them."""
    seconds: float = 0.0
    """From the request until clients could work, or until it was done."""


# the whole


class EventView(msgspec.Struct, frozen=True):
    number: int
    time: str | None
    actor: str
    kind: str
    subject: str
    detail: str


class StatusView(msgspec.Struct, frozen=True):
    node: NodeView
    version: str
    peer: NodeView | None
    volumes: tuple[VolumeView, ...]
    groups: tuple[GroupView, ...]
    replications: tuple[ReplicationView, ...]
    schedules: tuple[ScheduleView, ...]
    attention: tuple[str, ...]
    """Sentences: what a person should look at."""
