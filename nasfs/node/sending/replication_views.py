"""How replications stand, for people: one view of each group, windows, history, reasons."""

from __future__ import annotations

import time
from collections.abc import Callable

from nasfs.errors import NasError
from nasfs.volume import Snapshot
from replication.link import Calendar, Opening, parse_window, render_days

from ..context import Node
from ..engine import info
from ..messages import ReplicationView, when
from ..records import Common, Group, Replication, VolumeRow
from ..shares.share_travel import travel_of
from .attempts import Attempts, never
from .lag import arrival, judge_rpo
from .outgoing import complete, grouped
from .replication_messages import PastView, ReasonView, WindowView
from .replicator import Replicator
from .reports import Running
from .traffic import calendar

SKEW_S = 5.0
"""Two clocks that differ by more are told."""


def replication_views(node: Node, replicator: Replicator) -> list[ReplicationView]:
    views = []
    for made in node.bond.replications():
        group = node.state.find_group(made.group)
        if group is not None:
            views.append(replication_view(node, replicator, group, made))
    return sorted(views, key=lambda view: view.group)


def replication_view(
    node: Node, replicator: Replicator, group: Group, made: Replication
) -> ReplicationView:
    now = time.time_ns()
    attempts = replicator.attempts.get(group.uuid) or Attempts()
    running = attempts.running or Running()
    transfer = node.bond.transfer(group.uuid) or never(group.uuid)
    rows = node.state.members(group.uuid)
    names = node.bond.remote_names()
    common = node.traffic.common(group.uuid)
    waiting = waiting_here(node, rows, common)
    active = attempts.under_way
    state, reason = _state(attempts, transfer.state, transfer.reason)
    size = attempts.bytes_waiting if waiting or active else 0
    eta = arrival(calendar(made), now, size, attempts.ratio, attempts.rate) if waiting else None
    newest_ns = waiting[-1].time_ns if waiting else None
    return ReplicationView(
        group=group.name,
        role=group.role,
        to_pool=made.to_pool,
        provision=made.provision,
        max_snapshots=made.max_snapshots,
        compression=made.compression,
        priority=made.priority,
        rate=made.rate,
        windows=tuple(made.windows.splitlines()),
        max_lag_s=made.max_lag_s,
        rpo_s=made.rpo_s,
        lanes=str(made.lanes or "auto"),
        encryption=made.encryption,
        paused=bool(made.paused),
        split=bool(made.split),
        remote_volumes={
            str(node.state.volume_name(row)): f"{made.to_pool}/{names.get(row.uuid, row.name)}"
            for row in rows
        },
        state=state,
        reason=reason,
        hint=transfer.hint if reason == transfer.reason else "",
        exit_code=transfer.exit_code,
        attempts=transfer.attempts,
        finished_attempts=attempts.finished,
        asked_attempt=0,
        last_success=when(transfer.done_ns),
        waiting_snapshots=len(waiting),
        snapshot=running.snapshot,
        phase=running.phase,
        rows_done=running.rows_done if active else transfer.rows,
        rows_total=running.rows_total if active else transfer.rows,
        bytes_done=running.bytes_done if active else transfer.bytes,
        bytes_total=running.bytes_total if active else transfer.bytes,
        wire_bytes=running.wire_bytes if active else transfer.wire_bytes,
        seconds=running.seconds if active else transfer.seconds,
        common=common.name if common else None,
        common_time=when(common.time_ns) if common else None,
        age_s=_seconds(now - common.time_ns) if common else None,
        lag_s=_seconds(now - waiting[0].time_ns) if waiting else 0.0,
        lag_bytes=size if active or not waiting or attempts.bytes_waiting else None,
        rate_now=round(attempts.rate if active else 0.0, 1),
        ratio=round(attempts.ratio, 2),
        level=running.level if active else 0,
        eta=when(eta) if eta else None,
        rpo=judge_rpo(made.rpo_s, now, common.time_ns if common else None, newest_ns, eta),
        clock_skew_s=round(common.skew_ns / 1e9, 1) if common else 0.0,
    )


def _seconds(span_ns: int) -> float:
    """Never negative: this node's clock may have been set back."""
    return round(max(0, span_ns) / 1e9, 1)


def _state(attempts: Attempts, state: str, reason: str) -> tuple[str, str]:
    """As it is now, where node.db knows only how the latest attempt ended."""
    if attempts.under_way:
        return "running", ""
    if attempts.waits:
        return "waiting", attempts.waits
    return ("waiting" if state == "running" else state), reason  # a killed daemon left it running


def waiting_here(node: Node, rows: list[VolumeRow], common: Common | None) -> list[Snapshot]:
    """The first volume's part of the snap groups that are whole here and not known to be there."""
    try:
        volumes = [grouped(info(node, row).snapshots) for row in rows]
    except (NasError, OSError):
        return []
    names = complete(volumes)
    if common is not None and common.snap_group in names:
        names = names[names.index(common.snap_group) + 1 :]
    elif common is not None:  # it is not here any more: those that are later
        names = [name for name in names if volumes[0][name].time_ns > common.time_ns]
    return [volumes[0][name] for name in names]


def window_views(made: Replication) -> list[WindowView]:
    """The windows of a group, as they are numbered."""
    now = time.time_ns()
    views = []
    for number, line in enumerate(made.windows.splitlines(), 1):
        window = parse_window(line)
        opening: Opening = Calendar((window,)).at(now)
        start, _, stop = (
            line.split(" rate=")[0].split(" zone=")[0].rpartition(" ")[2].partition("-")
        )
        views.append(
            WindowView(
                number, render_days(window.days), start, stop, window.rate, window.zone,
                opening.open, when(opening.until_ns or 0),
            )
        )  # fmt: skip
    return views


def past_views(node: Node, group: Group, limit: int) -> list[PastView]:
    """The latest transfers of a group, newest first."""
    return [
        PastView(
            group.name, when(past.began_ns), when(past.ended_ns), past.result, past.detail,
            past.snapshot, past.snapshots, past.rows, past.bytes, past.wire_bytes,
            _seconds(past.ended_ns - past.began_ns),
        )
        for past in node.traffic.past(group.uuid, limit)
    ]  # fmt: skip


def explain(
    node: Node, replicator: Replicator, group: Group, made: Replication
) -> list[ReasonView]:
    """Everything that keeps the group from being up to date, or soon will; nothing: it is well."""
    view = replication_view(node, replicator, group, made)
    attempts = replicator.attempts.get(group.uuid) or Attempts()
    found: list[ReasonView] = []

    def say(reason: str, hint: str = "") -> None:
        found.append(ReasonView(reason, hint))

    if group.role != "active":
        say(f"the group is {group.role} here: only an active one sends")
    if made.paused:
        say("it is paused", f"nasfs replication resume {group.name}")
    if made.split:
        say("its sites were split by hand", f"nasfs replication join {group.name}")
    if closed := replicator.traffic.closed(group.uuid):
        say(closed, f"nasfs replication window list {group.name}")
    if attempts.waits and attempts.waits != closed:
        say(attempts.waits, "nasfs replication link --transfers N lets more go at a time")
    transfer = node.bond.transfer(group.uuid) or never(group.uuid)
    if transfer.state in ("waiting", "stopped") and not attempts.under_way:
        again = f"; it is tried again at {when(attempts.next_try_ns)}"
        tries = f" ({transfer.attempts} attempts)" if transfer.attempts > 1 else ""
        say(
            f"the latest attempt failed: {transfer.reason}{tries}"
            + (again if attempts.next_try_ns else ""),
            transfer.hint or f"nasfs replication run {group.name}",
        )
    if attempts.under_way:
        say(_running(view))
    if problem := travel_of(node, group.uuid).problem:
        say(f"its shares and accounts have not reached the partner: {problem}")
    _explain_pace(node, replicator, made, view, say)
    return found


def _running(view: ReplicationView) -> str:
    eta = f", done at {view.eta} as it looks" if view.eta else ""
    return f"it is sending {view.snapshot or 'now'} ({view.phase}){eta}"


def _explain_pace(
    node: Node,
    replicator: Replicator,
    made: Replication,
    view: ReplicationView,
    say: Callable[..., None],
) -> None:
    order = replicator.traffic.order(made.group)
    if order is not None and order.rate:
        say(
            f"it may send {order.rate} bytes a second: its own rate, its window's, and its share"
            f" of the link ({made.priority} %) considered",
            f"nasfs replication set {view.group} --rate RATE --priority PERCENT;"
            " nasfs replication link --rate RATE",
        )
    elif made.priority < 100:
        say(f"it uses {made.priority} % of the time only, by its priority")
    if view.rpo in ("missed", "missed soon"):
        say(f"its RPO of {made.rpo_s} s is {view.rpo}: the newest copy is {view.age_s} s old")
    if abs(view.clock_skew_s) > SKEW_S:
        say(
            f"the partner's clock differs by {view.clock_skew_s} s: ages that it tells are wrong",
            "set both clocks by NTP (timedatectl set-ntp true)",
        )
    if view.waiting_snapshots and not view.common:
        say("nothing is there yet: the initial copy comes first")
