"""``python -m nasfs.node.send GROUP ORDER``: brings the partner up to date with a group, then ends.

Reports to the daemon on standard output (see ``reports``), takes its orders on standard input (see
``orders``; the first is on the command line); exits with the code of its error.
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

from msgspec.structs import replace

from nasfs.errors import Failed, NasError
from nasfs.volume import NoSuchSnapshot
from replication.errors import Fenced, PeerFailed, ReplicationError
from replication.link import LinkClosed

from .context import Node
from .governor import Governor
from .orders import follow_daemon, obey, read_order
from .outgoing import Outgoing, Say, group_spec
from .places import Places
from .rebasing import Rebasing
from .records import Group
from .reports import Both, Done, Failure, Held, Report, Running, write_report
from .share_travel import tell_partner

PATIENCE_S = 15.0
"""Without progress for so long, the daemon decides when to try again (seconds)."""
REPORT_S = 0.2
"""At most one report of progress in so many seconds."""


AGAIN_S = 1.0
"""Without news, the latest progress is reported again after so long, with what has passed."""


class Reporter:
    """Writes reports, progress not too often but often enough."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._lock = threading.Lock()
        self._latest = Running()
        self._both: Both | None = None
        self._next = 0.0
        self._ended = threading.Event()
        threading.Thread(target=self._repeat, name="reports", daemon=True).start()

    def tell(self, report: Running | Both) -> None:
        """Progress: what is new is said now, more of the same some time."""
        if isinstance(report, Both):
            if report != self._both:
                self._both = report
                self.say(report)
            return
        now = time.monotonic()
        new = (report.phase, report.snapshot) != (self._latest.phase, self._latest.snapshot)
        self._latest = report
        if new or now >= self._next:
            self._next = now + REPORT_S
            self.say(report)

    def say(self, report: Report) -> None:
        with self._lock:
            sys.stdout.buffer.write(write_report(report))
            sys.stdout.buffer.flush()

    def end(self, report: Report) -> None:
        """The last one."""
        self._ended.set()
        self.say(report)

    def _repeat(self) -> None:
        while not self._ended.wait(AGAIN_S):
            passed = max(self._latest.wire_bytes, self._governor.passed)
            self.say(replace(self._latest, wire_bytes=passed))


def main() -> int:
    """The exit code: 0, or the error's."""
    parser = argparse.ArgumentParser(prog="nasfs.node.send")
    parser.add_argument("--root", default="")
    parser.add_argument("--rebase", action="store_true")
    parser.add_argument("group")
    parser.add_argument("order", type=read_order)
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _end)
    governor = Governor()
    obey(governor, options.order)
    follow_daemon(governor)
    reporter = Reporter(governor)
    places = Places.find(options.root)
    try:
        with Node.open(places) as node:
            group = node.state.group(options.group)
            with _only_sender(places, group):
                done = send_group(node, group, governor, reporter.tell, rebase=options.rebase)
                reporter.end(done)
    except LinkClosed as exc:
        reporter.end(Held(exc.reason))
    except NasError as exc:
        reporter.end(_failure(exc))
        return exc.exit_code
    return 0


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
    node: Node, group: Group, governor: Governor, say: Say, *, rebase: bool = False
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
    outgoing = kind(node, group, made, governor, say, patience_s=PATIENCE_S)
    done = outgoing.run(group_spec(node, group, made, node.bond.remote_names()))
    tell_partner(node, group)
    return done


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
