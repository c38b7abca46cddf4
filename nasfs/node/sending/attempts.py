"""How sending a group stands, in the daemon's memory, and what of it node.db remembers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec
import trio

from ..context import Node
from ..records import Common, PastTransfer, Transfer
from .reports import Both, Done, Failure, Held, Running

BACKOFF_S = (1.0, 300.0)
"""The first and the longest pause after a failure."""
SKEW_NS = 50_000_000
"""A clock that has moved by less is not worth a write to the disk."""


@dataclass
class Attempts:
    """How sending a group stands, in this daemon's memory."""

    running: Running | None = None
    under_way: bool = False
    begun: int = 0
    """Attempts so far; the latest has this number."""
    finished: int = 0
    """The latest attempt that was not just held."""
    waits: str = ""
    """Why nothing is sent though something shall be; empty: it is, or nothing shall."""
    next_try_ns: int = 0
    """When it is tried again after a failure; 0: it has not failed, or is not tried by itself."""
    rate: float = 0.0
    """Bytes on the wire in a second, lately; 0: not known."""
    ratio: float = 1.0
    """Bytes before compression for each byte on the wire, lately."""
    bytes_waiting: int = 0
    """What is waiting to be sent, when it was last looked at."""
    asked: trio.Event = field(default_factory=trio.Event)
    urgent: trio.Event = field(default_factory=trio.Event)
    rebase: int = 0
    """So often it was asked that what differs in the contents is sent; 0: it was, or nobody did."""
    rebasing: int = 0
    """What `rebase` was when the present attempt began; not 0: it does that."""
    ended: trio.Event = field(default_factory=trio.Event)
    """Of the present attempt."""
    landed: trio.Event = field(default_factory=trio.Event)
    """Of the next attempt that ends and was not just held."""
    both: Both | None = None
    """What was told and is not in node.db yet."""
    pause_s: float = BACKOFF_S[0]
    _at: tuple[float, int] = (0.0, 0)

    def ask(self, *, urgent: bool) -> None:
        """Something is waiting; *urgent*: do not wait for the end of a pause."""
        self.asked.set()
        if urgent:
            self.pause_s = BACKOFF_S[0]
            self.urgent.set()

    def begin(self) -> None:
        """An attempt begins: it sees all that was asked for until now."""
        self.asked, self.urgent = trio.Event(), trio.Event()
        self.under_way, self.rebasing = True, self.rebase
        self.ended = trio.Event()
        self.begun += 1
        self.next_try_ns = 0
        self._at = (trio.current_time(), 0)

    def end(self, outcome: Done | Held | Failure) -> float:
        """An attempt has ended; so many seconds to wait before the next."""
        self.under_way, self.running = False, None
        self.ended.set()
        pause = 0.0
        match outcome:
            case Done():
                self.pause_s, self.bytes_waiting = BACKOFF_S[0], 0
                self._forget_rebase()
            case Failure():
                if not outcome.transient:
                    self._forget_rebase()
                pause = self.pause_s
                self.pause_s = min(pause * 2, BACKOFF_S[1])
                if outcome.transient:
                    self.next_try_ns = time.time_ns() + int(pause * 1e9)
        if not isinstance(outcome, Held):
            self.finished = self.begun
            self.landed.set()
            self.landed = trio.Event()
        return pause

    async def until_finished(self, number: int) -> None:
        """Until the attempt of that number, or a later one, has ended."""
        while self.finished < number:
            await self.landed.wait()

    def _forget_rebase(self) -> None:
        """It was done, or can't be; unless it was asked for again since it began."""
        if self.rebase == self.rebasing:
            self.rebase = 0

    def note(self, running: Running) -> None:
        """Progress; the rate is that of the last few seconds."""
        self.running = running
        now = trio.current_time()
        then, sent = self._at
        if now - then >= 2.0:
            latest = max(0, running.wire_bytes - sent) / (now - then)
            self.rate = latest if not self.rate else 0.7 * self.rate + 0.3 * latest
            self._at = (now, running.wire_bytes)
        if running.bytes_done and running.wire_bytes > 1 << 16:
            self.ratio = max(0.1, running.bytes_done / running.wire_bytes)
        if running.bytes_left:
            self.bytes_waiting = running.bytes_left


def never(group_uuid: str) -> Transfer:
    return Transfer(group_uuid, "idle", "", "", 0, 0, 0, 0, 0, 0, 0, 0.0)


class Memory:
    """Writes what became of attempts into node.db and its event log."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def both(self, group_uuid: str, report: Both | None) -> None:
        """A snap group is whole on both sides."""
        if report is None:
            return
        known = self._node.traffic.common(group_uuid)
        common = Common(group_uuid, report.snap_group, report.name, report.time_ns, report.skew_ns)
        if known is not None and abs(common.skew_ns - known.skew_ns) < SKEW_NS:
            common = msgspec.structs.replace(common, skew_ns=known.skew_ns)
        if common != known:
            self._node.traffic.set_common(common)

    def ended(
        self,
        group_uuid: str,
        began_ns: int,
        outcome: Done | Held | Failure,
        last: Running,
        both: Both | None = None,
    ) -> None:
        """Whatever became of it; nothing, if the replication was deleted meanwhile.

        *both* was told last, and is remembered in the same transaction.
        """
        with self._node.state.change():
            self.both(group_uuid, both)
            before = self._node.bond.transfer(group_uuid) or never(group_uuid)
            self._node.bond.set_transfer(_after(before, outcome, time.time_ns()))
            self._keep(group_uuid, began_ns, before, outcome, last)
            self._tell(group_uuid, before, outcome)

    def _keep(
        self,
        group_uuid: str,
        began_ns: int,
        before: Transfer,
        outcome: Done | Held | Failure,
        last: Running,
    ) -> None:
        """Into the history: what moved something, and each failure when its reason is new."""
        now, common = time.time_ns(), self._node.traffic.common(group_uuid)
        name = common.name if common else ""
        past = PastTransfer(
            0, group_uuid, began_ns, now, "held", "", last.snapshot, 0, last.rows_done,
            last.bytes_done, last.wire_bytes,
        )  # fmt: skip
        match outcome:
            case Done() if outcome.snapshots:
                detail = f"{outcome.skipped} snap groups left out" if outcome.skipped else ""
                past = msgspec.structs.replace(
                    past, result="done", detail=detail, snapshot=name, rows=outcome.rows,
                    snapshots=outcome.snapshots, bytes=outcome.bytes,
                    wire_bytes=outcome.wire_bytes,
                )  # fmt: skip
            case Held() if last.wire_bytes:
                past = msgspec.structs.replace(past, detail=outcome.reason)
            case Failure() if last.rows_done or outcome.message != before.reason:
                past = msgspec.structs.replace(past, result="failed", detail=outcome.message)
            case _:
                return
        self._node.traffic.add_past(past)

    def _tell(self, group_uuid: str, before: Transfer, outcome: Done | Held | Failure) -> None:
        """Into the event log: what was sent, and each failure when its reason is a new one."""
        group = self._node.state.find_group(group_uuid)
        name = group.name if group else group_uuid
        match outcome:
            case Done() if outcome.snapshots:
                detail = f"{outcome.rows} rows, {outcome.bytes} bytes, {outcome.seconds:.1f} s"
                self._node.state.note("daemon", "replicated", name, detail)
            case Failure() if outcome.message != before.reason:
                self._node.state.note("daemon", "replication failed", name, outcome.message)
            case _:
                pass


def _after(before: Transfer, outcome: Done | Held | Failure, now: int) -> Transfer:
    well = msgspec.structs.replace(
        before, state="idle", reason="", hint="", exit_code=0, attempts=0, changed_ns=now
    )
    match outcome:
        case Held():
            return well
        case Done(snapshots=0):  # nothing was waiting: the figures of the one before stay
            return msgspec.structs.replace(well, done_ns=now)
        case Done():
            return msgspec.structs.replace(
                well, done_ns=now, rows=outcome.rows, bytes=outcome.bytes,
                wire_bytes=outcome.wire_bytes, seconds=outcome.seconds,
            )  # fmt: skip
        case Failure():
            return msgspec.structs.replace(
                before,
                state="waiting" if outcome.transient else "stopped",
                reason=outcome.message, hint=outcome.hint, exit_code=outcome.exit_code,
                attempts=before.attempts + 1, changed_ns=now,
            )  # fmt: skip
