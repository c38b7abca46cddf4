"""``python -m nasfs.node.sending.send GROUP ORDER``: brings the partner up to date with a group.

Reports to the daemon on standard output (see ``reports``), takes its orders on standard input (see
``orders``; the first is on the command line).  When all is sent it waits, with its connection, for
the order to begin again; whatever else the end is, it exits, with the code of its error.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from msgspec.structs import replace

from nasfs.errors import Failed, NasError
from nasfs.volume import NoSuchSnapshot
from replication.errors import Fenced, PeerFailed, ReplicationError
from replication.link import LinkClosed

from ..buffers import keep_buffers
from ..context import Node
from ..places import Places
from ..records import Group
from ..shares.share_travel import tell_partner
from .governor import Governor
from .orders import Order, Orders, obey, read_order
from .outgoing import Outgoing, Say
from .peerline import PeerLine
from .rebasing import Rebasing
from .reports import Both, Done, Failure, Held, Report, Running, write_report

PATIENCE_S = 15.0
"""Without progress for so long, the daemon decides when to try again (seconds)."""
REPORT_S = 0.2
"""At most one report of progress in so many seconds."""
MIND_S = 1.0
"""How often a process that waits looks after its connection (seconds)."""

AGAIN_S = 1.0
"""Without news, the latest progress is reported again after so long, with what has passed."""


class Reporter:
    """Writes the reports of one attempt, progress not too often but often enough."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._passed_before = governor.passed
        self._lock = threading.Lock()
        self._latest = Running()
        self._both: Both | None = None
        self._unsaid: Both | None = None
        """Goes with the next report: together they cost the daemon one write to its disk."""
        self._next = 0.0
        self._ended = threading.Event()
        threading.Thread(target=self._repeat, name="reports", daemon=True).start()

    def tell(self, report: Running | Both) -> None:
        """Progress: what is new is said now, more of the same some time."""
        if isinstance(report, Both):
            with self._lock:
                if report != self._both:
                    self._both = self._unsaid = report
            return
        now = time.monotonic()
        new = (report.phase, report.snapshot) != (self._latest.phase, self._latest.snapshot)
        self._latest = report
        if new or now >= self._next:
            self._next = now + REPORT_S
            self.say(report)

    def say(self, report: Report) -> None:
        with self._lock:
            if not self._ended.is_set():
                self._write(report)

    def end(self, report: Report) -> None:
        """The last one."""
        with self._lock:
            self._ended.set()
            self._write(report)

    def _write(self, report: Report) -> None:
        both, self._unsaid = self._unsaid, None
        lines = [write_report(both)] if both else []
        sys.stdout.buffer.write(b"".join([*lines, write_report(report)]))
        sys.stdout.buffer.flush()

    def _repeat(self) -> None:
        while not self._ended.wait(AGAIN_S):
            passed = self._governor.passed - self._passed_before
            latest = self._latest
            self.say(replace(latest, wire_bytes=max(latest.wire_bytes, passed)))


def main() -> int:
    """The exit code: 0, or the error's."""
    parser = argparse.ArgumentParser(prog="nasfs.node.sending.send")
    parser.add_argument("--root", default="")
    parser.add_argument("group")
    parser.add_argument("order", type=read_order)
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _end)
    keep_buffers()
    with Node.open(Places.find(options.root)) as node:
        return _serve(node, node.state.group(options.group), options.order)


def _serve(node: Node, group: Group, order: Order) -> int:
    """Send as often as the daemon says; the exit code."""
    governor = Governor()
    obey(governor, order)
    orders = Orders(governor)
    line = PeerLine(node)
    try:
        while True:
            outcome = _attempt(node, group, governor, line, rebase=order.rebase)
            if isinstance(outcome, Failure):
                return outcome.exit_code
            if isinstance(outcome, Held):
                return 0
            while (begun := orders.wait_to_begin(MIND_S)) is None:
                line.mind()
            order = begun
    finally:
        line.close()


def _attempt(
    node: Node, group: Group, governor: Governor, line: PeerLine, *, rebase: bool
) -> Done | Held | Failure:
    """What became of it is reported as well."""
    reporter = Reporter(governor)
    outcome: Done | Held | Failure
    try:
        with _only_sender(node.places, group):
            group = node.state.find_group(group.uuid) or group  # it may have another name now
            outcome = send_group(node, group, governor, reporter.tell, line, rebase=rebase)
    except LinkClosed as exc:
        outcome = Held(exc.reason)
    except NasError as exc:
        outcome = _failure(exc)
    reporter.end(outcome)
    return outcome


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _only_sender(places: Places, group: Group) -> Iterator[None]:
    """One sender for each group.  Waits for one that a killed daemon left, which ends by itself."""
    descriptor = os.open(
        places.sender_lock(group.uuid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def send_group(
    node: Node,
    group: Group,
    governor: Governor,
    say: Say,
    line: PeerLine,
    *,
    rebase: bool = False,
) -> Done:
    """Agree on the passive side with the partner, then send every snap group that it lacks.

    Args:
        rebase: send only the newest one, by what differs in the contents (see `rebasing`).

    Raises:
        Failed: the group is not replicated.
        ReplicationError: see `replication.sender.replicate`.
    """
    made = node.bond.replication(group.uuid)
    if made is None:
        raise Failed(f"group {group.name} is not replicated")
    kind = Rebasing if rebase else Outgoing
    with kind(node, group, made, governor, say, line, patience_s=PATIENCE_S) as outgoing:
        done = outgoing.run()
        if outgoing.both_have:
            connect = partial(line.lend, line.level)
            tell_partner(node, group, connect, lambda: _staged(outgoing))
    return done


def _staged(outgoing: Outgoing) -> str:
    status = outgoing.partner_has()
    return status.staged if status else ""


def _failure(exc: NasError) -> Failure:
    return Failure(
        message=str(exc),
        hint=exc.hint,
        exit_code=exc.exit_code,
        transient=_may_pass(exc),
        fenced=isinstance(exc, Fenced),
    )


def _may_pass(exc: NasError) -> bool:
    """Worth trying again without a person, some time.

    So is a partner whose disk is full, or a snapshot that was destroyed while it was sent: what is
    to be sent is then planned anew.
    """
    if isinstance(exc, PeerFailed | NoSuchSnapshot):
        return True
    return isinstance(exc, ReplicationError) and exc.transient


if __name__ == "__main__":
    sys.exit(main())
